"""Running the application: one process, or several that share a listening socket."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Literal, cast

import uvicorn

from gateway.api.envelope import Envelope
from gateway.app import create_app
from gateway.config import Config
from gateway.logs import configure_logs
from gateway.metrics import share_between_workers, worker_ended
from gateway.store.base import Share
from gateway.wire import HttpProtocol

BACKLOG = 4096
DRAIN_S = 330
"""Longer than the vendor's longest generation, so that a restart loses none."""
KEEP_ALIVE_S = 75
RESTART_WAIT_S = 0.5


class Server(uvicorn.Server):
    """Calls back once it takes requests, and stops when the process that started it is gone."""

    def __init__(self, app: Envelope, ready: Callable[[], None], parent: int | None = None) -> None:
        super().__init__(http_config(app))
        self._gateway = app
        self._ready = ready
        self._parent = parent

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self._parent is not None:
            asyncio.get_running_loop().add_reader(self._parent, self._orphaned)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second one ends at once."""
        self.force_exit = self.should_exit
        self._gateway.drain()
        super().handle_exit(sig, frame)

    def _orphaned(self) -> None:
        asyncio.get_running_loop().remove_reader(self._parent or 0)
        self.should_exit = True


def run_worker(
    config: Config,
    sock: socket.socket,
    ready: Callable[[], None],
    *,
    path: Path | None = None,
    parent: int | None = None,
    place: Share = Share(),
) -> None:
    """Serve until told to stop.

    `path` is the file to follow, `parent` is a pipe that ends when the supervisor does, `place` is
    this worker's among its siblings.
    """
    replicas = config.redis.replicas if config.redis else 1
    share = Share(place.index, place.workers * replicas)
    server = Server(create_app(config, path=path, share=share), ready, parent)
    # uvicorn raises the signal again once it has drained; that is the end, and not a failure.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    server.run(sockets=[sock])


def http_config(app: object, lifespan: Literal["on", "off"] = "on") -> uvicorn.Config:
    """How HTTP is served."""
    return uvicorn.Config(
        cast("Any", app),  # Litestar and uvicorn each have ASGI types of their own
        loop="uvloop",
        http=HttpProtocol,
        ws="none",
        interface="asgi3",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )


def listen(config: Config) -> socket.socket:
    """The listening socket.

    Raises:
        OSError: the address cannot be bound.
    """
    host, port = config.listen.host, config.listen.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
    sock.set_inheritable(True)
    return sock


def serve(
    config: Config, workers: int, announce: Callable[[int], None], path: Path | None = None
) -> None:
    """Serve with one process or several; `announce` is given the port once requests are taken.

    `path` is the file that the configuration came from, to follow its changes.

    Raises:
        OSError: the address cannot be bound.
    """
    configure_logs(json_lines=not os.isatty(2))
    with listen(config) as sock:
        port = sock.getsockname()[1]
        if workers == 1:
            run_worker(config, sock, lambda: announce(port), path=path)
            return
        with TemporaryDirectory(prefix="gateway-metrics-") as folder:
            share_between_workers(Path(folder))
            Supervisor(config, sock, workers, path).run(lambda: announce(port))


class Supervisor:
    """Keeps a number of worker processes running until it is told to stop."""

    def __init__(
        self, config: Config, sock: socket.socket, workers: int, path: Path | None
    ) -> None:
        self._path = path
        self._config = config
        self._sock = sock
        self._workers: list[BaseProcess] = []
        self._count = workers
        self._context = multiprocessing.get_context("fork")
        self._ready = self._context.Semaphore(0)
        self._alive, self._held_open = os.pipe()
        self._stopping = False

    def run(self, announce: Callable[[], None]) -> None:
        """Start the workers, replace those that die, and pass on the signal to stop."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._pass_on)
        self._workers = [self._start(index) for index in range(self._count)]
        for _ in range(self._count):
            self._ready.acquire()
        announce()
        while not self._stopping:
            self._replace_the_dead()
            time.sleep(RESTART_WAIT_S)
        for worker in self._workers:
            worker.join()

    def _start(self, index: int) -> BaseProcess:
        worker = self._context.Process(target=self._work, args=(index,))
        worker.start()
        return worker

    def _work(self, index: int) -> None:
        os.close(self._held_open)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the worker follows the file
        run_worker(
            self._config,
            self._sock,
            self._ready.release,
            path=self._path,
            parent=self._alive,
            place=Share(index, self._count),
        )

    def _replace_the_dead(self) -> None:
        for index, worker in enumerate(self._workers):
            if not worker.is_alive() and not self._stopping:
                worker.join()
                worker_ended(worker.pid or 0)
                self._workers[index] = self._start(index)

    def _pass_on(self, number: int, _: FrameType | None = None) -> None:
        for worker in self._workers:
            if worker.is_alive() and worker.pid is not None:
                os.kill(worker.pid, number)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._stopping = True
        self._pass_on(number)

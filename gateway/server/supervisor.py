"""Several processes that share a listening socket, and the one that keeps them running."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import structlog
from msgspec.structs import replace

from gateway.api.uploads.spool import require_writable
from gateway.config import Config, Listen, MetricsListen
from gateway.config.decode import ConfigError
from gateway.config.reload import FOLLOWED, Follower
from gateway.observability.logs import configure_logs
from gateway.observability.multiprocess import begin_worker, shared_folder, worker_ended
from gateway.server.operations import Sockets
from gateway.server.worker import (
    BACKLOG,
    REPEAT_S,
    SIGNALS,
    ControlBlock,
    advice,
    log_fatal,
    run_worker,
)
from gateway.store.availability import Share
from gateway.tenants.usage_log import UsageLog

RESTART_WAIT_S = 0.5
ALL = "::"

UNSENT_BYTES = 128 * 1024
"""Bytes of an answer in the kernel: more would cost memory, and hide how slow a client is."""

log = structlog.get_logger()

Announce = Callable[[int, int | None], None]
"""Called with the ports of `listen` and of `metrics.listen`."""


class CannotListen(OSError):
    """The address cannot be bound; `filename` is the address."""


def listen(where: Listen | MetricsListen) -> socket.socket:
    """On `::` also for IPv4, or only IPv4 on a machine without IPv6. Raises CannotListen."""
    host = where.host
    if host == ALL and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"  # noqa: S104 - it is what was asked for
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server(
            (host, where.port), family=family, backlog=BACKLOG, dualstack_ipv6=host == ALL
        )
    except OSError as fault:
        address = f"{where.host}:{where.port}"
        raise CannotListen(fault.errno, fault.strerror or str(fault), address) from fault
    sock.set_inheritable(True)
    if sys.platform == "linux":  # and every connection that it accepts
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return sock


@contextmanager
def listening(config: Config) -> Iterator[Sockets]:
    """On every address of a configuration. Raises CannotListen."""
    own = config.metrics.listen
    with listen(config.listen) as main, listen(own) if own else nullcontext() as operations:
        yield Sockets(main, operations)


def serve(config: Config, workers: int, announce: Announce, path: Path | None = None) -> None:
    """Serve with one process or several; `announce` gets the ports once requests are taken.

    `path` is the configuration's file, to follow. Raises CannotListen, or OSError: the usage record
    or pictures cannot be written, or the system lacks something.
    """
    if config.uploads.directory is not None:
        require_writable(config.uploads.directory)
    # Opened here as well: a worker could tell nobody but the log that it cannot be.
    usage = closing(UsageLog(Path(config.usage_log))) if config.usage_log else nullcontext()
    configure_logs(json_lines=not os.isatty(2), secrets=config.secrets())
    with usage, listening(config) as sockets:
        ports = sockets.ports()
        if workers == 1:
            with log_fatal():
                run_worker(config, sockets, lambda: announce(*ports), path=path)
            return
        with shared_folder(workers):
            Supervisor(config, sockets, workers, path).run(lambda: announce(*ports))


class Supervisor:
    """Keeps worker processes running. Signals are blocked while one starts: none is lost."""

    def __init__(self, config: Config, sockets: Sockets, workers: int, path: Path | None) -> None:
        self._path = path
        self._config = config
        self._follower = Follower(path) if path else None
        self._sockets = sockets
        self._workers: dict[int, BaseProcess] = {}
        self._not_begun: set[int] = set()
        self._leaving: list[BaseProcess] = []
        self._slots: dict[int | None, int] = {}
        """Slots of the metrics by living process; lower ones first."""
        self._control = ControlBlock(workers)
        self._told_at = 0.0
        self._count = workers
        self._context = multiprocessing.get_context("fork")
        self._ready = self._context.Semaphore(0)
        self._stopping = False

    def run(self, announce: Callable[[], None]) -> None:
        """Start the workers, replace those that die, and pass on the signal to stop."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._pass_on)
        for index in range(self._count):
            self._start(index)
        if self._are_ready():
            announce()
        while not self._stopping:
            time.sleep(RESTART_WAIT_S)
            for step in (self._follow, self._replace_the_dead):
                self._survive(step)
        for worker in self._all():
            worker.join()
        if any(worker.exitcode for worker in self._all()):
            sys.exit(1)

    def _all(self) -> list[BaseProcess]:
        return [*self._workers.values(), *self._leaving]

    def _survive(self, step: Callable[[], None]) -> None:
        """Whatever goes wrong here, the workers must be kept running and stopped."""
        try:
            step()
        except Exception as fault:  # noqa: BLE001
            # Neither its words nor its frames: they may hold what the file does.
            log.error("supervisor_failed", step=step.__name__, error=type(fault).__name__)  # noqa: TRY400

    def _start(self, index: int) -> None:
        """Try again later where the system has no process for it."""
        self._control.enter(index)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            if not self._stopping:
                slot = min(set(range(len(self._slots) + 1)) - set(self._slots.values()))
                worker = self._context.Process(target=self._work, args=(index, slot))
                worker.start()
                self._workers[index] = worker
                self._slots[worker.pid] = slot
            self._not_begun.discard(index)
        except OSError as fault:
            self._workers.pop(index, None)
            if index not in self._not_begun:
                log.error("worker_not_started", error=str(fault), advice=advice(fault))  # noqa: TRY400
            self._not_begun.add(index)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _work(self, index: int, slot: int) -> None:
        self._control.join()
        begin_worker(slot)
        with log_fatal():
            run_worker(
                self._config,
                self._sockets,
                self._ready.release,
                path=self._path,
                control=self._control,
                place=Share(index, self._count),
            )

    def _are_ready(self) -> bool:
        """Wait until all take requests; one that cannot start ends the others."""
        ready = 0
        while ready < self._count and not self._stopping:
            ready += self._ready.acquire(timeout=RESTART_WAIT_S)
            for index in tuple(self._not_begun):
                self._start(index)
            if not all(worker.is_alive() for worker in self._workers.values()):
                self._stop(signal.SIGTERM, None)
        return not self._stopping

    def _follow(self) -> None:
        """A worker that replaces a dead one begins with the others' configuration."""
        if self._follower is not None and self._follower.is_due():
            with suppress(ConfigError):
                changed = self._follower.read()
                followed = {name: getattr(changed, name) for name in FOLLOWED}
                self._config = replace(self._config, **followed)

    def _replace_the_dead(self) -> None:
        """A worker that is ending is replaced at once, while it finishes its requests."""
        for worker in [one for one in self._leaving if not one.is_alive()]:
            self._leaving.remove(worker)
            self._reap(worker)
        for index in tuple(self._not_begun):
            self._start(index)
        for index, worker in list(self._workers.items()):
            if not worker.is_alive():
                self._reap(worker)
                self._start(index)
            elif self._control.has_left(index):
                self._leaving.append(worker)
                self._start(index)

    def _reap(self, worker: BaseProcess) -> None:
        worker.join()
        worker_ended(self._slots.pop(worker.pid))

    def _pass_on(self, number: int, _: FrameType | None = None) -> None:
        for worker in self._all():
            if worker.is_alive() and worker.pid is not None:
                os.kill(worker.pid, number)

    def _stop(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._stopping and now - self._told_at < REPEAT_S:
            return
        self._stopping, self._told_at = True, now
        self._control.stop()  # before the workers hear of it, by whatever way
        # The kernel would go on making connections for as long as anyone holds the socket.
        self._sockets.main.close()
        self._pass_on(number)

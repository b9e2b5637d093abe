"""Running the application: one process, or several that share a listening socket."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import mmap
import multiprocessing
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Literal, cast

import structlog
import uvicorn
from msgspec.structs import replace

from gateway.accounting import UsageLog
from gateway.api.envelope import Envelope
from gateway.app import create_app
from gateway.config import Config, sections
from gateway.decoding import ConfigError
from gateway.logs import configure_logs
from gateway.metrics import share_between_workers, worker_ended
from gateway.reload import FOLLOWED, Follower
from gateway.store.base import Share
from gateway.wire import HttpProtocol

BACKLOG = 4096
DRAIN_S = sections.DRAIN_S
KEEP_ALIVE_S = 75
RESTART_WAIT_S = 0.5
ACCEPT_S = 0.2
"""How long connections that were begun before the socket refuses new ones may take to stand."""
FIRST_REQUEST_S = 1.0
"""How long those may take until their request is there."""
FIRST_REQUEST_LOOKS = 50
CUT_S = 1.0
"""How long requests that are given up may take to leave the ledger and the limits."""
REPEAT_S = 0.3
"""A signal so soon after one is the same: `timeout` sends it to its child and to its group."""
GROUP_S = 1.0
"""One to a whole group reaches a worker twice, and the second time through the supervisor."""
ALONE_S = 0.2
"""How much later than its workers the supervisor may hear of a signal to all of them."""
SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
LAST_ANSWER = (b"connection", b"close")
SO_ATTACH_FILTER = 26
NO_SYN = struct.pack(
    "HBBI" * 4,
    *(0x30, 0, 0, 13),  # load the 13th byte of the TCP header: its flags
    *(0x45, 0, 1, 0x02),  # is SYN among them?
    *(0x06, 0, 0, 0),  # then drop the packet
    *(0x06, 0, 0, 0xFFFFFFFF),  # else take it whole
)

log = structlog.get_logger()


class Orders:
    """What the supervisor and its workers tell each other, in memory that they share.

    `alive` is a pipe that ends when the supervisor does.
    """

    def __init__(self, workers: int) -> None:
        self._bytes = mmap.mmap(-1, 1 + workers)
        self.alive, self._held_open = os.pipe()

    def join(self) -> None:
        """Be a worker: only the supervisor holds the pipe open."""
        os.close(self._held_open)

    @property
    def stops(self) -> int:
        """How many times the supervisor was told to stop; more than two count as two."""
        return self._bytes[0]

    def stop(self) -> None:
        """Count one."""
        self._bytes[0] = min(2, self._bytes[0] + 1)

    def leave(self, index: int) -> None:
        """This worker takes nothing new any more, while the gateway goes on."""
        self._bytes[1 + index] = 1

    def enter(self, index: int) -> None:
        """A new one takes its place."""
        self._bytes[1 + index] = 0

    def has_left(self, index: int) -> bool:
        """Whether its place is to be filled, though it may still finish what it has."""
        return bool(self._bytes[1 + index])


class Server(uvicorn.Server):
    """One worker's server: says when it takes requests, and ends without losing any.

    SIGTERM makes it not ready at once. For `lame_duck_s` it still takes requests, each connection's
    last, so that proxies find out and their kept connections run dry; then it refuses new ones,
    finishes what it has within `drain_s`, and ends. A second signal ends it at once, and so does
    the end of the process that started it, but gently.

    A worker that is told to end while the gateway goes on leaves new connections to the others.
    """

    def __init__(
        self,
        app: Envelope,
        config: Config,
        ready: Callable[[], None],
        orders: Orders | None = None,
        index: int = 0,
    ) -> None:
        super().__init__(http_config(app))
        self._gateway = app
        self._ready = ready
        self._orders = orders
        self._index = index
        self._is_orphan = False
        self._told_at = 0.0
        self._stops_seen = 0
        self._lame_duck_s = config.lame_duck_s
        self._drain_s = config.drain_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._forced: asyncio.Future[None]
        self.unanswered = 0
        """Requests that were given up at the end."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        self._loop = loop = asyncio.get_running_loop()
        self._forced = loop.create_future()
        await super().startup(sockets)
        if self._orders is not None:
            loop.add_reader(self._orders.alive, self._orphaned, self._orders.alive)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second one ends at once; Ctrl+C has no proxy to wait for."""
        if self.should_exit and not self._is_second():
            return
        if self.should_exit and self._loop is not None:
            self._loop.call_soon_threadsafe(self._force)
        self._told_at = time.monotonic()
        self._stops_seen = self._orders.stops if self._orders else 0
        if sig == signal.SIGINT:
            self._lame_duck_s = 0.0
        self._gateway.drain()
        super().handle_exit(sig, frame)

    def _is_second(self) -> bool:
        """Whether someone wants it to end at once, or one signal has come by two ways."""
        since_s = time.monotonic() - self._told_at
        if self._orders is None:
            return since_s >= REPEAT_S
        stops = self._orders.stops
        if stops > 1:
            return True  # the supervisor has told one that repeats from one that is meant
        if stops > self._stops_seen:
            # This worker was told before, and now all are: that is their first, and so its own.
            self._stops_seen, self._told_at = stops, time.monotonic()
            return False
        return since_s >= GROUP_S

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is under way, unless that takes too long or a second signal comes."""
        log.info("draining", requests=len(self.server_state.tasks), limit_s=self._drain_s)
        ending = asyncio.create_task(self._drain(sockets or []))
        await asyncio.wait(
            [ending, self._forced], timeout=self._drain_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not ending.done():
            await self._cut(sockets or [])
        elif ending.exception() is not None:
            ending.result()
        log.info("drained", unanswered=self.unanswered)
        if not ending.done():
            # What is cancelled from here on was counted above; each would leave a stack trace.
            logging.disable()

    async def _drain(self, sockets: list[socket.socket]) -> None:
        self.server_state.default_headers = [*self.server_state.default_headers, LAST_ANSWER]
        for connection in self._connections():
            if connection.cycle is not None:
                connection.cycle.keep_alive = False
        alone = await self._is_alone()
        if alone:
            # What the kernel holds is accepted by the others: they have the same socket.
            for server in self.servers:
                server.close()
            await asyncio.sleep(self._lame_duck_s)
        else:
            await asyncio.sleep(self._lame_duck_s)
            refuse_new(sockets)
            await asyncio.sleep(ACCEPT_S)
        for _ in range(FIRST_REQUEST_LOOKS):
            if not (self._has_silent_connections() or (not alone and are_waiting(sockets))):
                break
            await asyncio.sleep(FIRST_REQUEST_S / FIRST_REQUEST_LOOKS)
        await super().shutdown(sockets)

    async def _is_alone(self) -> bool:
        """Whether only this worker ends; then a new one is to take its place."""
        if self._orders is None:
            return False
        end = time.monotonic() + ALONE_S
        while time.monotonic() < end:
            if self._orders.stops or self._is_orphan:
                return False
            await asyncio.sleep(ALONE_S / 10)
        self._orders.leave(self._index)
        return True

    async def _cut(self, sockets: list[socket.socket]) -> None:
        """End now: hang up, so that what nobody has paid for yet is not sent any more."""
        self.force_exit = True
        for server in self.servers:
            server.close()
        for sock in sockets:
            sock.close()
        requests = set(self.server_state.tasks)
        self.unanswered = len(requests)
        for connection in self._connections():
            connection.transport.abort()
        if requests:
            await asyncio.wait(requests, timeout=CUT_S)

    def _connections(self) -> list[HttpProtocol]:
        return cast("list[HttpProtocol]", list(self.server_state.connections))

    def _has_silent_connections(self) -> bool:
        return any(connection.cycle is None for connection in self._connections())

    def _force(self) -> None:
        if not self._forced.done():
            self._forced.set_result(None)

    def _orphaned(self, pipe: int) -> None:
        asyncio.get_running_loop().remove_reader(pipe)
        self._is_orphan = True
        self._gateway.drain()
        self.should_exit = True


def refuse_new(sockets: Iterable[socket.socket]) -> None:
    """Let no new connection begin, while those that have begun can still be accepted.

    It holds for every process that has the socket, and for good: only all of them may end so.

    Closing a listening socket resets connections that the kernel has made and nobody has accepted
    yet, requests inside. So their first packets are dropped before: a client sends its own again
    after a second, and is then refused, which tells a proxy to go elsewhere. Where the system has
    no such filter, `lame_duck_s` has to be enough.
    """
    code = ctypes.create_string_buffer(NO_SYN)
    program = struct.pack("HL", len(NO_SYN) // 8, ctypes.addressof(code))
    for sock in sockets:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def are_waiting(sockets: Iterable[socket.socket]) -> bool:
    """Whether the kernel holds connections that nobody has accepted."""
    poll = select.poll()
    for sock in sockets:
        poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def run_worker(
    config: Config,
    sock: socket.socket,
    ready: Callable[[], None],
    *,
    path: Path | None = None,
    orders: Orders | None = None,
    place: Share = Share(),
) -> None:
    """Serve until told to stop.

    `path` is the file to follow, `orders` are the supervisor's, `place` is this worker's among its
    siblings.
    """
    replicas = config.redis.replicas if config.redis else 1
    share = Share(place.index, place.workers * replicas)
    app = create_app(config, path=path, share=share)
    server = Server(app, config, ready, orders, place.index)
    # uvicorn raises the signal again once it has drained, which is the end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(1 if server.unanswered else 0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the worker follows the file
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    server.run(sockets=[sock])


@contextmanager
def last_words() -> Iterator[None]:
    """End the process with a line of its log that says why; a bare stack trace is none."""
    try:
        yield
    except Exception as fault:
        told = f"{type(fault).__name__}: {fault}"
        log.critical("worker_failed", error=told, advice=advice(fault), exc_info=fault)
        sys.exit(1)


def advice(fault: Exception) -> str:
    """What an operator can do about a worker that could not go on."""
    match fault:
        case ImportError():
            return "Install the gateway again, with its locked dependencies: a part is missing."
        case OSError(filename=None) | MemoryError():
            return "Raise the limit of this system that the error names: open files, memory, ports."
        case OSError():
            return f"Give the gateway's user access to {fault.filename}, or name another path."
        case _:
            return "This is a defect: report this line, and go back to the version before."


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
    )


class CannotListen(OSError):
    """The address cannot be bound."""


def listen(config: Config) -> socket.socket:
    """The listening socket.

    Raises:
        CannotListen: the address cannot be bound.
    """
    host, port = config.listen.host, config.listen.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as fault:
        raise CannotListen(fault.errno, fault.strerror or str(fault)) from fault
    sock.set_inheritable(True)
    return sock


def serve(
    config: Config, workers: int, announce: Callable[[int], None], path: Path | None = None
) -> None:
    """Serve with one process or several; `announce` is given the port once requests are taken.

    `path` is the file that the configuration came from, to follow its changes.

    Raises:
        CannotListen: the address cannot be bound.
        OSError: the usage record cannot be written, or the system lacks something.
    """
    # Opened here as well: a worker could tell nobody but the log that it cannot be.
    usage = closing(UsageLog(Path(config.usage_log))) if config.usage_log else nullcontext()
    configure_logs(json_lines=not os.isatty(2), secrets=config.secrets())
    with usage, listen(config) as sock:
        port = sock.getsockname()[1]
        if workers == 1:
            with last_words():
                run_worker(config, sock, lambda: announce(port), path=path)
            return
        with TemporaryDirectory(prefix="gateway-metrics-") as folder:
            share_between_workers(Path(folder))
            Supervisor(config, sock, workers, path).run(lambda: announce(port))


class Supervisor:
    """Keeps a number of worker processes running until it is told to stop.

    The signals are blocked while a worker is begun, so that none is lost between two processes.
    """

    def __init__(
        self, config: Config, sock: socket.socket, workers: int, path: Path | None
    ) -> None:
        self._path = path
        self._config = config
        self._follower = Follower(path) if path else None
        self._sock = sock
        self._workers: dict[int, BaseProcess] = {}
        self._not_begun: set[int] = set()
        self._leaving: list[BaseProcess] = []
        self._orders = Orders(workers)
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
        """Whatever goes wrong here, the workers are to be kept running and told to stop."""
        try:
            step()
        except Exception as fault:  # noqa: BLE001
            # Neither its words nor its frames: they may hold what the file does.
            log.error("supervisor_failed", step=step.__name__, error=type(fault).__name__)  # noqa: TRY400

    def _start(self, index: int) -> None:
        """Begin a worker, or have it tried again where the system has no process for it."""
        self._orders.enter(index)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            if not self._stopping:
                worker = self._context.Process(target=self._work, args=(index,))
                worker.start()
                self._workers[index] = worker
            self._not_begun.discard(index)
        except OSError as fault:
            self._workers.pop(index, None)
            if index not in self._not_begun:
                log.error("worker_not_started", error=str(fault), advice=advice(fault))  # noqa: TRY400
            self._not_begun.add(index)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _work(self, index: int) -> None:
        self._orders.join()
        with last_words():
            run_worker(
                self._config,
                self._sock,
                self._ready.release,
                path=self._path,
                orders=self._orders,
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
        """A worker that replaces a dead one begins with what the others have, a bad file or not."""
        if self._follower is not None and self._follower.is_due():
            with suppress(ConfigError):
                changed = self._follower.read()
                followed = {name: getattr(changed, name) for name in FOLLOWED}
                self._config = replace(self._config, **followed)

    def _replace_the_dead(self) -> None:
        """One that was told to end is replaced at once, while it finishes what it has."""
        for worker in [one for one in self._leaving if not one.is_alive()]:
            self._leaving.remove(worker)
            self._bury(worker)
        for index in tuple(self._not_begun):
            self._start(index)
        for index, worker in list(self._workers.items()):
            if not worker.is_alive():
                self._bury(worker)
                self._start(index)
            elif self._orders.has_left(index):
                self._leaving.append(worker)
                self._start(index)

    def _bury(self, worker: BaseProcess) -> None:
        worker.join()
        worker_ended(worker.pid or 0)

    def _pass_on(self, number: int, _: FrameType | None = None) -> None:
        for worker in self._all():
            if worker.is_alive() and worker.pid is not None:
                os.kill(worker.pid, number)

    def _stop(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._stopping and now - self._told_at < REPEAT_S:
            return
        self._stopping, self._told_at = True, now
        self._orders.stop()  # before the workers hear of it, by whatever way
        # The kernel would go on making connections for as long as anyone holds the socket.
        self._sock.close()
        self._pass_on(number)

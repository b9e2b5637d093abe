"""Running the application in one process, which may be one of several."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal, cast

import structlog
import uvicorn

from gateway.api.middleware import RequestMiddleware
from gateway.app import create_app
from gateway.config import Config, sections
from gateway.observability.log_writer import log_writer
from gateway.server.bounds import Bounds, Unread
from gateway.server.http import BOUNDS, HttpProtocol
from gateway.server.operations import OperationsServer, Sockets
from gateway.store.availability import Share

BACKLOG = 4096
DRAIN_S = sections.DRAIN_S
ACCEPT_S = 0.2
"""How long connections begun before the socket refuses new ones may take to be established."""
FIRST_REQUEST_S = 1.0
"""How long those may take until their request is there."""
FIRST_REQUEST_LOOKS = 50
CUT_S = 1.0
"""How long requests that are given up may take to end."""
CLOSE_S = 5.0
"""How long they may then take to leave the ledger and the limits."""
REPEAT_S = 0.3
"""A signal so soon after one is the same: `timeout` sends it to its child and to its group."""
GROUP_S = 1.0
"""One to a whole group reaches a worker twice, and the second time through the supervisor."""
ALONE_S = 0.2
"""How much later than its workers the supervisor may hear of a signal to all of them."""
LOOK_UPS = "16"
"""Threads for name look-ups: a silent name server would take all four of libuv's default."""
COLLECT_AFTER = 50_000
"""Python's 700 come several times in each turn of the loop, and cycles are rare here."""
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


class ControlBlock:
    """What supervisor and workers share in memory; the pipe `alive` ends with the supervisor."""

    def __init__(self, workers: int) -> None:
        self._bytes = mmap.mmap(-1, 1 + workers)
        self.alive, self._held_open = os.pipe()

    def join(self) -> None:
        """Be a worker: only the supervisor holds the pipe open."""
        os.close(self._held_open)

    @property
    def stops(self) -> int:
        """How many stop signals the supervisor has had; more than two count as two."""
        return self._bytes[0]

    def stop(self) -> None:
        """Count one."""
        self._bytes[0] = min(2, self._bytes[0] + 1)

    def leave(self, index: int) -> None:
        """This worker takes nothing new any more, while the gateway goes on."""
        self._bytes[1 + index] = 1

    def enter(self, index: int) -> None:
        self._bytes[1 + index] = 0

    def has_left(self, index: int) -> bool:
        """Whether its place is to be filled, though it may still finish what it has."""
        return bool(self._bytes[1 + index])


class Server(uvicorn.Server):
    """One worker's server: says when it takes requests, and ends without losing any (0002).

    SIGTERM: a lame duck for `lame_duck_s`, then no new connections and up to `drain_s` for what is
    under way. A second signal ends it at once; the end of its parent only skips the lame duck. A
    worker that ends alone leaves new connections to the others.
    """

    def __init__(
        self,
        app: RequestMiddleware,
        config: Config,
        ready: Callable[[], None],
        control: ControlBlock | None = None,
        index: int = 0,
        *,
        operations: OperationsServer | None = None,
    ) -> None:
        super().__init__(http_config(app, bounds=bounds_of(config)))
        self._gateway = app
        self._operations = operations
        self._ready = ready
        self._control = control
        self._index = index
        self._is_orphan = False
        self._told_at = 0.0
        self._stops_seen = 0
        self._lame_duck_s = config.lame_duck_s
        self._drain_s = config.drain_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._forced: asyncio.Future[None]
        self.aborted_requests = 0
        """Requests that were given up at the end."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        self._loop = loop = asyncio.get_running_loop()
        self._forced = loop.create_future()
        await super().startup(sockets)
        if self._operations is not None:
            await self._operations.begin()
        if self._control is not None:
            loop.add_reader(self._control.alive, self._orphaned, self._control.alive)
        # What is there now stays: the collector need not look at it again and again.
        gc.freeze()
        gc.set_threshold(COLLECT_AFTER)
        if self.started:
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        ends = await super().on_tick(counter)
        if self._operations is not None:
            self._operations.tell(self.server_state.default_headers)
        return ends

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second one ends at once; Ctrl+C has no proxy to wait for."""
        if self._told_at:  # not by `should_exit`, which an orphan sets without a signal
            if not self._is_second():
                return
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._force)
        self._told_at = time.monotonic()
        self._stops_seen = self._control.stops if self._control else 0
        if sig == signal.SIGINT:
            self._lame_duck_s = 0.0
        self._gateway.drain()
        # A second signal in the same moment interrupts the first, and uvicorn takes a second
        # SIGINT for an order to drop everything.
        super().handle_exit(signal.SIGTERM, frame)

    def _is_second(self) -> bool:
        """Whether it is to end at once, or one signal has come by two ways."""
        since_s = time.monotonic() - self._told_at
        if self._control is None:
            return since_s >= REPEAT_S
        stops = self._control.stops
        if stops > 1:
            return True  # the supervisor counts no signal that only repeats another
        if stops > self._stops_seen:
            # This worker had a signal before, and now all have: their first is its own first.
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
        is_cut = not ending.done()
        if is_cut:
            ending.cancel()
            await asyncio.wait([ending])
            await self._cut(sockets or [])
        elif ending.exception() is not None:
            ending.result()
        elif self._operations is not None:
            await self._operations.end()
        log.info("drained", unanswered=self.aborted_requests)
        if is_cut:
            # The rest of an orderly end would wait for threads that wait for a silent name server
            # or collector, and leave a stack trace for each request that was counted above.
            log_writer.flush()
            os._exit(1 if self.aborted_requests else 0)

    async def _drain(self, sockets: list[socket.socket]) -> None:
        self.server_state.default_headers = [*self.server_state.default_headers, LAST_ANSWER]
        alone = await self._is_alone()
        if alone:
            # What the kernel holds is accepted by the others: they have the same socket.
            for server in self.servers:
                server.close()
            if self._operations is not None:  # they also say whether the gateway is ready
                await self._operations.end()
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
        if self._control is None:
            return False
        end = time.monotonic() + ALONE_S
        while time.monotonic() < end:
            if self._control.stops or self._is_orphan:
                return False
            await asyncio.sleep(ALONE_S / 10)
        self._control.leave(self._index)
        return True

    async def _cut(self, sockets: list[socket.socket]) -> None:
        """Hang up now, so that nothing unpaid is sent any more."""
        self.force_exit = True
        self._gateway.give_up()
        for server in self.servers:
            server.close()
        for sock in sockets:
            sock.close()
        requests = set(self.server_state.tasks)
        self.aborted_requests = len(requests)
        for connection in self._connections():
            connection.transport.abort()
        if requests:
            await asyncio.wait(requests, timeout=CUT_S)
        # Leases and leaderships that are given back here are nobody's wait elsewhere.
        with suppress(TimeoutError):
            await asyncio.wait_for(self.lifespan.shutdown(), CLOSE_S)

    def _connections(self) -> list[HttpProtocol]:
        return cast("list[HttpProtocol]", list(self.server_state.connections))

    def _has_silent_connections(self) -> bool:
        return any(connection.is_silent for connection in self._connections())

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

    It holds for all processes of the socket, and for good. Closing instead would reset connections
    that wait in the kernel. First packets are dropped: a client repeats its own after a second and
    is then refused. Without such a filter, `lame_duck_s` has to be enough.
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
    sockets: Sockets,
    ready: Callable[[], None],
    *,
    path: Path | None = None,
    control: ControlBlock | None = None,
    place: Share = Share(),
) -> None:
    """`path` is the file to follow, `place` is this worker's among its siblings."""
    replicas = config.redis.replicas if config.redis else 1
    share = Share(place.index, place.workers * replicas)
    app = create_app(config, path=path, share=share)
    operations = None
    if app.operations is not None and sockets.operations is not None:
        served = http_config(app.operations, "off", bounds=bounds_of(config))
        operations = OperationsServer(served, sockets.operations)
    server = Server(app, config, ready, control, place.index, operations=operations)
    os.environ.setdefault("UV_THREADPOOL_SIZE", LOOK_UPS)
    # uvicorn raises the signal again once it has drained, which is the end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(1 if server.aborted_requests else 0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the worker follows the file
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    server.run(sockets=[sockets.main])


@contextmanager
def log_fatal() -> Iterator[None]:
    """Log why the process ends; a bare stack trace does not."""
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


def bounds_of(config: Config) -> Bounds:
    return Bounds(
        head_s=config.reading.head_timeout_s,
        idle_s=config.listen.keep_alive_s,
        connections=config.listen.max_connections,
        unread_bytes=config.reading.unread_bytes,
    )


def http_config(
    app: object, lifespan: Literal["on", "off"] = "on", *, bounds: Bounds = BOUNDS
) -> uvicorn.Config:
    """How HTTP is served; `bounds` are each connection's."""
    protocol = partial(HttpProtocol, bounds=bounds, unread=Unread())
    return uvicorn.Config(
        cast("Any", app),  # Litestar and uvicorn each have ASGI types of their own
        loop="uvloop",
        http=cast("Any", protocol),
        ws="none",
        interface="asgi3",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
    )

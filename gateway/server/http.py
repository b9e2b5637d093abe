"""HTTP/1.1 on one connection, in order (0024); tests/wire holds each rule."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, cast

import structlog
import uvicorn
from uvicorn.server import ServerState

from gateway.api.connection import CONNECTION
from gateway.server import heads
from gateway.server.bounds import Bounds, Unread
from gateway.server.heads import Headers, Refusal
from gateway.server.reader import Head, RequestReader
from gateway.server.request import Request

ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
BOUNDS: Final = Bounds()
LINGER_STEP: Final = 1024 * 1024
"""Bytes for which a sender may have `linger_s` again: an upload of 30 MB takes its time."""
SURPLUS_S: Final = 1.0
"""How long a surplus connection may wait for its refusal."""

log = structlog.get_logger()


class HttpProtocol(asyncio.Protocol):
    """One connection, made by uvicorn's server; thousands wait at once, so each holds little."""

    __slots__ = (
        "_ahead_bytes",
        "_app",
        "_bounds",
        "_client",
        "_held_bytes",
        "_is_half_closed",
        "_is_paused",
        "_loop",
        "_queue",
        "_reader",
        "_reading",
        "_refusal",
        "_server",
        "_stall_timer",
        "_state",
        "_thrown_away",
        "_timer",
        "_unread",
        "_writable",
        "is_silent",
        "transport",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],  # noqa: ARG002 - of an application that keeps its own
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        bounds: Bounds = BOUNDS,
        unread: Unread | None = None,
    ) -> None:
        self._app = config.loaded_app
        self._state = server_state
        self._bounds = bounds
        self._unread = unread or Unread()
        self._held_bytes = 0
        """This connection's part of `Unread`."""
        self._loop = _loop or asyncio.get_running_loop()
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self.is_silent = True
        """No request has come yet."""
        self._reader = RequestReader(self, bounds)
        self._reading: Request | None = None
        self._queue: list[Request] = []
        """To be answered, first come first served; the last may still be read."""
        self._refusal: Refusal | None = None
        """What is answered after them."""
        self._ahead_bytes = self._thrown_away = 0
        self._is_half_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._is_paused = False
        self._writable: asyncio.Event | None = None
        """While the client takes too little of what is written."""
        self._stall_timer: asyncio.TimerHandle | None = None

    # The connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        cast("set[object]", self._state.connections).add(self)
        self._client = address(transport.get_extra_info("peername"))
        self._server = own_address(transport.get_extra_info("sockname"))
        silent_s = SURPLUS_S if self._is_surplus() else self._bounds.head_s
        self._set_timer(silent_s, self.close)

    def _is_surplus(self) -> bool:
        return self.is_silent and len(self._state.connections) > self._bounds.connections

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - left is left
        cast("set[object]", self._state.connections).discard(self)
        self._stop_timer()
        self._let_go()
        self._reader.close()
        self._reading = None
        queue, self._queue = self._queue, []
        for request in queue:
            request.lose()
        self.resume_writing()

    def eof_received(self) -> bool:
        """The client may still read; waiting images are given up all the same, as nginx does."""
        self._is_half_closed = True
        self._reader.stop()
        self._reading = None
        for request in self._queue:
            request.leave()
        return bool(self._queue)

    def data_received(self, data: bytes) -> None:
        if self._reader.is_done:
            self._throw_away(len(data))
            return
        self._reader.feed(data)
        if len(self._queue) > 1:
            self._ahead_bytes += len(data)
            if self._ahead_bytes > self._bounds.ahead_bytes:
                self._read_no_further()
        if self._reader.is_in_head or len(self._queue) > 1:
            self._hold(len(data))
        else:
            self._let_go()
        if self._reader.is_in_head and self._timer is None:
            self._set_timer(self._bounds.head_s, self._too_slow)

    # What is read.

    def head_begun(self) -> None:
        self._stop_timer()
        if self._is_surplus():
            self._reader.stop()
            self.refused(heads.TOO_MANY)
        elif len(self._queue) > self._bounds.ahead:
            self._read_no_further()

    def _hold(self, size: int) -> None:
        """Count bytes that are no request yet, over all connections."""
        self._held_bytes += size
        self._unread.size += size
        if self._unread.size > self._bounds.unread_bytes:
            self._reader.stop()
            self.refused(heads.TOO_BUSY)

    def _let_go(self) -> None:
        self._unread.size -= self._held_bytes
        self._held_bytes = 0

    def head_read(self, head: Head) -> None:
        self._stop_timer()
        scope = self._scope(head)
        request = Request(
            self, scope, keep_alive=head.keep_alive, expects_continue=head.expects_continue
        )
        scope[CONNECTION] = request
        self._reading = request
        self.is_silent = False
        self._queue.append(request)
        if len(self._queue) == 1:
            self._start(request)

    def _scope(self, head: Head) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": ASGI,
            "http_version": head.version,
            "method": head.method,
            "scheme": "http",
            "path": head.target.path,
            "raw_path": head.target.raw_path,
            "query_string": head.target.query,
            "root_path": "",
            "headers": head.headers,
            "client": self._client,
            "server": self._server,
            "state": {},
        }

    def body_read(self, body: bytes) -> None:
        if self._reading is not None:
            self._reading.add(body)

    def request_read(self) -> None:
        request, self._reading = self._reading, None
        if request is not None:
            request.end()

    def refused(self, refusal: Refusal) -> None:
        """Answer what came before, then this, and end."""
        self._stop_timer()
        unread, self._reading = self._reading, None
        if unread is not None and unread.is_started:
            unread.leave()  # too late for another answer
            return
        if unread is not None:
            self._queue.remove(unread)
            unread.lose()
        self._refusal = refusal
        if not self._queue:
            self._end()

    def _read_no_further(self) -> None:
        """Answer what is whole, then end, so that the sender sees what was not taken."""
        self._reader.stop()
        unread, self._reading = self._reading, None
        if unread is not None and unread is not self._queue[0]:
            self._queue.remove(unread)
        self._queue[-1].keep_alive = False

    # What a request asks for.

    def default_headers(self) -> Headers:
        return self._state.default_headers

    @property
    def is_full(self) -> bool:
        return self._writable is not None

    async def writable(self) -> None:
        while self._writable is not None:
            await self._writable.wait()

    def pause(self, request: Request) -> None:
        """Not for a request sent ahead, as the end of the connection would not be seen."""
        if not self._is_paused and self._queue[0] is request:
            self._is_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self.transport.resume_reading()

    def answered(self, request: Request) -> None:
        if self._queue[:1] != [request]:
            return  # it was given up
        del self._queue[0]
        self.resume()  # a body that nobody read may have stopped it
        if len(self._queue) < 2:
            self._ahead_bytes = 0
            self._let_go()
        if not request.keep_alive:
            self._refusal = None
            self._end()
        elif self._queue:
            self._start(self._queue[0])
        elif self._reader.is_done:
            self._end()
        elif not self._reader.is_in_head:
            self._set_timer(self._bounds.idle_s, self.close)

    def broke_off(self, request: Request) -> None:
        if self._queue[:1] != [request]:
            return
        if request.is_started:
            self.transport.abort()  # so that what has come is not taken for the whole
        else:
            self._queue.clear()
            if not request.has_left:
                self._refusal = heads.FAILED
            self._end()

    def _start(self, request: Request) -> None:
        task = self._loop.create_task(request.run(self._app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    # How it ends.

    def shutdown(self) -> None:
        """uvicorn's: end, but not before what is under way is answered."""
        for request in self._queue:
            request.keep_alive = False
        if not self._queue:
            self.close()

    def close(self) -> None:
        """End without a word."""
        self._reader.stop()
        self._stop_timer()
        if self.transport.get_write_buffer_size():
            self._set_timer(self._bounds.linger_s, self.transport.abort)
        self.transport.close()

    def _too_slow(self) -> None:
        self._reader.stop()
        self.refused(heads.TOO_SLOW)

    def _end(self) -> None:
        self._reader.stop()
        self._let_go()
        self._queue.clear()
        self._reading = None
        self._stop_timer()
        if self.transport.is_closing():
            return
        if self._refusal is not None:
            self._answer(self._refusal)
        if self._is_half_closed:
            self.close()
            return
        self.transport.write_eof()
        self._set_timer(self._bounds.linger_s, self.transport.abort)
        self.resume()

    def _answer(self, refusal: Refusal) -> None:
        request_id = heads.new_request_id()
        log.info("refused", request_id=request_id, status=refusal.status, code=refusal.code)
        self.transport.write(refusal.answer(request_id, self._state.default_headers))

    def _throw_away(self, size: int) -> None:
        steps = self._thrown_away // LINGER_STEP
        self._thrown_away += size
        if self._thrown_away > self._bounds.linger_bytes:
            self.transport.abort()
        elif self._thrown_away // LINGER_STEP > steps and self._timer is not None:
            self._set_timer(self._bounds.linger_s, self.transport.abort)

    def _set_timer(self, after_s: float, then: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self._loop.call_later(after_s, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # How fast the client takes what is written.

    def pause_writing(self) -> None:
        self._writable = asyncio.Event()
        self._stall_timer = self._loop.call_later(self._bounds.stalled_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


def address(name: object) -> tuple[str, int] | None:
    """Host and port; an IPv6 name has two parts more."""
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None


own_address = lru_cache(maxsize=64)(address)
"""The same object for the thousands of connections of a listening address."""

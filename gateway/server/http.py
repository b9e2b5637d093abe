"""uvicorn's HTTP/1.1 with bounds that it lacks: how long and slow a request's head may be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from secrets import token_hex
from typing import Any, Final, cast

import httptools
import msgspec
from uvicorn._types import ASGIVersions
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.api.disconnect import CONNECTION
from gateway.protocol.openai import ErrorDetail, ErrorResponse

MAX_HEAD_BYTES = 32 * 1024
HEAD_TIMEOUT_S = 20.0
AHEAD_MAX = 16
"""Requests of a connection that may wait for the answer to the one before."""
LINGER_S = 1.0
"""How long what a refused client still sends is read and thrown away."""
# One of each for all requests, which differ in neither.
ASGI: Final[ASGIVersions] = {"version": "3.0", "spec_version": "2.3"}
ADDRESSES: Final[dict[object, Any]] = {}
"""This server's own: as many as it listens on."""


class HeadTooLarge(httptools.HttpParserError):
    """The request line and headers together are over the limit."""


class AmbiguousHost(httptools.HttpParserError):
    """The request names no host, or several."""


class Signal:
    """An `asyncio.Event` for one reader: without the queue of readers, which is 0.8 KiB."""

    __slots__ = ("_is_set", "_loop", "_reader")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, is_set: bool = False) -> None:
        self._loop = loop
        self._is_set = is_set
        self._reader: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Let the reader go on."""
        self._is_set = True
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        self._reader = None

    def clear(self) -> None:
        """Make the next reader wait."""
        self._is_set = False

    def wait(self) -> asyncio.Future[None]:
        """Done once it is set."""
        reader = self._loop.create_future()
        if self._is_set:
            reader.set_result(None)
        else:
            self._reader = reader
        return reader


class Pipelined(list[Any]):
    """Requests that came before the answer to an earlier one; an empty deque is 0.7 KiB."""

    __slots__ = ()

    def appendleft(self, item: object) -> None:
        """As a deque does it."""
        self.insert(0, item)


class HttpProtocol(HttpToolsProtocol):
    """One connection. What cannot be parsed is answered in OpenAI's form too, and ends it.

    Thousands of connections wait at once, so what each of them holds is kept small: attributes in
    slots, since a 31st in the instance's dictionary would give every connection a table of its
    own, and no `asyncio.Event` (docs/decisions/0007-waiting-without-tasks.md).
    """

    __slots__ = ("_head_bytes", "_head_timer", "_refused", "on_hang_up")

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*args, **kwargs)
        self._refused = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self.on_hang_up: Callable[[], object] | None = None
        """Called when the client leaves: a reading coroutine that does nothing else is 1 KiB."""
        self.pipeline = cast("Any", Pipelined())

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow._is_writable_event = cast("Any", Signal(self.loop, is_set=True))  # noqa: SLF001
        self.server = ADDRESSES.setdefault(self.server, self.server)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)
        on_hang_up, self.on_hang_up = self.on_hang_up, None
        if on_hang_up is not None:
            on_hang_up()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        # An unfinished header is not reported until its end, so its bytes are counted here.
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, "The request's headers are too large.")

    def read_on(self) -> None:
        """Let reading go on, which uvicorn stops at a large body, or at one before its turn.

        Then the end of the connection is not seen, so it goes on as long as somebody watches, but
        not for more requests than a client may sensibly have sent ahead.
        """
        if self.on_hang_up is not None and len(self.pipeline) <= AHEAD_MAX:
            self.flow.resume_reading()

    def unwatch(self) -> None:
        """Call nothing when the client leaves."""
        self.on_hang_up = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._expect_head()
        self.scope[CONNECTION] = self  # type: ignore[literal-required]
        self.scope["asgi"] = ASGI

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        if self._head_timer is not None:  # else a trailer: none of those that are read may be one
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._end_head()
        self._require_host()
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:  # its task has not run yet
            self.cycle.message_event = cast("Any", Signal(self.loop))
        self.read_on()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words
        """Uvicorn's answer to what its parser rejects; a head that is too large ends here too."""
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "The request's headers are too large.")
        else:
            self._refuse(400, "The request is not valid HTTP/1.1.")

    def _require_host(self) -> None:
        """RFC 9112, 3.2: whoever stands before the gateway must not read another host than it."""
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise AmbiguousHost

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._too_slow)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        self._refuse(408, "The request's headers did not arrive in time.")

    def _refuse(self, status: int, message: str) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._end_head()
        detail = ErrorDetail(message, "invalid_request_error", None, "invalid_http")
        body = msgspec.json.encode(ErrorResponse(detail))
        head = (
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: req_{token_hex(16)}\r\nx-should-retry: false\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        # Closing while the client still sends would reset the connection before it reads this.
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)

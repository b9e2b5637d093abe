"""One request of a connection, as an ASGI application sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

import structlog

from gateway.server.heads import Headers, answer_head

PAUSE_AT: Final = 65_536
"""Bytes of a body that wait for the application before reading from the connection stops."""
TOGETHER_MAX: Final = 16_384
"""Larger bodies are not copied behind the head: a part of an image would be there twice."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
BODILESS: Final = frozenset({204, 304})

Message = Any
"""An ASGI message; uvicorn and Litestar each have types of their own."""

log = structlog.get_logger()


class Wire(Protocol):
    """What a request asks of its connection."""

    transport: asyncio.Transport

    def default_headers(self) -> Headers:
        """The server's own, among them `connection: close` while it drains."""

    @property
    def is_full(self) -> bool:
        """Whether the client has yet to take most of what was written."""

    async def writable(self) -> None:
        """Wait until it has."""

    def pause(self, request: Request) -> None:
        """Read no more of this request for now."""

    def resume(self) -> None:
        """Read again."""

    def answered(self, request: Request) -> None:
        """The whole answer is written."""

    def broke_off(self, request: Request) -> None:
        """The application ended without a whole answer."""


class Request:
    __slots__ = (
        "_body",
        "_connection",
        "_expects_continue",
        "_has_ended",
        "_head",
        "_is_chunked",
        "_is_head",
        "_is_http_1_1",
        "_left",
        "_on_hang_up",
        "_waiter",
        "has_left",
        "is_answered",
        "is_lost",
        "is_started",
        "is_whole",
        "keep_alive",
        "scope",
    )

    def __init__(
        self, connection: Wire, scope: dict[str, Any], *, keep_alive: bool, expects_continue: bool
    ) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        """Whether another request may follow on the connection."""
        self.is_whole = False
        self.is_started = False
        """The head of its answer is written."""
        self.is_answered = False
        self.has_left = False
        """The client sends nothing more: it hung up, as far as anybody can tell."""
        self.is_lost = False
        """What is answered reaches nobody."""
        self._connection = connection
        self._expects_continue = expects_continue
        self._is_head = scope["method"] == "HEAD"
        self._is_http_1_1 = scope["http_version"] == "1.1"
        self._body = b""
        self._has_ended = False
        self._waiter: asyncio.Future[None] | None = None
        self._on_hang_up: Callable[[], object] | None = None
        self._is_chunked = False
        self._left: int | None = None
        self._head = b""
        """Goes out with the first part of the body, which saves a system call."""

    async def run(self, application: Any) -> None:  # noqa: ANN401 - any ASGI application
        scope, self.scope = self.scope, {}
        try:
            await application(scope, self.receive, self.send)
        except Exception:
            log.exception("application_failed")
        finally:
            if not (self.is_answered or self.is_lost):
                self._connection.broke_off(self)

    def watch(self, on_hang_up: Callable[[], object]) -> Callable[[], None]:
        """Call it when the client leaves, or at once if it has; returns how to stop."""
        if self.has_left:
            on_hang_up()
            return lambda: None
        self._on_hang_up = on_hang_up

        def stop() -> None:
            if self._on_hang_up is on_hang_up:
                self._on_hang_up = None

        return stop

    # What the connection reports.

    def add(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body
        if len(self._body) > PAUSE_AT:
            self._connection.pause(self)
        self._wake()

    def end(self) -> None:
        self.is_whole = True
        self._wake()

    def leave(self) -> None:
        self.has_left = True
        self.keep_alive = False
        on_hang_up, self._on_hang_up = self._on_hang_up, None
        self._wake()
        if on_hang_up is not None:
            on_hang_up()

    def lose(self) -> None:
        """Nobody is there to read an answer."""
        self.is_lost = True
        self.leave()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ASGI's two ends.

    async def receive(self) -> Message:
        """The next part of the body, then nothing until the client leaves or is answered."""
        if self._expects_continue:
            self._expects_continue = False
            if not (self._body or self.is_whole or self.is_started or self.has_left):
                self._connection.transport.write(CONTINUE)
        while not (self.has_left or self.is_answered or self._has_news()):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        if self.is_answered or not self._has_news():
            return {"type": "http.disconnect"}
        body, self._body = self._body, b""
        self._has_ended = self.is_whole
        self._connection.resume()
        return {"type": "http.request", "body": body, "more_body": not self.is_whole}

    def _has_news(self) -> bool:
        return bool(self._body) or (self.is_whole and not self._has_ended)

    async def send(self, message: Message) -> None:
        """Raises RuntimeError for a wrong message, ValueError for a wrong Content-Length."""
        if self._connection.is_full:
            await self._connection.writable()
        if self.is_lost:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.is_started:
            self._start(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self.is_started and not self.is_answered:
            is_last = not message.get("more_body", False)
            self._write(message.get("body", b""), is_last=is_last)
            if self._connection.is_full:
                # The sender learns how fast the client is, and makes nothing before its time.
                await self._connection.writable()
            if is_last and not self.is_lost:
                self._finish()
        else:
            raise RuntimeError(f"{kind} is not due")

    def _start(self, status: int, own: Headers) -> None:
        headers = [*self._connection.default_headers(), *own]
        # What is still to come of the body would be taken for the next request.
        self.keep_alive = self.keep_alive and self.is_whole
        for name, value in headers:
            key = name.lower()
            if key == b"content-length":
                self._left = int(value)
            elif key == b"connection" and b"close" in value.lower():
                self.keep_alive = False
        if self._is_head or status in BODILESS:
            self._left = 0
        elif self._left is None and self._is_http_1_1:
            self._is_chunked = True
            headers.append((b"transfer-encoding", b"chunked"))
        elif self._left is None:
            self.keep_alive = False  # the end of the connection is the end of the body
        head = answer_head(status, headers, is_last=not self.keep_alive)
        self.is_started = True
        self._head = head
        # A body that is there comes in this very turn of the loop; no other is waited for.
        asyncio.get_running_loop().call_soon(self._write_out, b"")

    def _write(self, body: bytes, *, is_last: bool) -> None:
        if self._is_head or (self._left == 0 and not body):
            body = b""
        elif self._left is not None:
            self._left -= len(body)
            if self._left < 0:
                raise ValueError("the answer is longer than its Content-Length")
        elif self._is_chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body)) if body else b""
            body += b"0\r\n\r\n" if is_last else b""
        self._write_out(body)

    def _write_out(self, body: bytes) -> None:
        head, self._head = self._head, b""
        if len(body) <= TOGETHER_MAX:
            body = head + body
        elif head:
            self._connection.transport.write(head)
        if body:
            self._connection.transport.write(body)

    def _finish(self) -> None:
        if self._left:
            raise ValueError("the answer is shorter than its Content-Length")
        self.is_answered = True
        self._wake()
        self._connection.answered(self)

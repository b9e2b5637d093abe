"""uvicorn's HTTP/1.1 with bounds that it lacks: how long and slow a request's head may be."""

from __future__ import annotations

import asyncio
from secrets import token_hex

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.protocol.openai import ErrorDetail, ErrorResponse

MAX_HEAD_BYTES = 32 * 1024
HEAD_TIMEOUT_S = 20.0
LINGER_S = 1.0
"""How long what a refused client still sends is read and thrown away."""


class HeadTooLarge(httptools.HttpParserError):
    """The request line and headers together are over the limit."""


class HttpProtocol(HttpToolsProtocol):
    """One connection. What cannot be parsed is answered in OpenAI's form too, and ends it."""

    _refused = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        # An unfinished header is not reported until its end, so its bytes are counted here.
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, "The request's headers are too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words
        """Uvicorn's answer to what its parser rejects; a head that is too large ends here too."""
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "The request's headers are too large.")
        else:
            self._refuse(400, "The request is not valid HTTP/1.1.")

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

"""The outermost layer: a request id, the processing time and the log line of every answer."""

from __future__ import annotations

from secrets import token_hex
from time import perf_counter

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from gateway.exchange import open_exchange


class Envelope:
    """Wraps the whole application, so that no answer, the framework's own included, lacks its id.

    The id is always the gateway's own: one taken from a client could collide with another tenant's,
    or carry characters that do not belong in a log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, adding headers to its answer."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        request_id = f"req_{token_hex(16)}"
        exchange = open_exchange(scope, request_id)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                elapsed_ms = round((perf_counter() - started) * 1000)
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), text.encode()) for name, text in exchange.headers.items()),
                    (b"x-request-id", request_id.encode()),
                    (b"openai-processing-ms", str(elapsed_ms).encode()),
                    (b"openai-version", b"2020-10-01"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self._app(scope, receive, send_with_headers)
        exchange.log.info(
            "answered",
            path=scope["path"][:200],
            status=status,
            ms=round((perf_counter() - started) * 1000, 1),
        )

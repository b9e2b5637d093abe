"""One HTTP request and its answer, as far as every layer may add to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import structlog
from structlog.typing import FilteringBoundLogger

UNKNOWN = "other"
STATE_KEY = "gateway.exchange"


class Exchange:
    """The request's id, its logger, and headers that its answer will carry, failure or not."""

    __slots__ = (
        "after_sent",
        "headers",
        "log",
        "model",
        "outcome",
        "request_id",
        "tenant",
        "waited_s",
    )

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.log: FilteringBoundLogger = structlog.get_logger().bind(request_id=request_id)
        self.headers: dict[str, str] = {}
        self.after_sent: Callable[[], Awaitable[None]] | None = None
        """Called once the client has been sent the whole of a successful answer."""
        self.tenant = self.model = UNKNOWN
        self.outcome = "ok"
        """`ok`, or the label of the error."""
        self.waited_s = 0.0
        """How much of its time others took: slots, the vendor, downloads."""


def open_exchange(scope: Any, request_id: str) -> Exchange:  # noqa: ANN401 - any ASGI scope
    """Start an exchange and keep it in the scope."""
    exchange = Exchange(request_id)
    scope.setdefault("state", {})[STATE_KEY] = exchange
    return exchange


def exchange_of(scope: Any) -> Exchange:  # noqa: ANN401 - any ASGI scope
    """The exchange that a request belongs to."""
    return cast("Exchange", scope["state"][STATE_KEY])

"""One HTTP request and its answer, as far as every layer may add to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Protocol, cast

import structlog
from structlog.typing import FilteringBoundLogger

from gateway.observability.tracing import RequestSpan

UNKNOWN = "other"
STATE_KEY = "gateway.observability.context"


class Histogram(Protocol):
    """Takes seconds."""

    def observe(self, amount: float) -> None: ...


class Exchange:
    """The request's id, and what is to be said of it."""

    __slots__ = (
        "after_sent",
        "headers",
        "model",
        "notes",
        "outcome",
        "request_id",
        "span",
        "tenant",
        "timings",
        "upstream_ids",
        "waited_s",
    )

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.headers: Callable[[], Mapping[str, str]] = dict
        """Those that its answer carries, failure or not; made when it is answered."""
        self.after_sent: Callable[[], Awaitable[None]] | None = None
        """Called once the client has been sent the whole of a successful answer."""
        self.tenant = self.model = UNKNOWN
        self.outcome = "ok"
        """`ok`, or the label of the error."""
        self.waited_s = 0.0
        """How much of its time others took: slots, the vendor, downloads, the client."""
        self.timings: dict[str, float] = {}
        """Seconds by phase; the longest, where a request passes one several times."""
        self.upstream_ids: tuple[str, ...] = ()
        """The vendor's ids of this request's calls."""
        self.notes: dict[str, object] = {}
        """What else its log lines say."""
        self.span: RequestSpan | None = None
        """Where traces are on."""

    @property
    def log(self) -> FilteringBoundLogger:
        """Bound to the request's facts; made anew, as one that is held while it waits is 1 KiB."""
        log: FilteringBoundLogger = structlog.get_logger()
        return log.bind(request_id=self.request_id, **self.notes)

    def note(self, **facts: object) -> None:
        """Have the log lines from here on say this, too."""
        self.notes |= facts

    @contextmanager
    def phase(self, name: str, metric: Histogram | None = None) -> Iterator[None]:
        """Time a part of the request: for its log line, its span and perhaps a metric."""
        started = perf_counter()
        try:
            yield
        finally:
            seconds = perf_counter() - started
            if metric is not None:
                metric.observe(seconds)
            self.spent(name, seconds)

    def spent(self, phase: str, seconds: float) -> None:
        """A phase that took so long has just ended."""
        self.timings[phase] = max(seconds, self.timings.get(phase, 0.0))
        if self.span is not None:
            self.span.passed(phase, seconds)

    def facts(self) -> dict[str, object]:
        """What the request's log line says of its work."""
        facts: dict[str, object] = {f"{name}_ms": ms(s) for name, s in self.timings.items()}
        if self.upstream_ids:
            facts["upstream_request_ids"] = self.upstream_ids
        return facts


def ms(seconds: float) -> float:
    """For people to read."""
    return round(seconds * 1000, 1)


def open_exchange(scope: Any, request_id: str) -> Exchange:  # noqa: ANN401 - any ASGI scope
    """Start an exchange and keep it in the scope."""
    exchange = Exchange(request_id)
    scope[STATE_KEY] = exchange
    return exchange


def exchange_of(scope: Any) -> Exchange:  # noqa: ANN401 - any ASGI scope
    """The exchange that a request belongs to."""
    return cast("Exchange", scope[STATE_KEY])

"""One HTTP request and its answer, as far as every layer may add to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from time import perf_counter
from typing import Any, Protocol, cast

import structlog
from structlog.typing import FilteringBoundLogger

from gateway.observability.tracing import RequestSpan

UNKNOWN = "other"
STATE_KEY = "gateway.observability.context"


class ClientOutcome(StrEnum):
    DELIVERED = "delivered"
    """All of its answer was sent."""
    GONE = "gone"
    """It hung up, or ran out of time, without the images."""
    ANSWERED = "answered"
    """It was sent an error."""


class Histogram(Protocol):
    def observe(self, amount: float) -> None: ...


def nothing(*_: object) -> None:
    """Do nothing."""


class RequestContext:
    """The request's id, and what log, metrics and answer say of it."""

    __slots__ = (
        "_waiting_since",
        "after_answer",
        "answer_early",
        "answer_headers",
        "external_wait_s",
        "is_client_gone",
        "is_image_request",
        "limit_headers",
        "log_fields",
        "model",
        "outcome",
        "request_id",
        "span",
        "tenant",
        "timings",
        "upstream_ids",
    )

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.limit_headers: Callable[[], Mapping[str, str]] | None = None
        """Make those that say where the tenant's limits stand, of a failure, too."""
        self.answer_headers: dict[str, str] = {}
        """Headers of its answer, whether that is a failure or not."""
        self.after_answer: Callable[[ClientOutcome], Awaitable[None]] | None = None
        """Called once when nothing more will be sent."""
        self.answer_early: Callable[[Any], object] = nothing
        """Sends the client an error while the work for it goes on."""
        self.is_client_gone = False
        """Whether it has hung up, or was answered while the work goes on."""
        self.is_image_request = False
        self.tenant = self.model = UNKNOWN
        self.outcome = "ok"
        """`ok`, or the label of the error."""
        self._waiting_since: float | None = None
        self.external_wait_s = 0.0
        """Time that others took: slots, the vendor, downloads, the client."""
        self.timings: dict[str, float] = {}
        """Seconds by phase; the longest of a repeated one."""
        self.upstream_ids: tuple[str, ...] = ()
        """The vendor's ids of this request's calls."""
        self.log_fields: dict[str, object] = {}
        self.span: RequestSpan | None = None
        """With traces only."""

    @property
    def log(self) -> FilteringBoundLogger:
        """Made for each use: a kept one takes 1 KiB. `structlog.get_logger().bind` is slower."""
        config = structlog.get_config()
        facts = {"request_id": self.request_id, **self.log_fields}
        log = config["wrapper_class"](config["logger_factory"](), config["processors"], facts)
        return cast("FilteringBoundLogger", log)

    def bind(self, **fields: object) -> None:
        """Add fields to all later log lines."""
        self.log_fields |= fields

    @contextmanager
    def phase(self, name: str, metric: Histogram | None = None) -> Iterator[None]:
        """Time a phase for the log line, the span and perhaps a metric."""
        started = perf_counter()
        try:
            yield
        finally:
            seconds = perf_counter() - started
            if metric is not None:
                metric.observe(seconds)
            self.record_timing(name, seconds)

    def waits(self) -> None:
        """For others, from now on: slots, the vendor, another request."""
        self._waiting_since = perf_counter()

    def goes_on(self) -> None:
        self.external_wait_s = self.external_s()
        self._waiting_since = None

    def external_s(self) -> float:
        """Time that others took until now."""
        since = self._waiting_since
        return self.external_wait_s + (0.0 if since is None else perf_counter() - since)

    def others_took(self, seconds: float) -> None:
        """Does not count while it waits for them, as that is counted already."""
        if self._waiting_since is None:
            self.external_wait_s += seconds

    def record_timing(self, phase: str, seconds: float) -> None:
        """A phase of this length has just ended."""
        self.timings[phase] = max(seconds, self.timings.get(phase, 0.0))
        if self.span is not None:
            self.span.passed(phase, seconds)

    def timing_fields(self) -> dict[str, object]:
        """What the request's log line says of its work."""
        fields: dict[str, object] = {f"{name}_ms": ms(s) for name, s in self.timings.items()}
        if self.upstream_ids:
            fields["upstream_request_ids"] = self.upstream_ids
        return fields


def ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def open_context(scope: Any, request_id: str) -> RequestContext:  # noqa: ANN401 - any ASGI scope
    """Start a context and keep it in the scope."""
    context = RequestContext(request_id)
    scope[STATE_KEY] = context
    return context


def context_of(scope: Any) -> RequestContext:  # noqa: ANN401 - any ASGI scope
    return cast("RequestContext", scope[STATE_KEY])

"""One HTTP request and its answer, as far as every layer may add to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Literal, Protocol, cast

import structlog
from structlog.typing import FilteringBoundLogger

from gateway.observability.tracing import RequestSpan

ClientFate = Literal["delivered", "gone", "answered"]
"""Sent all of a good answer; without it; told an error."""
UNKNOWN = "other"
STATE_KEY = "gateway.observability.context"


class Histogram(Protocol):
    """Takes seconds."""

    def observe(self, amount: float) -> None: ...


def nothing(*_: object) -> None:
    """Do nothing."""


class RequestContext:
    """The request's id, and what is to be said of it."""

    __slots__ = (
        "_waiting_since",
        "after_answer",
        "answer_early",
        "answer_headers",
        "external_wait_s",
        "headers",
        "is_client_gone",
        "is_image_request",
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
        self.headers: Callable[[], Mapping[str, str]] = dict
        """Those that its answer carries, failure or not; made when it is answered."""
        self.answer_headers: dict[str, str] = {}
        """Further ones."""
        self.after_answer: Callable[[ClientFate], Awaitable[None]] | None = None
        """Called once when nothing more will be sent."""
        self.answer_early: Callable[[Any], object] = nothing
        """Sends the client an error while the work for it goes on."""
        self.is_client_gone = False
        """Whether it has hung up, or was answered while the work goes on."""
        self.is_image_request = False
        """Whether it came to a route of images."""
        self.tenant = self.model = UNKNOWN
        self.outcome = "ok"
        """`ok`, or the label of the error."""
        self._waiting_since: float | None = None
        self.external_wait_s = 0.0
        """How much of its time others took: slots, the vendor, downloads, the client."""
        self.timings: dict[str, float] = {}
        """Seconds by phase; the longest, where a request passes one several times."""
        self.upstream_ids: tuple[str, ...] = ()
        """The vendor's ids of this request's calls."""
        self.log_fields: dict[str, object] = {}
        """What else its log lines say."""
        self.span: RequestSpan | None = None
        """Where traces are on."""

    @property
    def log(self) -> FilteringBoundLogger:
        """Bound to the request's facts; made anew, as one that is held while it waits is 1 KiB.

        By its class, since `structlog.get_logger().bind` takes four times as long.
        """
        config = structlog.get_config()
        facts = {"request_id": self.request_id, **self.log_fields}
        log = config["wrapper_class"](config["logger_factory"](), config["processors"], facts)
        return cast("FilteringBoundLogger", log)

    def bind(self, **timing_fields: object) -> None:
        """Have the log lines from here on say this, too."""
        self.log_fields |= timing_fields

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
            self.record_timing(name, seconds)

    def waits(self) -> None:
        """For others, from now on: slots, the vendor, another request."""
        self._waiting_since = perf_counter()

    def goes_on(self) -> None:
        """It waits no longer."""
        self.external_wait_s = self.external_s()
        self._waiting_since = None

    def external_s(self) -> float:
        """How much of the request's time others took until now."""
        since = self._waiting_since
        return self.external_wait_s + (0.0 if since is None else perf_counter() - since)

    def others_took(self, seconds: float) -> None:
        """What they take while it waits for them is counted already."""
        if self._waiting_since is None:
            self.external_wait_s += seconds

    @property
    def has_limits(self) -> bool:
        """Whether its answer says where the tenant's limits stand."""
        return self.headers is not dict

    def record_timing(self, phase: str, seconds: float) -> None:
        """A phase that took so long has just ended."""
        self.timings[phase] = max(seconds, self.timings.get(phase, 0.0))
        if self.span is not None:
            self.span.passed(phase, seconds)

    def timing_fields(self) -> dict[str, object]:
        """What the request's log line says of its work."""
        timing_fields: dict[str, object] = {f"{name}_ms": ms(s) for name, s in self.timings.items()}
        if self.upstream_ids:
            timing_fields["upstream_request_ids"] = self.upstream_ids
        return timing_fields


def ms(seconds: float) -> float:
    """For people to read."""
    return round(seconds * 1000, 1)


def open_context(scope: Any, request_id: str) -> RequestContext:  # noqa: ANN401 - any ASGI scope
    """Start a context and keep it in the scope."""
    context = RequestContext(request_id)
    scope[STATE_KEY] = context
    return context


def context_of(scope: Any) -> RequestContext:  # noqa: ANN401 - any ASGI scope
    """The context that a request belongs to."""
    return cast("RequestContext", scope[STATE_KEY])

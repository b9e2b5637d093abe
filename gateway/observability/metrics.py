"""Every metric, declared once with its meaning; docs/metrics.md shows this table.

Labels are bounded: tenants, accounts, models (others are `other`), error classes and documented
vendor codes. No prompt, key, user or request id is a label.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from typing import Any

from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gateway.observability.multiprocess import FOLDER, render_all

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1, 2.5, 5, 10, 20, 40, 80, 160, 300),
)
STORE_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
AGES = (1, 10, 60, 300, 900, 3600, 10800, 21600, 43200, 86400)


def forget(gauge: Gauge, *labels: str) -> None:
    """Stop showing it; it is 0 where workers share their values, whose files keep it."""
    if FOLDER in os.environ:
        gauge.labels(*labels).set(0)
    else:
        gauge.remove(*labels)


class Declared(Struct, frozen=True):
    """One metric, for the documentation."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


class BatchedHistogram:
    """A histogram that holds observations until `flush`: each would lock and write a file."""

    def __init__(self, histogram: Histogram, bounds: tuple[float, ...]) -> None:
        self.histogram = histogram
        self._bounds = bounds
        self._seen: defaultdict[str, list[float]] = defaultdict(lambda: [0] * (len(bounds) + 2))
        """By label: how many in each bucket, those beyond the last, and the sum of all."""

    def observe(self, label: str, amount: float) -> None:
        """One observation."""
        seen = self._seen[label]
        seen[bisect_left(self._bounds, amount)] += 1
        seen[-1] += amount

    def flush(self) -> None:
        """Add what was observed since the last flush."""
        for label, (*counts, total) in self._seen.items():
            child = self.histogram.labels(label)
            # The library has no way to add several at once.
            for bucket, count in zip(child._buckets, counts, strict=True):  # noqa: SLF001
                if count:
                    bucket.inc(count)
            child._sum.inc(total)  # noqa: SLF001
        self._seen.clear()


class Metrics:
    """The metrics of one worker, in a registry of its own."""

    def __init__(self, version: str = "") -> None:
        self.registry = CollectorRegistry()
        self.declared: list[Declared] = []
        self._declare_requests()
        self._declare_upstream()
        self._declare_store()
        info = self._gauge("build_info", "1, beside the version that runs.", "version", mode="max")
        info.labels(version).set(1)
        self.heartbeat = self._gauge(
            "heartbeat_timestamp_seconds",
            "Last heartbeat of the slowest worker, in Unix time.",
            mode="min",
        )

        self.configuration_faults = self._gauge(
            "configuration_faults",
            "Faults of the changed configuration file, without which it goes on; 0 if it follows.",
            mode="max",
        )

    def _declare_requests(self) -> None:
        self.requests = self._counter(
            "requests",
            "Answers of the image endpoint, by outcome: ok, or the class of the error.",
            "tenant", "model", "outcome",
        )  # fmt: skip
        self.request_seconds = self._histogram(
            "request_seconds", "From the request's first byte to the answer's last.", "model"
        )
        self.overhead_seconds = self._histogram(
            "overhead_seconds",
            "Time spent in the gateway itself, of successes: without queueing, upstream, downloads,"
            " conversions and slow clients.",
            "model",
        )
        self.in_flight = self._gauge(
            "requests_in_flight", "Image requests that have not been answered yet."
        )
        self.admitted = self._counter(
            "limiter_admissions",
            "Requests that no limit refused, by the `store` or by the `worker` alone.",
            "tenant", "by",
        )  # fmt: skip
        self.limited = self._counter(
            "limiter_refusals", "Requests refused by a tenant's limit.", "tenant", "limit"
        )
        self.budget_used = self._gauge(
            "budget_used_ratio",
            "Part of a budget used or reserved, as of the tenant's last request; 0 once it renews"
            " or is changed.",
            "tenant", "limit", mode="mostrecent",
        )  # fmt: skip
        self.log_lines_lost = self._counter(
            "log_lines_lost", "Lines of workers' logs that could not be written."
        )
        self._declare_payments()

    def _declare_payments(self) -> None:
        self.images = self._counter(
            "images", "Images generated and billed, by size tier in megapixels.",
            "tenant", "model", "tier",
        )  # fmt: skip
        self.spend = self._counter(
            "spend", "What those images cost, in the catalogue's currency.", "tenant", "model"
        )
        self.forced = self._counter(
            "cache_forced_payments",
            "Generations that were paid for because of a request's Cache-Control.",
            "tenant", "directive",
        )  # fmt: skip
        self.doubtful = self._counter(
            "doubtful_images",
            "Images of calls with unknown outcome: they may have been billed.",
            "tenant", "model",
        )  # fmt: skip
        self.usage_lost = self._counter(
            "usage_records_lost", "Lines that could not be appended to the usage record."
        )
        self.cache_results = self._counter(
            "cache_results", "Results of the look-up: hit, miss, bypass, joined, replayed.",
            "tenant", "result",
        )  # fmt: skip
        self.cache_age = self._histogram(
            "cache_age_at_hit_seconds", "Age of a result when it was found.", buckets=AGES
        )
        self.cache_kept_bytes = self._counter(
            "image_cache_kept_bytes", "Bytes of images put into the image cache."
        )
        self.cache_served_bytes = self._counter(
            "image_cache_served_bytes", "Bytes of images taken from it for answers."
        )
        self.cache_missed = self._counter(
            "image_cache_not_kept", "Images that were sent and could not be put into it.", "cause"
        )

    def _declare_upstream(self) -> None:
        self.upstream_calls = self._counter(
            "upstream_calls", "Calls to the vendor, by its code; ok for a success.",
            "account", "model", "code",
        )  # fmt: skip
        self.upstream_seconds = self._histogram(
            "upstream_seconds", "From sending a call to its whole answer.", "account", "model"
        )
        self.queue_seconds = self._histogram(
            "queue_seconds", "How long a call waited for its slot.", "model"
        )
        self.queue_length = self._gauge("queue_length", "Calls that wait for a slot.", "model")
        self.retries = self._counter(
            "upstream_retries", "Calls sent again, by why.", "account", "model", "remedy"
        )
        self.surplus_images = self._counter(
            "upstream_surplus_images",
            "Images that an answer named beyond what its call asked for; they are not booked.",
            "account", "model",
        )  # fmt: skip
        self.breaker = self._gauge(
            "breaker_open", "1 from when an account failed too often until it answers again.",
            "account", "model", mode="max",
        )  # fmt: skip
        self.download_seconds = self._histogram(
            "download_seconds", "How long a b64_json answer waited for the hosts of its images."
        )
        self.conversion_seconds = self._histogram(
            "conversion_seconds",
            "How long an image waited for becoming another format, and became it.",
            "format",
        )
        self.download_bytes = self._counter(
            "download_bytes", "Bytes of images fetched for answers."
        )

    def _declare_store(self) -> None:
        store_seconds = self._histogram(
            "store_seconds", "One call of Redis, as the worker saw it; written once a second.",
            "operation", buckets=STORE_SECONDS,
        )  # fmt: skip
        self.store_seconds = BatchedHistogram(store_seconds, STORE_SECONDS)
        self.degraded = self._gauge(
            "store_degraded", "1 while a worker decides without the store.", "function", mode="max"
        )
        self.backlog = self._gauge(
            "settlements_owed", "Settlements that wait for the store to come back."
        )

    def render(self) -> bytes:
        """What a scrape reads, over all workers."""
        if FOLDER not in os.environ:
            return generate_latest(self.registry)
        return render_all()

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        full = self._declare(f"{name}_total", "counter", labels, meaning)
        return Counter(full, meaning, labels, registry=self.registry)

    def _histogram(
        self, name: str, meaning: str, *labels: str, buckets: tuple[float, ...] = SECONDS
    ) -> Histogram:
        full = self._declare(name, "histogram", labels, meaning)
        return Histogram(full, meaning, labels, registry=self.registry, buckets=buckets)

    def _gauge(self, name: str, meaning: str, *labels: str, mode: str = "sum") -> Gauge:
        """`mode`: how the values of several workers combine; a dead worker's never counts."""
        full = self._declare(name, "gauge", labels, meaning)
        live: Any = f"live{mode}"
        return Gauge(full, meaning, labels, registry=self.registry, multiprocess_mode=live)

    def _declare(self, name: str, kind: str, labels: tuple[str, ...], meaning: str) -> str:
        full = f"gateway_{name}"
        self.declared.append(Declared(full, kind, labels, meaning))
        return full

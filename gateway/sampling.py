"""What is read off the parts once a second, so that requests do not pay for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from gateway.admission import Admission
from gateway.catalogue import Catalogue
from gateway.ledger import Ledger
from gateway.limits import Limiter
from gateway.metrics import Metrics
from gateway.pacing import Pacer
from gateway.upstream.accounts import Accounts

EVERY_S = 1.0


class Sampler:
    """Reads the parts of one worker."""

    def __init__(  # noqa: PLR0913 - it reads every part
        self,
        metrics: Metrics,
        catalogue: Catalogue,
        *,
        accounts: Accounts,
        pacer: Pacer,
        limiter: Limiter,
        ledger: Ledger,
        admission: Admission,
        now: Callable[[], float],
    ) -> None:
        self._metrics = metrics
        self._catalogue = catalogue
        self._accounts = accounts
        self._pacer = pacer
        self._limiter = limiter
        self._ledger = ledger
        self._admission = admission
        self._now = now
        self._renewals: dict[tuple[str, str], float] = {}
        self._task: asyncio.Task[None] | None = None

    def use(self, catalogue: Catalogue) -> None:
        """Follow a changed configuration."""
        self._catalogue = catalogue

    def start(self) -> None:
        """Sample in the background, from within a running event loop."""
        self._task = asyncio.create_task(self._run(), name="sampling")

    async def aclose(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            self.sample()
            await asyncio.sleep(EVERY_S)

    def sample(self) -> None:
        """Set every gauge, and show what was tallied."""
        metrics = self._metrics
        metrics.store_seconds.flush()
        for family, waiting in self._waiting().items():
            metrics.queue_length.labels(family).set(waiting)
        for family, account, is_open in self._breakers():
            metrics.breaker.labels(account, family).set(is_open)
        degraded: dict[str, Callable[[], bool]] = {
            "limits": lambda: self._limiter.degraded,
            "pacing": lambda: self._pacer.degraded,
            "cache": lambda: self._ledger.degraded,
        }
        for function, is_degraded in degraded.items():
            metrics.degraded.labels(function).set(is_degraded())
        metrics.owed.set(self._limiter.owed + self._ledger.owed)
        self._sample_budgets()
        metrics.heartbeat.set(time.time())

    def _sample_budgets(self) -> None:
        """Of tenants that asked since the last time; and 0 once a day or a month is over."""
        now, used = self._now(), self._metrics.budget_used
        for (tenant, limit), at in list(self._renewals.items()):
            if at <= now:
                del self._renewals[tenant, limit]
                used.labels(tenant, limit).set(0)
        for tenant, verdict in self._admission.verdicts().items():
            budgets = {"images_per_day": verdict.day, "spend_per_month": verdict.month}
            for limit, level in budgets.items():
                if level is not None:
                    used.labels(tenant, limit).set(1 - level.remaining / level.limit)
                    self._renewals[tenant, limit] = now + level.reset_ms / 1000

    def _waiting(self) -> dict[str, int]:
        """Calls that wait, by the catalogue's entry; a model that waited once stays listed."""
        waiting: dict[str, int] = {}
        for model, calls in self._pacer.waiting().items():
            choice = self._catalogue.find(model)
            family = choice.family if choice else model
            waiting[family] = waiting.get(family, 0) + calls
        return waiting

    def _breakers(self) -> Iterable[tuple[str, str, bool]]:
        for model, routes in self._accounts.known():
            choice = self._catalogue.find(model)
            for account, route in routes.items():
                yield choice.family if choice else model, account, route.breaker.state == "open"

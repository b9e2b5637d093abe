"""What is read off the parts once a second, so that requests do not pay for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

from gateway.config import Tenant
from gateway.domain.catalogue import Catalogue
from gateway.domain.prices import Money
from gateway.observability.log_writer import log_writer
from gateway.observability.metrics import Metrics, forget
from gateway.pacing import Pacer
from gateway.results import Ledger
from gateway.tenants.admission import Admission
from gateway.upstream.accounts import Accounts

EVERY_S = 1.0


class Sampler:
    def __init__(  # noqa: PLR0913 - it reads every part
        self,
        metrics: Metrics,
        catalogue: Catalogue,
        tenants: Iterable[Tenant],
        *,
        accounts: Accounts,
        pacer: Pacer,
        ledger: Ledger,
        admission: Admission,
        degraded: Callable[[], Mapping[str, bool]],
        now: Callable[[], float],
    ) -> None:
        self._metrics = metrics
        self._catalogue = catalogue
        self._budgets = budgets_of(tenants)
        self._accounts = accounts
        self._pacer = pacer
        self._ledger = ledger
        self._admission = admission
        self._degraded = degraded
        self._now = now
        self._renewals: dict[tuple[str, str], float] = {}
        self._lost_lines = 0
        self._called: set[str] = set()
        """Models that had a route at any time, since a reload empties what is known of them."""
        self._breakers_shown: set[tuple[str, str]] = set()
        self._task: asyncio.Task[None] | None = None

    def use(self, catalogue: Catalogue, tenants: Iterable[Tenant]) -> None:
        """Follow a changed configuration, and drop what it no longer has."""
        self._sample_budgets()
        before, self._budgets = self._budgets, budgets_of(tenants)
        for key in list(self._renewals):
            # What is used of a budget that was changed is known with the tenant's next request.
            if self._budgets.get(key) != before.get(key):
                del self._renewals[key]
                forget(self._metrics.budget_used, *key)
        self._catalogue = catalogue

    def start(self) -> None:
        """Sample in the background; needs a running event loop."""
        self._task = asyncio.create_task(self._run(), name="sampling")

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            self.sample()
            await asyncio.sleep(EVERY_S)

    def sample(self) -> None:
        """Set every gauge, and flush the tallies."""
        metrics = self._metrics
        metrics.store_seconds.flush()
        lost, self._lost_lines = log_writer.lost - self._lost_lines, log_writer.lost
        metrics.log_lines_lost.inc(lost)
        for family, waiting in self._waiting().items():
            metrics.queue_length.labels(family).set(waiting)
        self._sample_breakers()
        for function, is_degraded in self._degraded().items():
            metrics.degraded.labels(function).set(is_degraded)
        metrics.backlog.set(self._ledger.backlog)
        self._sample_budgets()
        metrics.heartbeat.set(time.time())

    def _sample_budgets(self) -> None:
        """Budgets of tenants that asked since the last time; 0 once a day or month is over."""
        now, used = self._now(), self._metrics.budget_used
        for (tenant, limit), at in list(self._renewals.items()):
            if at <= now:
                del self._renewals[tenant, limit]
                used.labels(tenant, limit).set(0)
        for tenant, verdict in self._admission.verdicts().items():
            budgets = {"images_per_day": verdict.day, "spend_per_month": verdict.month}
            for limit, level in budgets.items():
                if level is not None and (tenant, limit) in self._budgets:
                    used.labels(tenant, limit).set(1 - level.remaining / level.limit)
                    self._renewals[tenant, limit] = now + level.reset_ms / 1000

    def _waiting(self) -> dict[str, int]:
        """By the catalogue's entry; a model that waited once stays listed."""
        waiting: dict[str, int] = {}
        for model, calls in self._pacer.waiting().items():
            choice = self._catalogue.find(model)
            family = choice.family if choice else model
            waiting[family] = waiting.get(family, 0) + calls
        return waiting

    def _sample_breakers(self) -> None:
        """Breakers of the present accounts, for the present models that were called."""
        known = {model for model, _ in self._accounts.known()}
        self._called |= known
        is_open: dict[tuple[str, str], bool] = {}
        for model in self._called:
            choice = self._catalogue.find(model)
            if choice is None and model not in known:
                continue
            family = choice.family if choice else model
            for account, route in self._accounts.routes(model).items():
                key = (account, family)
                # One that probes has not recovered: to show it closed would interrupt an alert.
                is_open[key] = is_open.get(key, False) or route.breaker.state != "closed"
        for key in self._breakers_shown - is_open.keys():
            forget(self._metrics.breaker, *key)
        self._breakers_shown = set(is_open)
        for key, value in is_open.items():
            self._metrics.breaker.labels(*key).set(value)


def budgets_of(tenants: Iterable[Tenant]) -> dict[tuple[str, str], int | Money]:
    """By the labels under which their use is shown."""
    return {
        (tenant.name, name): budget
        for tenant in tenants
        for name in ("images_per_day", "spend_per_month")
        if (budget := getattr(tenant.limits, name)) is not None
    }

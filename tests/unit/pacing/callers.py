"""Callers of a pacer in virtual time, the accounts that it paces and the stores that it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from gateway.pacing import NoSlot, Pacer, Slot
from gateway.pacing.pacer import Wait, for_as_long_as_it_takes
from gateway.store.memory import MemoryStore
from gateway.store.pacing import PaceStore
from gateway.upstream.accounts import Accounts
from tests.faulty_store import FaultyStore

MODEL = "qwen-image"
FOREVER = 3600.0
US = 2e-6
"""Times are exact to the store's microsecond, rounded twice."""


class Rates(Accounts):
    """Accounts with a rate each; those in `broken` are of no use."""

    def __init__(self, **rates: float | None) -> None:
        self.rates = rates
        self.broken: set[str] = set()

    def names(self, model: str) -> list[str]:
        return list(self.rates)

    def rate(self, model: str, account: str) -> float | None:
        return self.rates.get(account)

    def fit(self, model: str, names: Sequence[str]) -> list[str]:
        there = [name for name in names if name in self.rates]
        return [name for name in there if name not in self.broken] or there


class Served(NamedTuple):
    """A call that got its slot."""

    at: float
    """Seconds since the first call was made."""
    tenant: str
    account: str


class Callers:
    """Calls that wait for their slots, and when each of them got one."""

    def __init__(self, pacer: Pacer, accounts: tuple[str, ...] = ("intl",)) -> None:
        self.pacer = pacer
        self.accounts = accounts
        self.started = now()
        self.served: list[Served] = []
        self.tasks: list[asyncio.Task[str]] = []
        self._next = asyncio.Event()

    def wait(
        self,
        tenant: str,
        calls: int = 1,
        *,
        within_s: float = FOREVER,
        wait: Wait = for_as_long_as_it_takes,
    ) -> list[asyncio.Task[str]]:
        return self._start(tenant, [1] * calls, within_s, wait)

    def wait_for_all(self, tenant: str, calls: int, *, within_s: float) -> list[asyncio.Task[str]]:
        """One request of many calls."""
        return self._start(tenant, range(calls, 0, -1), within_s, for_as_long_as_it_takes)

    def _start(
        self, tenant: str, needs: Iterable[int], within_s: float, wait: Wait
    ) -> list[asyncio.Task[str]]:
        deadline = now() + within_s
        calls = [self._call(tenant, deadline, need, wait) for need in needs]
        tasks = [asyncio.ensure_future(call) for call in calls]
        self.tasks += tasks
        return tasks

    async def _call(self, tenant: str, deadline: float, need: int, wait: Wait) -> str:
        slot = await self.pacer.slot(
            MODEL, tenant, accounts=self.accounts, deadline=deadline, calls=need, wait=wait
        )
        self.pacer.sent(MODEL, slot)
        self.served.append(Served(now() - self.started, tenant, slot.account))
        self._next.set()
        return slot.account

    async def until_served(self, calls: int) -> list[str]:
        """The tenants of the first so many calls, in order."""
        while len(self.served) < calls:
            self._next.clear()
            await self._next.wait()
        return [one.tenant for one in self.served[:calls]]

    async def stop(self) -> None:
        """Where the loop does not do it, being the real one."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.pacer.aclose()

    def times(self) -> list[float]:
        return [one.at for one in self.served]

    def taken(self) -> list[str]:
        """The accounts, in order."""
        return [one.account for one in self.served]


def now() -> float:
    return asyncio.get_running_loop().time()


def memory_store() -> MemoryStore:
    """By the clock of the loop, which starts at 0."""
    return MemoryStore(asyncio.get_running_loop().time)


def faulty_store(takes_s: float = 0.0) -> FaultyStore:
    return FaultyStore(asyncio.get_running_loop().time, takes_s=takes_s)


def pacer_over(store: PaceStore, rate: float | None = 50.0, **options: Any) -> Pacer:
    options.setdefault("worker", "w1")
    return Pacer(store, Rates(intl=rate), **options)


def interval_s(rate: float) -> float:
    """Between two slots of an account: the rate and 3 % of headroom, in whole microseconds."""
    return round(1e6 / rate * 1.03) / 1e6


def gaps(times: Iterable[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


async def take(pacer: Pacer, *accounts: str) -> tuple[Slot, float]:
    """A slot, and when it came."""
    deadline = now() + FOREVER
    slot = await pacer.slot(MODEL, "acme", accounts=accounts or ["intl"], deadline=deadline)
    return slot, now()


async def refusal(task: asyncio.Task[str]) -> NoSlot:
    with pytest.raises(NoSlot) as refused:
        await task
    return refused.value

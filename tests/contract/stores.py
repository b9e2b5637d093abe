"""Every store, at a time that the test sets: what the contract suites run over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.observability.context import ClientOutcome
from gateway.store import Store
from gateway.store.generations import Entry
from gateway.store.limits import Limits, Reservation, Settlement, TakeRequest, Verdict
from gateway.store.memory import MemoryStore
from gateway.store.redis import RedisStore, Timeouts
from gateway.store.requests import EnterRequest, Leave
from tests.redis_server import RedisServer, available_redis_servers, redis_releases

NOON = datetime(2026, 3, 14, 12, 0, 0, 100_000, UTC).timestamp()
"""Early in a second, not at its edge."""
UNLIMITED = Limits()
PATIENT = Timeouts(connect_s=5.0, command_s=5.0)
"""For tests of decisions, on machines that may be busy."""


class Clock:
    """Simulated Unix time."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def microseconds(self) -> int:
        """For a store on Redis: its scripts take this for the server's time."""
        return round(self.now * 1e6)


KINDS = ["memory", *redis_releases()]
_servers: dict[str, RedisServer] = {}


def server_of(kind: str) -> RedisServer:
    """One server per release, for all tests of this process; closed when it ends."""
    if kind not in _servers:
        _servers[kind] = RedisServer(available_redis_servers()[kind])
    return _servers[kind]


def open_store(kind: str, clock: Clock, **options: Any) -> Store:
    """An empty store of a kind."""
    if kind == "memory":
        return MemoryStore(clock, **options)
    server = server_of(kind)
    server.flush()
    return RedisStore(server.url, timeouts=PATIENT, clock_us=clock.microseconds, **options)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Store]:
    store = open_store(request.param, clock)
    yield store
    await store.aclose()


def ask(
    number: object,
    limits: Limits,
    *,
    images: int = 1,
    cost: int = 0,
    tenant: str = "acme",
    lease_ms: int = 30_000,
) -> EnterRequest:
    """A request that can be given nobody's images, and so is about its tenant's limits alone."""
    take = TakeRequest(tenant, limits, Reservation(f"r{number}", "qwen", images, cost), lease_ms)
    entry = Entry(scope=f"tenant:{tenant}", request=f"r{number}", plan_hash="p", images=images)
    return EnterRequest(entry=entry, take=take, lead_ms=10_000)


async def take(store: Store, wanted: EnterRequest) -> Verdict:
    """What its limits say to a request."""
    return (await store.enter(wanted)).verdict


def used(
    number: object,
    images: int = 1,
    cost: int = 0,
    family: str = "qwen",
    limits: Limits = UNLIMITED,
) -> Settlement:
    return Settlement("acme", f"r{number}", family, images, cost, limits)


async def release(store: Store, settlement: Settlement) -> Verdict:
    """The end of a request of `ask`."""
    scope = f"tenant:{settlement.tenant}"
    return await store.leave(
        Leave(settlement=settlement, outcome=ClientOutcome.DELIVERED, scope=scope)
    )


def remaining(verdict: Verdict) -> list[int | None]:
    """What is left of each limit, in the order of `Limits`."""
    levels = (verdict.requests, verdict.images, verdict.concurrent, verdict.day, verdict.month)
    return [level.remaining if level else None for level in levels]


Opener = Callable[[str, Clock], Store]

"""Random histories of a gateway's workers: who paid, who was answered, and with what.

Three workers serve requests over one store. Leaders fail and die, clients hang up, the store goes
away, swallows its answers, or loses its data, the cache is purged, and time passes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from gateway.domain.errors import UpstreamFailed
from gateway.observability.context import ClientOutcome
from gateway.results import Entry, Idempotency, Lead
from gateway.results.cache_policy import Record
from gateway.store.limits import Limits
from tests.unit.ledgers import (
    LEAD_S,
    PRICE,
    Failed,
    Following,
    Found,
    Gateway,
    Leading,
    Refusal,
    now,
)
from tests.unit.ledgers import Request as InLedger
from tests.virtual_time import run

pytestmark = pytest.mark.slow

WORKERS = 3
CALLS = 2
URL_LIFE_S = 900.0
CLIENT_TIMEOUT_S = 120.0
LIMITS = Limits(
    requests_per_minute=1000,
    images_per_day=1_000_000,
    spend_per_month=10**12,
    concurrent_requests=6,
)
REFUSING = Limits(requests_per_minute=1, concurrent_requests=1, images_per_day=3)


class Request(Struct, frozen=True):
    """One client's request: how it is found, how its generation goes, when it hangs up."""

    worker: int
    scope: str
    body: str
    mode: str
    call_s: float
    fails_at: int | None
    hangs_up_s: float | None
    is_retry: bool
    fresh: bool
    max_age_s: int | None
    is_limited: bool = False
    """Its tenant has hardly any limits left."""


class Fault(Struct, frozen=True):
    """Something that befalls the gateway."""

    kind: str
    number: int
    lasts_s: float


REQUESTS = st.builds(
    Request,
    worker=st.integers(0, WORKERS - 1),
    scope=st.sampled_from(["tenant:acme"] * 4 + ["tenant:other"]),
    body=st.sampled_from(["fox"] * 4 + ["owl"]),
    mode=st.sampled_from(["cached"] * 4 + ["retried", "keyed"]),
    call_s=st.sampled_from([0.01, 2.0, 30.0, 30.0]),
    fails_at=st.sampled_from([None, None, None, 0, 1]),
    hangs_up_s=st.sampled_from([None, None, None, 0.0005, 0.0025, 1.0, 40.0]),
    is_retry=st.booleans(),
    fresh=st.sampled_from([False, False, False, True]),
    max_age_s=st.sampled_from([None, None, 0, 60]),
    is_limited=st.sampled_from([False, False, False, True]),
)
FAULTS = st.builds(
    Fault,
    kind=st.sampled_from(["kill", "away", "silent", "lose", "purge"]),
    number=st.integers(0, WORKERS - 2),
    lasts_s=st.sampled_from([0.05, 1.0, 30.0]),
)
PAUSES = st.sampled_from([0.0, 0.0005, 0.4, 3.0, 12.0, 12.0, 200.0, 700.0])
FAULTLESS = st.lists(st.tuples(PAUSES, REQUESTS), min_size=2, max_size=14)
HISTORIES = st.lists(st.tuples(PAUSES, REQUESTS | FAULTS), min_size=3, max_size=18)


class World:
    """What happened, and what must be true of it."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.dead: set[int] = set()
        self.troubled_until = -1.0
        """Until when requests may be paid twice."""
        self.leading: Counter[tuple[str, str]] = Counter()
        """By scope and body: shared generations under way in workers that live."""
        self.paid: Counter[tuple[str, str]] = Counter()
        self.paid_by: Counter[str] = Counter()
        """Images, by tenant."""
        self.is_bookkeeping_whole = True
        """Whether no worker was killed between a call and its booking, and no data were lost."""
        self.answers: list[str] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.running: set[asyncio.Task[Any]] = set()
        """Generations of each worker."""

    @property
    def time(self) -> float:
        return asyncio.get_running_loop().time()

    def begin(self, number: int, request: Request) -> None:
        if request.worker not in self.dead:
            task = asyncio.create_task(self.client(number, request))
            task.set_name(str(request.worker))
            self.tasks.append(task)

    async def befall(self, fault: Fault) -> None:
        store = self.gateway.store
        if fault.kind == "kill":
            await self.kill(fault.number)
        elif fault.kind == "lose":
            store.lose_everything()
            self.is_bookkeeping_whole = False
            self.trouble(LEAD_S)
        elif fault.kind == "purge":
            await store.purge("tenant:acme")
        else:
            setattr(store, f"is_{fault.kind}", True)
            loop = asyncio.get_running_loop()
            loop.call_later(fault.lasts_s, setattr, store, f"is_{fault.kind}", False)
            self.trouble(fault.lasts_s + LEAD_S)

    def trouble(self, seconds: float) -> None:
        self.troubled_until = max(self.troubled_until, self.time + seconds)

    async def kill(self, number: int) -> None:
        if number in self.dead:
            return
        self.dead.add(number)
        self.is_bookkeeping_whole = False
        await self.gateway.kill(number)
        for task in [*self.tasks, *self.running]:
            if task.get_name() == str(number):
                task.cancel()

    # -- a client, and the pipeline that serves it

    async def client(self, number: int, request: Request) -> None:
        wanted = entry_of(number, request)
        tenant = request.scope.partition(":")[2]
        inside = InLedger(
            self.gateway.workers[request.worker],
            wanted,
            REFUSING if request.is_limited else LIMITS,
            tenant,
        )
        serving = asyncio.create_task(self.serve(request, inside))
        serving.set_name(str(request.worker))
        self.running.add(serving)
        await asyncio.wait([serving], timeout=request.hangs_up_s)
        is_gone = not serving.done()
        if is_gone and not isinstance(inside.place, Lead | None):
            serving.cancel()  # what leads goes on, as money may have been spent
        await asyncio.wait([serving])
        if request.worker in self.dead:
            return
        answer = "hung up" if is_gone or serving.cancelled() else serving.result()
        assert answer != "hung up" or request.hangs_up_s is not None
        if inside.place is not None and not isinstance(inside.place, Refusal):
            outcomes = {"done": ClientOutcome.DELIVERED, "hung up": ClientOutcome.GONE}
            await inside.leave(outcomes.get(answer, ClientOutcome.ANSWERED))
        self.answers.append(answer)

    async def serve(self, request: Request, inside: InLedger) -> str:
        place = await inside.enter()
        if isinstance(place, Following):
            started = self.time
            place = await place.outcome(CLIENT_TIMEOUT_S)
            assert self.time <= started + CLIENT_TIMEOUT_S + 0.1
        match place:
            case Failed():
                return "failed"
            case None:
                return "refused"
            case Leading():
                return await self.make(place, request)
            case Found(result=record):
                self.check(record, inside.entry)
                return "done"
        assert place is not Refusal.MISSING
        return "conflict"

    async def make(self, place: Leading, request: Request) -> str:
        """Two paid calls, one after the other, less those that the parts hold."""
        wanted = place.request.entry
        what = (wanted.scope, request.body)
        is_shared = wanted.cache_key is not None and not wanted.fresh
        if is_shared:
            assert not self.leading[what] or self.time <= self.troubled_until
            self.leading[what] += 1
        urls = dict(place.parts)
        try:
            for index in range(CALLS):
                if index not in urls:
                    self.paid[what] += 1
                    await asyncio.sleep(request.call_s)
                    if request.fails_at == index:
                        await place.fail(UpstreamFailed("failed"))
                        return "failed"
                    self.paid_by[place.request.tenant] += 1
                    urls[index] = (f"{wanted.scope}/{wanted.plan_hash}/{wanted.request}/{index}",)
                    await place.progress(index, urls[index])
            record = Record(
                urls=tuple(url for index in sorted(urls) for url in urls[index]),
                created=int(now()),
                expires_at=int(now() + URL_LIFE_S),
                model="m",
            )
            await place.finish(record, 3600 if wanted.cache_key else 0)
            self.check(record, wanted)
            return "done"
        finally:
            if is_shared:
                self.leading[what] -= 1

    def check(self, record: Record, wanted: Entry) -> None:
        """Never another tenant's, never another prompt's, never a dead URL."""
        assert all(url.startswith(f"{wanted.scope}/{wanted.plan_hash}/") for url in record.urls)
        assert len(record.urls) == CALLS
        assert record.expires_at >= now()

    async def end(self) -> None:
        """Nothing is left behind: no leader, no follower, no word that the store was not told."""
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.gather(*self.running, return_exceptions=True)
        for task in (*self.tasks, *self.running):
            if not task.cancelled():
                task.result()
        await asyncio.sleep(60)
        for number, worker in enumerate(self.gateway.workers):
            if number not in self.dead:
                assert (worker.leading, worker.followed, worker.backlog) == (0, 0, 0)
                assert not worker.degraded
        for tenant in ("acme", "other"):
            usage = await self.gateway.store.usage(tenant, LIMITS)
            assert usage.levels.concurrent is not None
            assert usage.levels.concurrent.remaining == LIMITS.concurrent_requests
            if self.is_bookkeeping_whole:
                month = sum(use.cost for use in usage.this_month.values())
                assert month == self.paid_by[tenant] * PRICE


def entry_of(number: int, request: Request) -> Entry:
    mode = request.mode
    return Entry(
        scope=request.scope,
        request=f"r{number}",
        plan_hash=request.body,
        images=CALLS,
        cache_key=request.body if mode == "cached" else None,
        max_age_ms=None if request.max_age_s is None else request.max_age_s * 1000,
        fresh=request.fresh,
        idempotency=Idempotency(request.body, request.body) if mode == "keyed" else None,
        retry_key=request.body,
        is_retry=request.is_retry,
    )


async def live(history: list[tuple[float, Request | Fault]]) -> World:
    async with Gateway(WORKERS, beat_s=5.0) as gateway:
        world = World(gateway)
        for number, (pause, one) in enumerate(history):
            await asyncio.sleep(pause)
            if isinstance(one, Request):
                world.begin(number, one)
            else:
                await world.befall(one)
        await world.end()
    return world


MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@MANY
@given(HISTORIES)
def test_whatever_happens(history: list[tuple[float, Request | Fault]]) -> None:
    """Everyone who waits is answered with what they asked for, and nobody is paid for twice
    at once while the store holds.
    """
    world = run(live(history))
    for answer in set(world.answers):
        event(answer)


@MANY
@given(FAULTLESS)
def test_without_faults_identical_requests_are_paid_once(
    history: list[tuple[float, Request]],
) -> None:
    """Requests that share, or repeat a key, and that ask for nothing fresher than there is."""
    requests = [
        (pause, Request(**{**fields(one), "fresh": False, "max_age_s": None, "fails_at": None}))
        for pause, one in history
        if one.mode != "retried" and not one.is_limited
    ]
    span_s = sum(pause for pause, _ in requests) + 60
    world = run(live(list(requests)))
    # A result serves until its URLs are about to die, and then one more is paid.
    allowed = CALLS * (1 + int(span_s // (URL_LIFE_S - 60)))
    modes = Counter((one.scope, one.body, one.mode) for _, one in requests)
    for scope, body in world.paid:
        ways = sum(modes[scope, body, mode] > 0 for mode in ("cached", "keyed"))
        assert world.paid[scope, body] <= allowed * ways


def fields(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__struct_fields__}

"""Random histories of a gateway's workers: who paid, who was answered, and with what.

Three workers serve requests over one store. Leaders fail and die, clients hang up, the store goes
away, swallows its answers, or loses its data, the cache is purged, and time passes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from gateway.domain.errors import UpstreamFailed
from gateway.results import Done, Entry, Failed, Follow, Idempotency, Lead, Refusal
from gateway.results.cache_policy import Record
from gateway.results.ledger import Ledger
from tests.unit.ledgers import LEASE_S, Gateway, now
from tests.virtual_time import run

WORKERS = 3
CALLS = 2
URL_LIFE_S = 900.0
PATIENCE_S = 120.0


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
    mode=st.sampled_from(["cached"] * 4 + ["adopted", "keyed"]),
    call_s=st.sampled_from([0.01, 2.0, 30.0, 30.0]),
    fails_at=st.sampled_from([None, None, None, 0, 1]),
    hangs_up_s=st.sampled_from([None, None, None, 0.0005, 0.0025, 1.0, 40.0]),
    is_retry=st.booleans(),
    fresh=st.sampled_from([False, False, False, True]),
    max_age_s=st.sampled_from([None, None, 0, 60]),
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
            self.trouble(LEASE_S)
        elif fault.kind == "purge":
            await store.purge("tenant:acme")
        else:
            setattr(store, f"is_{fault.kind}", True)
            loop = asyncio.get_running_loop()
            loop.call_later(fault.lasts_s, setattr, store, f"is_{fault.kind}", False)
            self.trouble(fault.lasts_s + LEASE_S)

    def trouble(self, seconds: float) -> None:
        self.troubled_until = max(self.troubled_until, self.time + seconds)

    async def kill(self, number: int) -> None:
        if number in self.dead:
            return
        self.dead.add(number)
        await self.gateway.kill(number)
        for task in [*self.tasks, *self.running]:
            if task.get_name() == str(number):
                task.cancel()

    # -- a client, and the pipeline that serves it

    async def client(self, number: int, request: Request) -> None:
        wanted = entry_of(number, request)
        serving = asyncio.create_task(self.serve(request, wanted))
        serving.set_name(str(request.worker))
        self.running.add(serving)
        await asyncio.wait([serving], timeout=request.hangs_up_s)
        if not serving.done():
            serving.cancel()
            await asyncio.wait([serving])
        if request.worker not in self.dead:
            outcome = "hung up" if serving.cancelled() else serving.result()
            assert outcome != "hung up" or request.hangs_up_s is not None
            self.answers.append(outcome)

    async def serve(self, request: Request, wanted: Entry) -> str:
        worker = self.gateway.workers[request.worker]
        deadline = self.time + PATIENCE_S
        place = await worker.enter(wanted)
        if isinstance(place, Follow):
            outcome = await place.outcome(deadline)
            assert self.time <= deadline + 0.1
            if isinstance(outcome, Failed):
                return "failed"
            place = outcome
        if isinstance(place, Lead):
            return await self.lead(worker, place, request)
        assert place is not Refusal.MISSING
        if isinstance(place, Done):
            self.check(place.record, wanted)
            await worker.delivered(place)
        return "done"

    async def lead(self, worker: Ledger, place: Lead, request: Request) -> str:
        making = asyncio.create_task(self.make(place, request))
        making.set_name(str(request.worker))
        self.running.add(making)
        try:
            answer = await asyncio.shield(making)
        except asyncio.CancelledError:
            if request.worker not in self.dead:
                await worker.let_go(place)
            raise
        await worker.delivered(place)
        return answer

    async def make(self, place: Lead, request: Request) -> str:
        """Two paid calls, one after the other, less those that the parts hold."""
        wanted = place.entry
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
                    urls[index] = (f"{wanted.scope}/{wanted.plan}/{place.entry.request}/{index}",)
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
        assert all(url.startswith(f"{wanted.scope}/{wanted.plan}/") for url in record.urls)
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
                assert (worker.leading, worker.followed, worker.owed) == (0, 0, 0)
                assert not worker.degraded


def entry_of(number: int, request: Request) -> Entry:
    mode = request.mode
    return Entry(
        scope=request.scope,
        request=f"r{number}",
        plan=request.body,
        images=CALLS,
        cache_key=request.body if mode == "cached" else None,
        max_age_ms=None if request.max_age_s is None else request.max_age_s * 1000,
        fresh=request.fresh,
        idempotency=Idempotency(request.body, request.body) if mode == "keyed" else None,
        adoption=request.body,
        is_retry=request.is_retry,
    )


async def live(history: list[tuple[float, Request | Fault]]) -> World:
    async with Gateway(WORKERS) as gateway:
        world = World(gateway)
        for number, (pause, one) in enumerate(history):
            await asyncio.sleep(pause)
            if isinstance(one, Request):
                world.begin(number, one)
            else:
                await world.befall(one)
        await world.end()
    return world


MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


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
        if one.mode != "adopted"
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

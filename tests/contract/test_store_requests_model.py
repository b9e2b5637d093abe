"""Random histories of requests: the stores agree, and no rule of limits and of paying once breaks.

Everything happens: answers are lost and operations repeated, workers die and their leases end,
clocks are set, requests are refused. Each operation is done in memory and on one server, and must
have the same answer; what the test itself knows of each request is the judge of both.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Struct
from msgspec.structs import replace

from gateway.store.base import Store
from gateway.store.generations import (
    MARGIN_MS,
    PARTS_KEPT_MS,
    Completion,
    Doubtful,
    Entry,
    Failure,
    FencingResult,
    Found,
    GenerationStatus,
    How,
    Idempotency,
    Joined,
    Leadership,
    Led,
    Place,
    State,
)
from gateway.store.limits import (
    Limits,
    LimitStatus,
    Reservation,
    Settlement,
    TakeRequest,
    Usage,
    Verdict,
)
from gateway.store.memory import MemoryStore
from gateway.store.redis import RedisStore
from gateway.store.requests import ClientOutcome, End, Entered, EnterRequest, Leave
from tests.contract.stores import KINDS, PATIENT, Clock, open_store
from tests.redis_server import RedisServer, available_redis_servers

REDIS = [kind for kind in KINDS if kind != "memory"]
STEP_S = 7
"""Time passes in such steps, of which no number makes one of the store's own durations."""
LEAD_MS, LEASE_MS = 24_500, 31_500
"""End between two steps, as every duration here."""
HALF_MS = 500
ABOUT_MS = 800
PRICE = 10
GROUP = "group:art"
TENANTS = st.sampled_from(["acme"] * 3 + ["other"])
NAMES = st.sampled_from(["a", "a", "b"])
INDEXES = st.integers(0, 7)
URLS = st.lists(st.sampled_from(["u", "v", "w"]), max_size=2)
WAITS = st.sampled_from([1, 1, 2, 3, 4, 5, 8, 9, 19, 85, 86, 515, 12_858])


class Known(Struct):
    """A request, as the test knows it."""

    entry: Entry
    tenant: str
    reserved: int = 0
    """Micro-units, as all money here."""
    used: int = 0
    until: float = 0.0
    """When its lease ends."""
    follows: str | None = None
    leadership: Leadership | None = None
    is_settled: bool = False
    has_left: bool = False

    def booked(self, now: float) -> int:
        """What of its tenant's money it has."""
        is_reserved = self.until > now and not self.is_settled
        return max(self.reserved, self.used) if is_reserved else self.used


class Made(Struct):
    """A result, as the test knows it."""

    scope: str
    plan: str
    dies: float
    pinned: float = 0.0
    is_served: bool = True


class Histories(RuleBasedStateMachine):
    kind = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.memory = MemoryStore(self.clock)
        self.redis = self.open()
        self.known: dict[str, Known] = {}
        self.made: dict[str, Made] = {}
        self.leads: dict[tuple[str, str], tuple[Leadership, float]] = {}
        """By scope and cache key: who leads for all, and until when at least."""
        self.restorable: dict[Leadership, float] = {}
        """Until when: not after their end, nor when they are long forgotten. Pointers to what is
        forgotten go sooner in memory than on Redis, and would lead to it again there."""
        self.was_set_back = False

    def open(self) -> Store:
        return open_store(self.kind, self.clock)

    @property
    def is_apart(self) -> bool:
        """Whether a group's generations are in another slot than its tenants."""
        return isinstance(self.redis, RedisStore) and self.redis._servers.is_cluster

    def both(self, operation: str, *args: Any) -> Any:
        one, other = (
            self.loop.run_until_complete(getattr(store, operation)(*args))
            for store in (self.memory, self.redis)
        )
        assert exact(one) == exact(other)
        assert durations(one) == pytest.approx(durations(other), abs=ABOUT_MS)
        return one

    def again(self, operation: str, *args: Any, is_lost: bool) -> Any:
        """An operation, and once more if its answer is lost: nothing changes any more."""
        answer = self.both(operation, *args)
        if is_lost:
            before = self.seen()
            assert exact(self.both(operation, *args)) == exact(answer)
            assert self.seen() == before
        return answer

    def seen(self) -> list[object]:
        """Everything that is booked and led, as memory has it."""
        books = [self.memory._books_of(tenant) for tenant in ("acme", "other")]
        booked = [(one.day.booked, one.month.booked, one.requests.total) for one in books]
        use = [msgspec.to_builtins(one.month.use) for one in books]
        return [booked, use, *self.generations()]

    def generations(self) -> list[object]:
        return [msgspec.to_builtins(scope._known) for scope in list(self.memory._scopes.values())]

    def pick(self, index: int, *, leads: bool = False) -> Known | None:
        """One of the latest."""
        found = [one for one in self.known.values() if not one.has_left]
        if leads:
            found = [one for one in found if one.leadership is not None]
        return found[-1 - index % len(found[-8:])] if found else None

    @initialize(
        rates=st.tuples(st.integers(1, 9), st.integers(2, 12)) | st.just((None, None)),
        concurrent=st.none() | st.integers(1, 4),
        budgets=st.tuples(st.integers(2, 40), st.integers(20, 400)) | st.just((None, None)),
    )
    def limit(
        self,
        rates: tuple[int | None, int | None],
        concurrent: int | None,
        budgets: tuple[int | None, int | None],
    ) -> None:
        self.limits = {"acme": Limits(*rates, concurrent, *budgets), "other": Limits()}

    # -- entering

    @rule(
        tenant=TENANTS,
        in_group=st.sampled_from([False, False, True]),
        plan=NAMES,
        images=st.sampled_from([1, 3]),
        way=st.sampled_from(["cache"] * 3 + ["retry", "retry", "both", "key", "key and cache"]),
        flags=st.fixed_dictionaries(
            {
                "fresh": st.sampled_from([False] * 3 + [True]),
                "only_if_cached": st.sampled_from([False] * 5 + [True]),
                "needs_url": st.booleans(),
                "is_retry": st.booleans(),
                "may_reuse_unclaimed": st.booleans(),
                "max_age_ms": st.sampled_from([None, None, HALF_MS, 60_500]),
            }
        ),
        body=st.sampled_from(["body", "body", "other"]),
        is_lost=st.booleans(),
    )
    def enter(  # noqa: PLR0917 - hypothesis names them
        self,
        tenant: str,
        in_group: bool,
        plan: str,
        images: int,
        way: str,
        flags: dict[str, Any],
        body: str,
        is_lost: bool,
    ) -> None:
        self.clock.advance(STEP_S)  # of two that began at once, which is the younger?
        plan = f"{plan}{images}"
        entry = Entry(
            scope=GROUP if in_group else f"tenant:{tenant}",
            request=f"r{len(self.known)}",
            plan=plan,
            images=images,
            cache_key=plan if "cache" in way or way == "both" else None,
            retry_key=f"{tenant} {plan}" if way in {"retry", "both"} else None,
            idempotency=Idempotency(f"{tenant} key", body) if "key" in way else None,
            **flags,
        )
        one = self.known[entry.request] = Known(entry, tenant)
        self.enter_as(one, is_lost=is_lost)

    @rule(index=INDEXES, is_lost=st.booleans())
    def follow(self, index: int, is_lost: bool) -> None:
        """Whom somebody waited for is gone, or perhaps not."""
        one = self.pick(index)
        if one and one.follows and not one.leadership:
            self.enter_as(one, is_lost=is_lost)

    def enter_as(self, one: Known, *, is_lost: bool) -> None:
        limits, entry = self.limits[one.tenant], one.entry
        want = Reservation(entry.request, "m", entry.images, entry.images * PRICE)
        take = TakeRequest(one.tenant, limits, want, LEASE_MS)
        request = EnterRequest(entry=entry, take=take, lead_ms=LEAD_MS, follows=one.follows)
        keys, before = self.keys(), self.seen()
        entered = self.both("enter", request)
        if entered.place is None:  # refused: without a trace
            assert self.seen() == before
            assert self.keys() <= keys
        if is_lost and entered.place is not None:
            before = self.seen()
            assert exact(self.both("enter", request)) == exact(entered)
            assert self.seen() == before
        if entered.place is None:
            one.has_left = one.has_left or one.follows is None
        elif not isinstance(entered.place, Joined | Led | Found | Doubtful):
            one.has_left = True  # a conflict, or nothing there
        else:
            self.placed(one, entered.place)
            self.within_limits(one.tenant, limits)

    def keys(self) -> set[bytes]:
        async def ask() -> list[bytes]:
            assert isinstance(self.redis, RedisStore)
            found: list[bytes] = await self.redis._servers.call("", ("KEYS", "*"))
            return found

        return set(self.loop.run_until_complete(ask()))

    def placed(self, one: Known, place: Place) -> None:
        now = self.clock.now
        one.until = max(one.until, now + LEASE_MS / 1000) if not one.follows else one.until
        if isinstance(place, Led):
            known = sum(len(urls) for urls in place.parts.values())
            if not one.is_settled and not one.reserved:
                one.reserved = max(0, one.entry.images - known) * PRICE
                if one.reserved:
                    one.until = now + LEASE_MS / 1000
            one.leadership = place.leadership
            self.led(place.leadership, one.entry)
        elif isinstance(place, Joined):
            one.follows = place.id
        elif isinstance(place, Found):
            self.found(place, one.entry, one.follows)
            one.follows = place.id

    def within_limits(self, tenant: str, limits: Limits) -> None:
        """Nobody is let in above a limit; only a renewal books unasked."""
        books = self.memory._books_of(tenant)
        if self.is_forced:
            return
        if limits.concurrent_requests is not None:
            assert len(books._leases) <= limits.concurrent_requests
            assert len(books._detached) <= limits.concurrent_requests

    is_forced = False

    def led(self, leadership: Leadership, wanted: Entry) -> None:
        """One leader at a time."""
        assert not wanted.only_if_cached
        if wanted.cache_key and not wanted.fresh and not wanted.idempotency:
            shared = (wanted.scope, wanted.cache_key)
            other, until = self.leads.get(shared, (leadership, 0.0))
            assert other.leader == leadership.leader or until <= self.clock.now
            self.leads[shared] = (leadership, self.clock.now + LEAD_MS / 1000)
        self.restorable[leadership] = self.clock.now + (LEAD_MS + PARTS_KEPT_MS) / 1000

    def found(self, place: Found, wanted: Entry, follows: str | None) -> None:
        """Never another scope's, nor one past its URLs' life, nor one that was purged."""
        made = self.made[place.result.decode()]
        assert made.scope == wanted.scope
        margin_s = 0 if place.id == follows else MARGIN_MS / 1000
        has_bytes = made.pinned > self.clock.now and not wanted.needs_url
        assert has_bytes or made.dies - margin_s > self.clock.now
        if place.how is How.HIT:
            assert made.plan == wanted.plan
            assert made.is_served

    # -- leaders

    @rule(
        index=INDEXES,
        call=st.integers(0, 1),
        urls=URLS,
        images=st.integers(0, 4),
        is_lost=st.booleans(),
    )
    def progress(self, index: int, call: int, urls: list[str], images: int, is_lost: bool) -> None:
        one = self.pick(index, leads=True)
        if one and one.leadership:
            used = self.use(one, images)
            self.again("progress", one.leadership, call, urls, used, is_lost=is_lost)

    def use(self, one: Known, images: int) -> Settlement:
        if not one.is_settled:
            one.used = max(one.used, images * PRICE)
        limits = self.limits[one.tenant]
        return Settlement(one.tenant, one.entry.request, "m", images, images * PRICE, limits)

    @rule(
        index=INDEXES,
        life_s=st.sampled_from([30, 100, 100, 90_000]),
        cache_s=st.sampled_from([0, 50, 3600, 90_000]),
        keep_s=st.sampled_from([600, 86_400]),
        images=st.integers(0, 4),
        client=st.sampled_from([None, None, ClientOutcome.GONE]),
        is_lost=st.booleans(),
    )
    def finish(  # noqa: PLR0917
        self,
        index: int,
        life_s: int,
        cache_s: int,
        keep_s: int,
        images: int,
        client: ClientOutcome | None,
        is_lost: bool,
    ) -> None:
        one = self.pick(index, leads=True)
        if one is None or one.leadership is None:
            return
        name = f"{one.entry.request}-{len(self.made)}"
        scope, plan = one.entry.scope, one.entry.plan
        self.made[name] = Made(scope, plan, self.clock.now + life_s + 0.5)
        completion = Completion(
            name.encode(),
            life_s * 1000 + HALF_MS,
            keep_s * 1000 + HALF_MS,
            one.entry.cache_key,
            cache_s * 1000 + HALF_MS if cache_s else 0,
        )
        self.end(one, one.leadership, completion, images, client, is_lost=is_lost)

    @rule(
        index=INDEXES,
        error=st.none() | st.just(b"error"),
        urls=st.none() | URLS,
        doubtful=st.booleans(),
        images=st.integers(0, 4),
        client=st.sampled_from([None, *ClientOutcome]),
        is_lost=st.booleans(),
    )
    def fail(  # noqa: PLR0917
        self,
        index: int,
        error: bytes | None,
        urls: list[str] | None,
        doubtful: bool,
        images: int,
        client: ClientOutcome | None,
        is_lost: bool,
    ) -> None:
        one = self.pick(index, leads=True)
        if one and one.leadership:
            parts = {} if urls is None else {1: tuple(urls)}
            failure = Failure(parts, error, doubtful)
            self.end(one, one.leadership, failure, images, client, is_lost=is_lost)

    def end(
        self,
        one: Known,
        leadership: Leadership,
        outcome: Completion | Failure,
        images: int,
        client: ClientOutcome | None,
        *,
        is_lost: bool,
    ) -> None:
        told = End(
            leadership=leadership,
            retry_key=one.entry.retry_key,
            outcome=outcome,
            settlement=self.use(one, images),
            client=client,
        )
        standing, _ = self.both("end", told)
        if is_lost:
            before = self.seen()
            self.both("end", told)
            assert self.seen() == before
        one.is_settled, one.has_left = True, client is not None
        if standing is FencingResult.KEPT:
            self.restorable.pop(leadership, None)
            self.leads = {key: led for key, led in self.leads.items() if led[0] != leadership}

    @rule(indexes=st.sets(INDEXES, max_size=4), is_lost=st.booleans())
    def renew_leaderships(self, indexes: set[int], is_lost: bool) -> None:
        picked = [one.leadership for index in indexes if (one := self.pick(index, leads=True))]
        ours = [one for one in picked if one and one.scope == (picked[0] or one).scope]
        standings = self.again("renew_leaderships", ours, LEAD_MS, is_lost=is_lost)
        for leadership, standing in zip(ours, standings, strict=True):
            for key, (other, _) in self.leads.items():
                if other == leadership and standing is FencingResult.KEPT:
                    self.leads[key] = (leadership, self.clock.now + LEAD_MS / 1000)

    @rule(index=INDEXES, urls=URLS, is_lost=st.booleans())
    def restore(self, index: int, urls: list[str], is_lost: bool) -> None:
        one = self.pick(index, leads=True)
        leadership = one and one.leadership
        if one and leadership and self.restorable.get(leadership, 0.0) > self.clock.now:
            self.leads = {key: led for key, led in self.leads.items() if led[0] != leadership}
            parts = {0: tuple(urls)}
            self.again("restore", leadership, one.entry, LEAD_MS, parts, is_lost=is_lost)

    # -- leases and leaving

    @rule(tenant=TENANTS, indexes=st.sets(INDEXES, max_size=4), is_lost=st.booleans())
    def renew(self, tenant: str, indexes: set[int], is_lost: bool) -> None:
        """As their worker would; one that had expired takes a place unasked."""
        picked = {one.entry.request: one for index in indexes if (one := self.pick(index))}
        ours = [one for one in picked.values() if one.tenant == tenant and one.until]
        reservations = [
            Reservation(one.entry.request, "m", held // PRICE, held)
            for one in ours
            for held in [0 if one.is_settled else one.reserved]
        ]
        for one in ours:
            self.is_forced = self.is_forced or one.until <= self.clock.now
            one.until = self.clock.now + LEASE_MS / 1000
        self.again("renew", tenant, reservations, LEASE_MS, is_lost=is_lost)

    @rule(
        index=INDEXES,
        outcome=st.sampled_from(ClientOutcome),
        knows=st.booleans(),
        is_lost=st.booleans(),
    )
    def leave(self, index: int, outcome: ClientOutcome, knows: bool, is_lost: bool) -> None:
        one = self.pick(index)
        if one is None:
            return
        id_ = one.leadership.id if one.leadership else one.follows
        if one.leadership and not one.is_settled and knows:
            return  # a leader ends first
        leave = Leave(
            settlement=self.use(one, 0),
            outcome=outcome,
            scope=one.entry.scope,
            generation=id_ if knows else None,
            retry_key=one.entry.retry_key,
        )
        one.is_settled = one.has_left = True
        if one.leadership and not knows:
            mine = one.leadership
            self.restorable.pop(mine, None)
            self.leads = {key: led for key, led in self.leads.items() if led[0] != mine}
        is_counted_twice = self.is_apart and one.entry.scope == GROUP
        self.again("leave", leave, is_lost=is_lost and not is_counted_twice)

    @rule(index=INDEXES, is_lost=st.booleans())
    def client_gone(self, index: int, is_lost: bool) -> None:
        one = self.pick(index, leads=True)
        if one:
            self.again("client_gone", one.leadership, one.entry.retry_key, is_lost=is_lost)

    # -- everybody else

    @rule(index=INDEXES, seconds=st.sampled_from([10, 500]), is_lost=st.booleans())
    def pin(self, index: int, seconds: int, is_lost: bool) -> None:
        one = self.pick(index, leads=True)
        if one and one.leadership:
            scope, id_ = one.leadership.scope, one.leadership.id
            self.again("pin_images", scope, id_, seconds * 1000 + HALF_MS, is_lost=is_lost)
            kept = self.memory._scope(scope)._find(id_)
            if kept and kept.state is State.DONE:
                self.made[kept.payload.decode()].pinned = self.clock.now + seconds + 0.5

    @rule(index=INDEXES)
    def discard(self, index: int) -> None:
        one = self.pick(index, leads=True)
        if one and one.leadership:
            self.both("discard", one.leadership.scope, one.leadership.id)

    @rule(scope=st.sampled_from(["tenant:acme", GROUP]))
    def purge(self, scope: str) -> None:
        self.both("purge", scope)
        for made in self.made.values():
            made.is_served = made.is_served and made.scope != scope

    @rule(steps=WAITS)
    def wait(self, steps: int) -> None:
        self.clock.advance(steps * STEP_S)

    @precondition(lambda self: self.known)
    @rule(steps=st.sampled_from([1, 2, 8, 600]))
    def set_back(self, steps: int) -> None:
        """As after a failover to a machine whose clock is behind."""
        self.clock.advance(-steps * STEP_S)
        self.was_set_back = True

    @invariant()
    def they_agree_on_everything(self) -> None:
        if not hasattr(self, "limits"):
            return
        for tenant, limits in self.limits.items():
            self.both("usage", tenant, limits)
            self.both("levels", tenant, limits)
        for scope in ("tenant:acme", GROUP):
            self.both("cache_stats", scope)
            ids = sorted(one.entry.request for one in self.known.values())
            for status in self.poll(scope, ids[-12:]):
                if status.state is State.DONE:
                    made = self.made[status.payload.decode()]
                    assert made.scope == scope
                    assert made.dies > self.clock.now

    def poll(self, scope: str, ids: list[str]) -> list[GenerationStatus]:
        """Memory forgets at once what is over; Redis still knows it where the clock was set back,
        and says that it is dead. To a follower both are the same: nobody leads it.
        """
        if not self.was_set_back:
            polled: list[GenerationStatus] = self.both("poll", scope, ids)
            return polled
        one, other = (
            self.loop.run_until_complete(store.poll(scope, ids))
            for store in (self.memory, self.redis)
        )
        nobody = {State.DEAD, State.MISSING}
        for ours, theirs in zip(one, other, strict=True):
            assert ours.state is theirs.state or {ours.state, theirs.state} <= nobody
        return other

    @invariant()
    def the_money_is_right(self) -> None:
        """What is booked is what is used, and what live requests may use yet."""
        if datetime.fromtimestamp(self.clock.now, UTC).month != 3 or self.was_set_back:
            return
        for tenant in ("acme", "other"):
            ours = [one for one in self.known.values() if one.tenant == tenant]
            books = self.memory._books_of(tenant)
            assert books.month.booked == sum(one.booked(self.clock.now) for one in ours)
            used = books.month.use.get("m")
            assert (used.cost if used else 0) == sum(one.used for one in ours)

    @invariant()
    def a_live_request_has_one_place(self) -> None:
        for tenant in ("acme", "other"):
            books = self.memory._books_of(tenant)
            assert not books._leases.keys() & books._detached.keys()
            assert (books._leases.keys() | books._detached.keys()) <= books._bookings.keys()

    def teardown(self) -> None:
        self.loop.run_until_complete(self.redis.aclose())
        self.loop.close()


def exact(answer: object) -> object:
    """An answer without its durations: the memory store's clock stands still meanwhile."""
    match answer:
        case Entered(verdict, place):
            return exact([verdict, place])
        case Verdict():
            levels = (answer.requests, answer.images, answer.concurrent, answer.day, answer.month)
            counts = [level and (level.limit, level.remaining) for level in levels]
            return answer.allowed, answer.reason, answer.retry_after_ms is None, counts
        case Usage():
            return exact([answer.levels, answer.today, answer.this_month])
        case Found() | Doubtful() | GenerationStatus():
            return msgspec.to_builtins(replace(answer, age_ms=0))
        case list() | tuple():
            return [exact(one) for one in answer]
    return answer


def durations(answer: object) -> list[float]:
    match answer:
        case Entered(verdict, place):
            return durations(verdict) + durations(place)
        case Verdict():
            levels = (answer.requests, answer.images, answer.day, answer.month)
            resets = [level.reset_ms for level in levels if isinstance(level, LimitStatus)]
            return [answer.retry_after_ms or 0, *resets]
        case Usage():
            return durations(answer.levels)
        case Found() | Doubtful():
            return [answer.age_ms]
        case list() | tuple():
            return [found for one in answer for found in durations(one)]
    return []


class OnCluster(Histories):
    """A cluster of one node: enough to have a tenant and its group's generations apart."""

    server: RedisServer

    def open(self) -> Store:
        self.server.flush()
        return RedisStore(
            f"redis+cluster://127.0.0.1:{self.server.port}",
            timeouts=PATIENT,
            clock_offset_ms=self.clock.offset_ms,
        )


def play(machine: type[Histories], **attributes: object) -> None:
    run: Any = type("Machine", (machine,), attributes).TestCase  # type: ignore[attr-defined]
    run.settings = settings(
        max_examples=100,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run().runTest()


@pytest.mark.parametrize("kind", REDIS)
def test_stores_agree_and_nothing_is_paid_twice(kind: str) -> None:
    play(Histories, kind=kind)


@pytest.mark.parametrize("version", available_redis_servers())
def test_a_cluster_agrees_too(version: str) -> None:
    args = ["--cluster-enabled", "yes"]
    with RedisServer(available_redis_servers()[version], args) as server:
        client: Any = redis.Redis(port=server.port)
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
            time.sleep(0.05)
        play(OnCluster, server=server)

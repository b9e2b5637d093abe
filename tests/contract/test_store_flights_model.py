"""Random histories of generations: the stores agree, and no rule of paying once is broken."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import Struct

from gateway.store.generations import (
    MARGIN_MS,
    PARTS_KEPT_MS,
    Begun,
    Claim,
    Departure,
    Ending,
    Entry,
    Failure,
    Found,
    How,
    Idempotency,
    Led,
    Phase,
    Sight,
    Standing,
)
from tests.contract.stores import KINDS, Clock, open_store

REDIS = [kind for kind in KINDS if kind != "memory"]
STEP_S = 7
"""Time passes in such steps, of which no number makes one of the store's own durations."""
LEASE_MS = 24_500
"""Ends between two steps, as every duration here."""
HALF_MS = 500
SCOPES = st.sampled_from(["tenant:acme"] * 3 + ["tenant:other"])
NAMES = st.sampled_from(["a", "a", "b"])
CLAIMS = st.integers(0, 7)
URLS = st.lists(st.sampled_from(["u", "v", "w"]), max_size=2)
WAITS = st.sampled_from([1, 1, 2, 3, 4, 8, 9, 19, 85, 86, 515, 12_858])


class Made(Struct):
    """A result, as the test knows it."""

    scope: str
    plan: str
    dies: float
    held: float = 0.0
    is_served: bool = True


class Histories(RuleBasedStateMachine):
    """Each operation is done in memory and on one Redis, and must have the same answer."""

    kind = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.memory = open_store("memory", self.clock)
        self.redis = open_store(self.kind, self.clock)
        self.claims: list[tuple[Claim, Entry]] = []
        """The latest that led."""
        self.restorable: dict[Claim, float] = {}
        """Until when: not after their end, nor when they are long forgotten. Pointers to what is
        forgotten go sooner in memory than on Redis, and would lead to it again there."""
        self.requests = 0
        self.made: dict[str, Made] = {}
        self.leads: dict[tuple[str, str], tuple[Claim, float]] = {}
        """By scope and cache key: who leads for all, and until when at least."""

    def both(self, operation: str, *args: Any) -> Any:
        one, other = (
            self.loop.run_until_complete(getattr(store, operation)(*args))
            for store in (self.memory, self.redis)
        )
        assert plain(one) == plain(other)
        return one

    def pick(self, index: int) -> tuple[Claim, Entry] | None:
        return self.claims[-1 - index % len(self.claims)] if self.claims else None

    # -- requests

    @rule(
        scope=SCOPES,
        plan=NAMES,
        way=st.sampled_from(["cache"] * 3 + ["adoption", "both", "key", "key and cache"]),
        flags=st.fixed_dictionaries(
            {
                "fresh": st.sampled_from([False] * 3 + [True]),
                "only_if_cached": st.sampled_from([False] * 5 + [True]),
                "needs_url": st.booleans(),
                "is_retry": st.booleans(),
                "takes_orphans": st.booleans(),
                "max_age_ms": st.sampled_from([None, None, HALF_MS, 60_500]),
            }
        ),
        body=st.sampled_from(["body", "body", "other"]),
        follows=st.none() | CLAIMS,
    )
    def begin(
        self, scope: str, plan: str, way: str, flags: dict[str, Any], body: str, follows: int | None
    ) -> None:
        self.requests += 1
        self.clock.advance(STEP_S)  # of two that began at once, which is the younger?
        wanted = Entry(
            scope=scope,
            request=f"r{self.requests}",
            plan=plan,
            images=1,
            cache_key=plan if "cache" in way or way == "both" else None,
            adoption=plan if way in {"adoption", "both"} else None,
            idempotency=Idempotency("key", body) if "key" in way else None,
            **flags,
        )
        followed = self.pick(follows) if follows is not None else None
        id_ = followed[0].id if followed and followed[0].scope == scope else None
        begun = self.both("begin", wanted, LEASE_MS, id_)
        if isinstance(begun, Led):
            self.led(begun.claim, wanted)
            assert self.both("begin", wanted, LEASE_MS, id_) == begun
        if isinstance(begun, Found):
            self.found(begun, wanted, id_)

    def led(self, claim: Claim, wanted: Entry) -> None:
        assert not wanted.only_if_cached
        if wanted.cache_key and not wanted.fresh and not wanted.idempotency:
            shared = (wanted.scope, wanted.cache_key)
            other, until = self.leads.get(shared, (claim, 0.0))
            assert other.leader == claim.leader or until <= self.clock.now
            self.leads[shared] = (claim, self.clock.now + LEASE_MS / 1000)
        self.restorable[claim] = self.clock.now + (LEASE_MS + PARTS_KEPT_MS) / 1000
        self.claims = [*self.claims, (claim, wanted)][-8:]

    def found(self, begun: Found, wanted: Entry, follows: str | None) -> None:
        """Never another scope's, nor one past its URLs' life, nor one that was purged."""
        made = self.made[begun.result.decode()]
        assert made.scope == wanted.scope
        margin_s = 0 if begun.id == follows else MARGIN_MS / 1000
        has_bytes = made.held > self.clock.now and not wanted.needs_url
        assert has_bytes or made.dies - margin_s > self.clock.now
        if begun.how is How.HIT:
            assert made.plan == wanted.plan
            assert made.is_served

    # -- leaders

    @rule(index=CLAIMS, call=st.integers(0, 1), urls=URLS)
    def progress(self, index: int, call: int, urls: list[str]) -> None:
        if picked := self.pick(index):
            self.both("progress", picked[0], call, urls)

    @rule(
        index=CLAIMS,
        life_s=st.sampled_from([30, 100, 100, 90_000]),
        cache_s=st.sampled_from([0, 50, 3600, 90_000]),
        keep_s=st.sampled_from([600, 86_400]),
    )
    def finish(self, index: int, life_s: int, cache_s: int, keep_s: int) -> None:
        if (picked := self.pick(index)) is None:
            return
        claim, wanted = picked
        name = f"{claim.leader}-{len(self.made)}"
        self.made[name] = Made(claim.scope, wanted.plan, self.clock.now + life_s + 0.5)
        ending = Ending(
            name.encode(),
            life_s * 1000 + HALF_MS,
            keep_s * 1000 + HALF_MS,
            wanted.cache_key,
            cache_s * 1000 + HALF_MS if cache_s else 0,
        )
        self.over(claim, self.both("finish", claim, ending))

    @rule(
        index=CLAIMS,
        error=st.none() | st.just(b"error"),
        urls=st.none() | URLS,
        answered=st.booleans(),
    )
    def fail(
        self, index: int, error: bytes | None, urls: list[str] | None, *, answered: bool
    ) -> None:
        if picked := self.pick(index):
            claim, wanted = picked
            parts = {} if urls is None else {1: tuple(urls)}
            failure = Failure(parts, error, wanted.adoption, answered)
            self.over(claim, self.both("fail", claim, failure))

    @rule(index=CLAIMS)
    def abandon(self, index: int) -> None:
        if (picked := self.pick(index)) and self.both("abandon", picked[0], picked[1].adoption):
            self.over(picked[0], Standing.KEPT)

    def over(self, claim: Claim, standing: Standing) -> None:
        if standing is Standing.KEPT:
            self.restorable.pop(claim, None)
            self.leads = {key: led for key, led in self.leads.items() if led[0] != claim}

    @rule(indexes=st.sets(CLAIMS, max_size=4))
    def keep_alive(self, indexes: set[int]) -> None:
        picked = [one for index in indexes if (one := self.pick(index))]
        claims = [claim for claim, _ in picked if claim.scope == picked[0][0].scope]
        for claim, standing in zip(claims, self.both("keep_alive", claims, LEASE_MS), strict=True):
            for key, (other, _) in self.leads.items():
                if other == claim and standing is Standing.KEPT:
                    self.leads[key] = (claim, self.clock.now + LEASE_MS / 1000)

    @rule(index=CLAIMS, urls=URLS)
    def restore(self, index: int, urls: list[str]) -> None:
        picked = self.pick(index)
        if picked and self.restorable.get(picked[0], 0.0) > self.clock.now:
            claim, wanted = picked
            self.leads = {key: led for key, led in self.leads.items() if led[0] != claim}
            self.both("restore", claim, wanted, LEASE_MS, {0: tuple(urls)})

    # -- everybody else

    @rule(index=CLAIMS, how=st.sampled_from(Departure), me=st.booleans())
    def depart(self, index: int, how: Departure, *, me: bool) -> None:
        if picked := self.pick(index):
            claim, wanted = picked
            who = claim if me else Claim(claim.scope, claim.id, f"r{self.requests}")
            self.both("depart", who, wanted.adoption, how)

    @rule(scope=SCOPES, plan=NAMES)
    def excuse(self, scope: str, plan: str) -> None:
        self.both("excuse", scope, plan, f"x{self.requests}")

    @rule(index=CLAIMS, seconds=st.sampled_from([10, 500]))
    def hold(self, index: int, seconds: int) -> None:
        if picked := self.pick(index):
            (sight,) = self.both("look", picked[0].scope, [picked[0].id])
            self.both("hold", picked[0].scope, picked[0].id, seconds * 1000 + HALF_MS)
            for name, made in self.made.items():
                if sight.phase is not Phase.RUNNING and name.startswith(f"{picked[0].id}-"):
                    made.held = self.clock.now + seconds + 0.5
            self.hold_all(picked[0].id, seconds)

    def hold_all(self, id_: str, seconds: int) -> None:
        """A generation that was taken over bears its first leader's id."""
        payload = self.memory._scopes  # type: ignore[attr-defined]
        for scope in payload.values():
            one = scope._known.get(id_)
            if one and one.phase is Phase.DONE:
                self.made[one.payload.decode()].held = self.clock.now + seconds + 0.5

    @rule(index=CLAIMS)
    def discard(self, index: int) -> None:
        if picked := self.pick(index):
            self.both("discard", picked[0].scope, picked[0].id)

    @rule(scope=SCOPES)
    def purge(self, scope: str) -> None:
        self.both("purge", scope)
        for made in self.made.values():
            made.is_served = made.is_served and made.scope != scope

    @rule(steps=WAITS)
    def wait(self, steps: int) -> None:
        self.clock.advance(steps * STEP_S)

    @invariant()
    def they_agree_on_everything(self) -> None:
        for scope in ("tenant:acme", "tenant:other"):
            self.both("shelf", scope)
            ids = sorted({claim.id for claim, _ in self.claims if claim.scope == scope})
            for sight in self.both("look", scope, ids):
                if sight.phase is Phase.DONE:
                    made = self.made[sight.payload.decode()]
                    assert made.scope == scope
                    assert made.dies > self.clock.now

    def teardown(self) -> None:
        self.loop.run_until_complete(self.redis.aclose())
        self.loop.close()


def plain(answer: Begun | list[Sight] | Any) -> Any:
    """An answer without ages to the millisecond: the memory store's clock stands still."""
    if isinstance(answer, Found):
        return answer.id, answer.result, answer.how, round(answer.age_ms / 1000)
    if isinstance(answer, list):
        return [(one.phase, one.payload) if isinstance(one, Sight) else one for one in answer]
    return answer


@pytest.mark.parametrize("kind", REDIS)
def test_stores_agree_and_nothing_is_paid_twice(kind: str) -> None:
    machine: Any = type("Machine", (Histories,), {"kind": kind})
    run = machine.TestCase
    run.settings = settings(
        max_examples=100,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run().runTest()

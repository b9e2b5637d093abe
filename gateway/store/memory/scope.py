"""The generations of one scope in one process; `lua/generations/` decides in the same way."""

from __future__ import annotations

from collections import Counter
from heapq import nsmallest
from operator import attrgetter

from gateway.observability.context import ClientOutcome
from gateway.store.generations import (
    IDEMPOTENCY_MS,
    SHARED_ERROR_MS,
    CacheStats,
    Completion,
    Doubtful,
    Entry,
    Failure,
    FencingResult,
    Follow,
    Found,
    GenerationStatus,
    How,
    Lead,
    Leadership,
    Parts,
    Place,
    Refusal,
    State,
)
from gateway.store.memory.places import UNCLAIMED, PlaceChoice, PlaceFinder, StoredGeneration
from gateway.store.requests import End, Leave

SWEEP_EVERY_MS = 10_000


class ScopeState(PlaceFinder):
    def __init__(self) -> None:
        super().__init__()
        self._sweep_at = 0
        self._counts: Counter[str] = Counter()

    def begin_operation(self, now_ms: int) -> None:
        self._now = now_ms
        if now_ms >= self._sweep_at:
            self._sweep()

    # -- taking the place

    def take(
        self,
        choice: PlaceChoice,
        entry: Entry,
        lead_ms: int,
        follows: str | None,
        *,
        is_known: bool,
    ) -> Place[bytes]:
        """Write the choice down. `is_known`: the request has a place already."""
        one, kind = choice.one, choice.kind
        if isinstance(kind, Refusal):
            return kind
        if one is None or kind == "lead":
            return self._lead(one, entry, lead_ms, follows)
        if kind == "led":
            return self._led(one, entry)
        if kind == "doubtful":
            return Doubtful(one.id, one.payload, self._now - one.ended)
        is_repeated = is_known and follows is None
        is_new = one.id != follows and not is_repeated
        self._share(one, entry, choice.how, is_new=is_new)
        if choice.how is How.ADOPTED:
            self._pointers.take(entry.request, one.id, self._now + lead_ms)
        if kind == "joined":
            return Follow(one.id, choice.how)
        return self.found(one, choice.how)

    def found(self, one: StoredGeneration, how: How) -> Found[bytes]:
        return Found(one.id, one.payload, self._now - one.ended, how)

    def count(self, how: How) -> None:
        """By what a result was found, for `cache_stats`."""
        self._counts[how] += 1

    def _share(self, one: StoredGeneration, entry: Entry, how: How, *, is_new: bool) -> None:
        if is_new:
            self.count(how)
            one.clients += 1
        if how in {How.REPLAYED, How.ADOPTED}:
            one.holder = entry.request
        if how is How.ADOPTED:  # no other retry shall have it
            one.claimed = entry.request
            self._pointers.by_retry_key(entry.retry_key).score(one)
        is_running = one.state is State.RUNNING
        if is_running or (entry.idempotency and how is How.HIT):
            self._point(one, entry)

    def _led(self, one: StoredGeneration, entry: Entry) -> Lead:
        return Lead(Leadership(entry.scope, one.id, entry.request), dict(one.parts))

    def _lead(
        self, dead: StoredGeneration | None, entry: Entry, lead_ms: int, follows: str | None
    ) -> Lead:
        self._counts["led"] += 1
        one = dead or StoredGeneration(entry.request, entry.plan_hash, self._now)
        one.run(entry, self._now + lead_ms, is_client_new=one.id != follows)
        self._pointers.take(entry.request, one.id, one.lease)
        self._known[one.id] = one
        self._point(one, entry)
        self._run_for_all(one, entry)
        return self._led(one, entry)

    def _point(self, one: StoredGeneration, entry: Entry) -> None:
        if entry.idempotency:
            one.is_keyed = True
            one.kept = max(one.kept, self._now + IDEMPOTENCY_MS)
            self._pointers.by_retry_key(entry.retry_key).score(one)
            self._pointers.point_key(entry.idempotency, one.id, self._now)
        elif entry.retry_key:
            self._pointers.keep_retry_key(entry.retry_key).add(one)

    def _run_for_all(self, one: StoredGeneration, entry: Entry) -> None:
        """Others join it by the cache key, unless another runs for them already."""
        if entry.cache_key:
            key = self._pointers.keep_cache_key(entry.cache_key)
            other = self._find(key.running)
            if other is None or not other.is_led(self._now):
                key.running = one.id

    # -- making

    def restore(
        self, leadership: Leadership, entry: Entry, lead_ms: int, parts: Parts
    ) -> FencingResult:
        if self._find(leadership.id) is None:
            leader = leadership.leader
            one = StoredGeneration(
                leadership.id, entry.plan_hash, self._now, leader, clients=1, holder=leader
            )
            one.lease = self._now
            self._known[one.id] = one
            if entry.idempotency is None or not self._is_held(entry):
                self._point(one, entry)
            self._run_for_all(one, entry)
        self.keep(leadership, parts)
        return self.renew(leadership, lead_ms)

    def _is_held(self, entry: Entry) -> bool:
        key = entry.idempotency
        return bool(key and self._find(self._pointers.by_key(key, self._now)[0]))

    def keep(self, leadership: Leadership, parts: Parts) -> FencingResult:
        one = self._find(leadership.id)
        if one and one.state is not State.DONE:
            one.keep(parts, leadership.leader)
        return self._fencing(leadership)

    def renew(self, leadership: Leadership, lead_ms: int) -> FencingResult:
        one = self._find(leadership.id)
        if one and one.is_led_by(leadership.leader):
            one.lease = self._now + lead_ms
        return self._fencing(leadership)

    def _fencing(self, leadership: Leadership) -> FencingResult:
        one = self._find(leadership.id)
        if one is None:
            return FencingResult.MISSING
        return FencingResult.KEPT if one.leader == leadership.leader else FencingResult.FENCED

    # -- ending

    def end(self, end: End) -> FencingResult:
        leadership, outcome = end.leadership, end.outcome
        one = self._find(leadership.id)
        if isinstance(outcome, Failure):
            self.keep(leadership, outcome.parts)
            if one is None and outcome.error is None and not outcome.parts:
                return FencingResult.KEPT  # nothing is lost
        fencing = self._fencing(leadership)
        if one is None or not one.is_led_by(leadership.leader):
            return fencing
        if isinstance(outcome, Completion):
            self._finish(one, outcome)
            if end.leaves and not one.is_leader_gone:
                is_first = not one.delivered
                self._leave(one, leadership.leader, end.retry_key, ClientOutcome.DELIVERED)
                one.presumed = leadership.leader if is_first else ""
        else:
            self._fail(one, outcome, end.retry_key)
        return fencing

    def _finish(self, one: StoredGeneration, completion: Completion) -> None:
        one.end(State.DONE, completion.result, self._now)
        one.parts = {}
        one.dies = self._now + completion.life_ms
        one.kept = max(one.kept, self._now + completion.keep_ms)
        if completion.cache_key:
            key = self._pointers.keep_cache_key(completion.cache_key)
            if key.running == one.id:
                key.running = ""
            if completion.cache_ms > 0:
                key.done, one.cached = one.id, self._now + completion.cache_ms

    def _fail(self, one: StoredGeneration, failure: Failure, retry_key: str | None) -> None:
        """Repeats of the request find parts and doubts, if there are any."""
        one.end(State.FAILED, failure.error or b"", self._now)
        one.is_doubtful = failure.doubtful and failure.error is not None
        if failure.error is None:
            self._count_leader_out(one)
            if not one.clients and not one.parts:
                del self._known[one.id]
        retried = self._pointers.by_retry_key(retry_key)
        if one.is_doubtful or (one.parts and not one.is_keyed):
            retried.score(one, UNCLAIMED)
        elif not one.parts:
            retried.drop(one.id)

    def _count_leader_out(self, one: StoredGeneration) -> None:
        one.clients = max(0, one.clients - (not one.is_leader_gone))
        one.is_leader_gone = True

    # -- clients

    def leave(self, leave: Leave, *, has_left: bool) -> None:
        request = leave.settlement.reservation
        if leave.generation is None:
            if not has_left:
                self._withdraw(request, leave.retry_key)
            return
        one = self._find(leave.generation)
        if one is None:
            return
        if one.presumed == request:  # its answer was taken for delivered
            one.presumed, one.delivered = "", 0
        elif has_left and (one.leader != request or one.is_leader_gone):
            return  # the generation has heard of it
        self._leave(one, request, leave.retry_key, leave.outcome)

    def _leave(
        self,
        one: StoredGeneration,
        request: str,
        retry_key: str | None,
        outcome: ClientOutcome,
    ) -> None:
        if one.leader == request:
            self._count_leader_out(one)
        elif request in one.former:
            one.former.remove(request)  # counted out when its successor took over
            if outcome is ClientOutcome.DELIVERED:
                return  # of what it made itself
        else:
            # The store may have forgotten a follower, not the leader.
            one.clients = max(0 if one.is_leader_gone else 1, one.clients - 1)
        retried = self._pointers.by_retry_key(retry_key)
        if outcome is ClientOutcome.DELIVERED:
            one.presumed = ""
            one.delivered = one.delivered or self._now
            retried.score(one)
            return
        if one.claimed == request:
            one.claimed = ""
        is_unclaimed = not (
            one.clients or one.delivered or one.is_keyed or one.state is State.FAILED
        )
        if outcome is ClientOutcome.GONE and is_unclaimed:
            retried.score(one, UNCLAIMED)

    def client_gone(self, leadership: Leadership, retry_key: str | None) -> None:
        one = self._find(leadership.id)
        if one and one.is_led_by(leadership.leader):
            self._leave(one, leadership.leader, retry_key, ClientOutcome.GONE)

    def _withdraw(self, request: str, retry_key: str | None) -> None:
        """Nobody heard what place it was given: hand over what it leads, or adopted."""
        if one := self._led_by(request):
            self._fail(one, Failure(), retry_key)
            return
        one = self._find(self._pointers.taken_by(request, self._now))
        if one and one.claimed == request:
            self._leave(one, request, retry_key, ClientOutcome.GONE)

    def poll(self, id_: str) -> GenerationStatus:
        one = self._find(id_)
        if one is None:
            return GenerationStatus(State.MISSING)
        age_ms = self._now - one.ended
        if one.is_led(self._now):
            return GenerationStatus(State.RUNNING)
        if one.state is State.DONE and one.dies > self._now:
            return GenerationStatus(State.DONE, one.payload, age_ms)
        if one.state is State.FAILED and one.payload and age_ms <= SHARED_ERROR_MS:
            return GenerationStatus(State.FAILED, one.payload, age_ms)
        return GenerationStatus(State.DEAD)

    # -- tidying

    def pin_images(self, id_: str, pin_ms: int) -> None:
        one = self._find(id_)
        if one and one.state is State.DONE:
            one.pinned = self._now + pin_ms

    def discard(self, id_: str) -> None:
        one = self._find(id_)
        if one and one.state is State.DONE:
            del self._known[id_]

    def cache_stats(self) -> CacheStats:
        cached = self._cached()
        return CacheStats(len(cached), sum(len(one.payload) for one in cached), dict(self._counts))

    def purge(self) -> int:
        cached = self._cached()
        for one in cached:
            one.cached = one.pinned = 0
        self._sweep()
        return len(cached)

    def _cached(self) -> list[StoredGeneration]:
        return [one for one in self._known.values() if one.served_until > self._now]

    @property
    def size(self) -> int:
        return len(self._known)

    def drop(self, excess: int) -> None:
        """Forget so many, the first to expire first; none that runs."""
        ended = (one for one in self._known.values() if one.state is not State.RUNNING)
        for one in nsmallest(excess, ended, key=attrgetter("gone")):
            del self._known[one.id]
        self._sweep()

    def _sweep(self) -> None:
        self._known = {id_: one for id_, one in self._known.items() if one.gone > self._now}
        self._pointers.forget(self._known, self._now)
        self._sweep_at = self._now + SWEEP_EVERY_MS

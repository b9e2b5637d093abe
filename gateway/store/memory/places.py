"""Generations in one process, by what they are found, and where a request would stand among them.

`lua/generations/scope.lua` keeps the same, and `choose.lua` chooses in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Literal

from msgspec import Struct, field

from gateway.store.generations import (
    CANDIDATES,
    DELIVERED_REUSED_MS,
    DOUBT_MS,
    FORMER_MAX,
    IDEMPOTENCY_MS,
    MARGIN_MS,
    PARTS_KEPT_MS,
    RETRIED_MAX,
    UNDELIVERED_REUSED_MS,
    Entry,
    How,
    Idempotency,
    Parts,
    Refusal,
    State,
)

UNCLAIMED = 2**50
"""Added to a generation's start time once nobody waits for it: it goes first."""


class StoredGeneration(Struct):
    """Times are Unix milliseconds; 0 is never."""

    id: str
    plan_hash: str
    begun: int
    leader: str = ""
    state: State = State.RUNNING
    lease: int = 0
    clients: int = 0
    """Requests that lead it, follow it or are being sent it."""
    is_leader_gone: bool = False
    """Whether the leader's client no longer counts among them."""
    claimed: str = ""
    """The retry that adopted it."""
    holder: str = ""
    """The leader, or the latest repeat of its request: it has the place of concurrency."""
    parts: dict[int, tuple[str, ...]] = field(default_factory=dict)
    payload: bytes = b""
    is_doubtful: bool = False
    ended: int = 0
    dies: int = 0
    pinned: int = 0
    cached: int = 0
    kept: int = 0
    """Until when retries and repeats may have it."""
    delivered: int = 0
    presumed: str = ""
    """Whose answer `end` took for delivered."""
    former: list[str] = field(default_factory=list)
    """Leaders before, that are no clients any more but have yet to leave."""
    is_keyed: bool = False
    """An idempotency key points to it: what nobody was given waits for that."""

    @property
    def gone(self) -> int:
        """When all of it may be forgotten."""
        if self.state is State.DONE:
            return max(self.kept, self.pinned, min(self.cached, self.dies))
        return max(self.lease, self.ended) + PARTS_KEPT_MS

    @property
    def served_until(self) -> int:
        """For the cache."""
        return min(self.cached, max(self.dies, self.pinned))

    def is_led(self, now: int) -> bool:
        return self.state is State.RUNNING and self.lease > now

    def is_led_by(self, request: str) -> bool:
        return self.state is State.RUNNING and self.leader == request

    def is_doubt(self, entry: Entry, how: How, now: int) -> bool:
        """Whether its unknown outcome is repeated, and it is not taken over."""
        if not self.is_doubtful or entry.fresh or self.plan_hash != entry.plan_hash:
            return False
        is_young = how is How.ADOPTED and now - self.ended <= DOUBT_MS
        return is_young or entry.is_retry or how is How.REPLAYED

    def keep(self, parts: Parts, request: str) -> None:
        """The leader's parts replace older ones; another's only fill gaps."""
        is_leader = self.leader == request
        self.parts = {**self.parts, **parts} if is_leader else {**parts, **self.parts}

    def run(self, entry: Entry, lease: int, *, is_client_new: bool) -> None:
        """`entry` leads. A dead leader no longer counts as a client."""
        died = self.state is State.RUNNING and self.leader and not self.is_leader_gone
        self.clients = max(1, self.clients - bool(died) + is_client_new)
        if self.leader and (died or self.is_leader_gone):
            self.former = [*self.former, self.leader][-FORMER_MAX:]
        if self.plan_hash != entry.plan_hash:
            self.parts, self.plan_hash = {}, entry.plan_hash
        self.leader = self.holder = entry.request
        self.state, self.lease = State.RUNNING, lease
        self.claimed, self.payload, self.ended = "", b"", 0
        self.is_doubtful = self.is_leader_gone = False
        self.delivered, self.presumed = 0, ""

    def end(self, state: State, payload: bytes, now: int) -> None:
        self.state, self.payload, self.ended, self.lease = state, payload, now, 0

    def rank(self, now: int, *, is_unclaimed: bool) -> int | None:
        """How well it serves a retry. None: past that; 0: nobody waits for it."""
        is_done = self.state is State.DONE
        since, allowed_ms = self.ended, UNDELIVERED_REUSED_MS
        if self.delivered:
            since, allowed_ms = self.delivered, DELIVERED_REUSED_MS
        if is_done and now - since > allowed_ms:
            return None
        if is_unclaimed:
            return 0
        if self.delivered or self.claimed:
            return 3
        return 2 if is_done else 1


class CacheKey(Struct):
    """The generation that runs for all, and the one to be served."""

    running: str = ""
    done: str = ""


class RetryKey:
    """The generations that an SDK's retry may mean."""

    __slots__ = ("_scores",)

    def __init__(self) -> None:
        self._scores: dict[str, int] = {}
        """Start times, some plus UNCLAIMED."""

    def add(self, one: StoredGeneration) -> None:
        self._scores[one.id] = one.begun
        while len(self._scores) > RETRIED_MAX:
            del self._scores[min(self._scores, key=lambda id_: (self._scores[id_], id_))]

    def score(self, one: StoredGeneration, extra: int = 0) -> None:
        if one.id in self._scores:
            self._scores[one.id] = one.begun + extra

    def drop(self, id_: str) -> None:
        self._scores.pop(id_, None)

    def best(
        self, find: Callable[[str], StoredGeneration | None], entry: Entry, now: int
    ) -> StoredGeneration | None:
        """The first of the lowest rank; without a retry only unclaimed ones."""
        best, best_rank = None, 9
        for id_, score in self._first(0 if entry.is_retry else UNCLAIMED):
            one = find(id_)
            is_unclaimed = score >= UNCLAIMED
            rank = one.rank(now, is_unclaimed=is_unclaimed) if one else None
            if one is None or rank is None:
                self.drop(id_)
            elif rank < best_rank and may_reuse(one, entry, now):
                best, best_rank = one, rank
        return best

    def forget(self, known: Container[str]) -> bool:
        """Drop what is over. Returns whether anything is left."""
        self._scores = {id_: score for id_, score in self._scores.items() if id_ in known}
        return bool(self._scores)

    def _first(self, least: int) -> list[tuple[str, int]]:
        ordered = sorted(self._scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
        return [item for item in ordered if item[1] >= least][:CANDIDATES]


def may_reuse(one: StoredGeneration, entry: Entry, now: int) -> bool:
    """A doubt is repeated even to a request that wants something new and is no retry."""
    is_welcome = entry.is_retry or entry.may_reuse_unclaimed
    return is_welcome or one.is_doubt(entry, How.ADOPTED, now)


class Pointers:
    """All pointers to the generations of one scope."""

    def __init__(self) -> None:
        self._cache_keys: dict[str, CacheKey] = {}
        self._keys: dict[str, tuple[str, str, int]] = {}
        """Id, body and expiry by idempotency key."""
        self._retry_keys: dict[str, RetryKey] = {}
        self._taken: dict[str, tuple[str, int]] = {}
        """Id and expiry by the request that took it over."""

    def by_cache_key(self, cache_key: str) -> CacheKey:
        """Read-only; `keep_cache_key` is for writing."""
        return self._cache_keys.get(cache_key) or CacheKey()

    def keep_cache_key(self, cache_key: str) -> CacheKey:
        return self._cache_keys.setdefault(cache_key, CacheKey())

    def by_retry_key(self, retry_key: str | None) -> RetryKey:
        """For reading and changing."""
        return self._retry_keys.get(retry_key or "") or RetryKey()

    def keep_retry_key(self, retry_key: str) -> RetryKey:
        return self._retry_keys.setdefault(retry_key, RetryKey())

    def by_key(self, idempotency: Idempotency, now: int) -> tuple[str, bool]:
        """The id behind a key, and whether it came with the same body."""
        id_, body, until = self._keys.get(idempotency.key, ("", "", 0))
        return (id_ if until > now else ""), body == idempotency.body

    def point_key(self, idempotency: Idempotency, id_: str, now: int) -> None:
        self._keys[idempotency.key] = (id_, idempotency.body, now + IDEMPOTENCY_MS)

    def take(self, request: str, id_: str, until: int) -> None:
        """A repeat of this request is given the same generation, as the answer may be lost."""
        if id_ != request:
            self._taken[request] = id_, until

    def taken_by(self, request: str, now: int) -> str:
        """Empty for none."""
        id_, until = self._taken.get(request, ("", 0))
        return id_ if until > now else ""

    def forget(self, known: Container[str], now: int) -> None:
        self._taken = {name: taken for name, taken in self._taken.items() if taken[1] > now}
        self._cache_keys = {
            key: ids
            for key, ids in self._cache_keys.items()
            if ids.running in known or ids.done in known
        }
        self._keys = {key: value for key, value in self._keys.items() if value[0] in known}
        self._retry_keys = {
            key: value for key, value in self._retry_keys.items() if value.forget(known)
        }


class PlaceChoice(Struct, frozen=True):
    """Nothing is written yet."""

    kind: Literal["lead", "led", "joined", "found", "doubtful"] | Refusal
    one: StoredGeneration | None = None
    """For `lead`, the generation that would be taken over."""
    how: How = How.JOINED

    def answers_at_once(self, entry: Entry, follows: str | None) -> StoredGeneration | None:
        """Whose URLs are in the cache: the answer is there, and too short to be read slowly."""
        is_hit = self.kind == "found" and self.how is How.HIT and entry.needs_url
        return self.one if is_hit and not (entry.idempotency or follows) else None

    @property
    def former(self) -> str | None:
        """The earlier attempt of the same request, whose place of concurrency this one may have."""
        is_repeat = self.one is not None and self.how in {How.REPLAYED, How.ADOPTED}
        return self.one.holder if self.one and is_repeat else None

    def known_images(self, plan_hash: str) -> int | None:
        """How many are paid for already; None where another pays."""
        if self.kind not in {"lead", "led"}:
            return None
        if self.one is None or self.one.plan_hash != plan_hash:
            return 0
        return sum(len(urls) for urls in self.one.parts.values())


class PlaceFinder:
    """Looks among the generations of one scope, and writes nothing."""

    def __init__(self) -> None:
        self._now = 0
        self._known: dict[str, StoredGeneration] = {}
        self._pointers = Pointers()

    def _find(self, id_: str) -> StoredGeneration | None:
        one = self._known.get(id_)
        return one if one and one.gone > self._now else None

    def _led_by(self, request: str) -> StoredGeneration | None:
        for id_ in (self._pointers.taken_by(request, self._now), request):
            one = self._find(id_)
            if one and one.is_led_by(request):
                return one
        return None

    def choose(self, entry: Entry, follows: str | None) -> PlaceChoice:
        if own := self._led_by(entry.request):
            return PlaceChoice("led", own)
        if entry.idempotency:
            id_, is_same = self._pointers.by_key(entry.idempotency, self._now)
            if self._find(id_) and not is_same:
                return PlaceChoice(Refusal.CONFLICT)
        candidates = list(self._candidates(entry, follows))
        for one, how in candidates:
            if free := self._free(one, entry, how, follows):
                return free
        if entry.only_if_cached:
            return PlaceChoice(Refusal.MISSING)
        return self._takes_over(entry, candidates)

    def _takes_over(
        self, entry: Entry, candidates: Sequence[tuple[StoredGeneration, How]]
    ) -> PlaceChoice:
        for one, how in candidates:
            if one.state is not State.DONE:
                is_doubt = one.is_doubt(entry, how, self._now)
                return PlaceChoice("doubtful" if is_doubt else "lead", one, how)
        return PlaceChoice("lead")

    def _candidates(
        self, entry: Entry, follows: str | None
    ) -> Iterator[tuple[StoredGeneration, How]]:
        """In order of preference among equal costs."""
        if followed := self._find(follows or ""):
            yield followed, How.JOINED
        if entry.idempotency:
            id_, _ = self._pointers.by_key(entry.idempotency, self._now)
            if repeated := self._find(id_):
                yield repeated, How.REPLAYED
        elif follows is None and (adopted := self._adopt(entry)):
            yield adopted, How.ADOPTED
        if entry.cache_key and not entry.fresh:
            key = self._pointers.by_cache_key(entry.cache_key)
            done = self._find(key.done)
            if done and self._is_cached(done, entry):
                yield done, How.HIT
            if running := self._find(key.running):
                yield running, How.JOINED

    def _is_cached(self, one: StoredGeneration, entry: Entry) -> bool:
        is_young = entry.max_age_ms is None or self._now - one.ended <= entry.max_age_ms
        return one.cached > self._now and is_young

    def _adopt(self, entry: Entry) -> StoredGeneration | None:
        if entry.retry_key is None or (entry.fresh and not entry.is_retry):
            return None
        # It has one already, if the answer to this very request was lost.
        own = self._find(self._pointers.taken_by(entry.request, self._now))
        if own and own.claimed == entry.request:
            return own
        return self._pointers.by_retry_key(entry.retry_key).best(self._find, entry, self._now)

    def _free(
        self, one: StoredGeneration, entry: Entry, how: How, follows: str | None
    ) -> PlaceChoice | None:
        """The choice, if it costs the request nothing."""
        if one.is_led_by(entry.request):
            return PlaceChoice("led", one, how)
        if one.is_led(self._now) and not entry.only_if_cached:
            return PlaceChoice("joined", one, how)
        if one.state is State.DONE:
            has_bytes = one.pinned > self._now and not entry.needs_url
            margin_ms = 0 if one.id == follows else MARGIN_MS
            if has_bytes or one.dies - margin_ms > self._now:
                return PlaceChoice("found", one, how)
        return None

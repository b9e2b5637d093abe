"""By what a generation is found in one process; `store/lua/flights.lua` keeps the same."""

from __future__ import annotations

from collections.abc import Callable, Container

from msgspec import Struct, field

from gateway.store.generations import (
    ADOPTABLE_MAX,
    CANDIDATES,
    DELIVERED_ADOPTED_MS,
    EXCUSE_MS,
    IDEMPOTENCY_MS,
    PARTS_KEPT_MS,
    UNDELIVERED_ADOPTED_MS,
    Idempotency,
    Parts,
    Phase,
)

ORPHAN = 2**50
"""Added to the time at which a generation began once nobody waits for it: it goes first."""


class Generation(Struct):
    """Times are Unix milliseconds; 0 is never."""

    id: str
    plan: str
    begun: int
    leader: str = ""
    phase: Phase = Phase.RUNNING
    lease: int = 0
    clients: int = 0
    claimed: str = ""
    """The retry that adopted it."""
    parts: dict[int, tuple[str, ...]] = field(default_factory=dict)
    payload: bytes = b""
    ended: int = 0
    dies: int = 0
    held: int = 0
    cached: int = 0
    kept: int = 0
    """Until when retries and repeats have a right to it."""
    delivered: int = 0

    @property
    def gone(self) -> int:
        """When all of it may be forgotten."""
        if self.phase is Phase.DONE:
            return max(self.kept, self.held, min(self.cached, self.dies))
        return max(self.lease, self.ended) + PARTS_KEPT_MS

    @property
    def shelved(self) -> int:
        """Until when the cache may serve it."""
        return min(self.cached, max(self.dies, self.held))

    def is_led(self, now: int) -> bool:
        """Whether somebody works on it, as far as anybody knows."""
        return self.phase is Phase.RUNNING and self.lease > now

    def is_led_by(self, request: str) -> bool:
        return self.phase is Phase.RUNNING and self.leader == request

    def keep(self, parts: Parts, request: str) -> None:
        """The leader's parts replace older ones; another's are taken where there are none."""
        is_leader = self.leader == request
        self.parts = {**self.parts, **parts} if is_leader else {**parts, **self.parts}

    def run(self, leader: str, lease: int) -> None:
        self.leader, self.phase, self.lease = leader, Phase.RUNNING, lease
        self.claimed, self.payload, self.ended = "", b"", 0

    def end(self, phase: Phase, payload: bytes, now: int) -> None:
        self.phase, self.payload, self.ended, self.lease = phase, payload, now, 0

    def rank(self, request: str, now: int, *, is_orphan: bool) -> int | None:
        """How well a retry is served by it. None: past adoption; 0: nobody waits for it."""
        is_done = self.phase is Phase.DONE
        since, allowed_ms = self.ended, UNDELIVERED_ADOPTED_MS
        if self.delivered:
            since, allowed_ms = self.delivered, DELIVERED_ADOPTED_MS
        if is_done and now - since > allowed_ms:
            return None
        if self.claimed == request:
            return -1  # the same look, repeated
        if is_orphan:
            return 0
        if self.delivered or self.claimed:
            return 3
        return 2 if is_done else 1


class Slot(Struct):
    """The generations of a cache key: the one that runs for all, and the one to be served."""

    running: str = ""
    done: str = ""


class Adoptable:
    """The generations that retries of one kind may adopt."""

    __slots__ = ("_excuses", "_scores")

    def __init__(self) -> None:
        self._scores: dict[str, int] = {}
        """When each began, or that and ORPHAN."""
        self._excuses: dict[str, int] = {}
        """Requests answered by an error, and when."""

    def add(self, one: Generation) -> None:
        self._scores[one.id] = one.begun
        while len(self._scores) > ADOPTABLE_MAX:
            del self._scores[min(self._scores, key=lambda id_: (self._scores[id_], id_))]

    def score(self, one: Generation, extra: int = 0) -> None:
        if one.id in self._scores:
            self._scores[one.id] = one.begun + extra

    def drop(self, id_: str) -> None:
        self._scores.pop(id_, None)

    def excuse(self, request: str, now: int) -> None:
        self._excuses[request] = now

    def is_excused(self, now: int) -> bool:
        """Whether an answered error explains a retry; each explains one."""
        self.forget(self._scores, now)
        if not self._excuses:
            return False
        del self._excuses[min(self._excuses, key=lambda one: (self._excuses[one], one))]
        return True

    def best(
        self,
        find: Callable[[str], Generation | None],
        request: str,
        now: int,
        *,
        is_retry: bool,
    ) -> Generation | None:
        """The first of the lowest rank; only orphans for who is no retry."""
        best, best_rank = None, 9
        for id_, score in self._first(0 if is_retry else ORPHAN):
            one = find(id_)
            rank = one.rank(request, now, is_orphan=score >= ORPHAN) if one else None
            if rank is None:
                self.drop(id_)
            elif rank < best_rank:
                best, best_rank = one, rank
        if is_retry and best_rank > 0 and self.is_excused(now):
            return None
        return best

    def forget(self, known: Container[str], now: int) -> bool:
        """Drop what is over, and say whether anything is left."""
        self._scores = {id_: score for id_, score in self._scores.items() if id_ in known}
        self._excuses = {id_: at for id_, at in self._excuses.items() if at + EXCUSE_MS > now}
        return bool(self._scores or self._excuses)

    def _first(self, least: int) -> list[tuple[str, int]]:
        ordered = sorted(self._scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
        return [item for item in ordered if item[1] >= least][:CANDIDATES]


class Pointers:
    """Everything that leads to the generations of one scope."""

    def __init__(self) -> None:
        self._slots: dict[str, Slot] = {}
        self._keys: dict[str, tuple[str, str, int]] = {}
        """By idempotency key: id, body, expiry."""
        self._adoptable: dict[str, Adoptable] = {}
        self._taken: dict[str, tuple[str, int]] = {}
        """By the request that took it over: id, expiry."""

    def slot(self, cache_key: str) -> Slot:
        return self._slots.setdefault(cache_key, Slot())

    def adoptable(self, adoption: str | None) -> Adoptable:
        return self._adoptable.setdefault(adoption or "", Adoptable())

    def by_key(self, idempotency: Idempotency, now: int) -> tuple[str, bool]:
        """The id behind a key, and whether it came with the same body."""
        id_, body, until = self._keys.get(idempotency.key, ("", "", 0))
        return (id_ if until > now else ""), body == idempotency.body

    def point_key(self, idempotency: Idempotency, id_: str, now: int) -> None:
        self._keys[idempotency.key] = (id_, idempotency.body, now + IDEMPOTENCY_MS)

    def lead(self, one: Generation) -> None:
        """So that who takes it over is given the same again, if the answer is lost."""
        if one.id != one.leader:
            self._taken[one.leader] = one.id, one.lease

    def led_by(self, request: str, now: int) -> str:
        """The id of what a request leads, if anything."""
        id_, until = self._taken.get(request, (request, 0))
        return id_ if until > now else request

    def forget(self, known: Container[str], now: int) -> None:
        """Drop the pointers to what is gone."""
        self._taken = {name: taken for name, taken in self._taken.items() if taken[1] > now}
        self._slots = {
            key: slot
            for key, slot in self._slots.items()
            if slot.running in known or slot.done in known
        }
        self._keys = {key: value for key, value in self._keys.items() if value[0] in known}
        self._adoptable = {
            key: value for key, value in self._adoptable.items() if value.forget(known, now)
        }

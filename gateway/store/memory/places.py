"""Where a request would stand, in one process; same as `lua/generations/choose.lua`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec import Struct

from gateway.store.generations import MARGIN_MS, Entry, How, Refusal, State
from gateway.store.memory.pointers import Pointers, StoredGeneration


class Choice(Struct, frozen=True):
    """Nothing is written yet."""

    kind: Literal["lead", "led", "joined", "found", "doubtful"] | Refusal
    one: StoredGeneration | None = None
    """For `lead`, the generation that would be taken over."""
    how: How = How.JOINED

    @property
    def pays(self) -> bool:
        return self.kind in {"lead", "led"}

    def answers_at_once(self, entry: Entry, follows: str | None) -> StoredGeneration | None:
        """Whose URLs are in the cache: the answer is there, and too short to be read slowly."""
        is_hit = self.kind == "found" and self.how is How.HIT and entry.needs_url
        return self.one if is_hit and not (entry.idempotency or follows) else None

    @property
    def former(self) -> str | None:
        """The earlier attempt of the same request, whose place of concurrency this one may have."""
        is_repeat = self.one is not None and self.how in {How.REPLAYED, How.ADOPTED}
        return self.one.holder if self.one and is_repeat else None

    def known_images(self, plan: str) -> int:
        """How many are paid for already."""
        if self.one is None or self.one.plan != plan:
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

    def choose(self, entry: Entry, follows: str | None) -> Choice:
        if own := self._led_by(entry.request):
            return Choice("led", own)
        if entry.idempotency:
            id_, is_same = self._pointers.by_key(entry.idempotency, self._now)
            if self._find(id_) and not is_same:
                return Choice(Refusal.CONFLICT)
        candidates = list(self._candidates(entry, follows))
        for one, how in candidates:
            if free := self._free(one, entry, how, follows):
                return free
        if entry.only_if_cached:
            return Choice(Refusal.MISSING)
        return self._takes_over(entry, candidates)

    def _takes_over(
        self, entry: Entry, candidates: Sequence[tuple[StoredGeneration, How]]
    ) -> Choice:
        for one, how in candidates:
            if one.state is not State.DONE:
                is_doubt = one.is_doubt(entry, how, self._now)
                return Choice("doubtful" if is_doubt else "lead", one, how)
        return Choice("lead")

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
    ) -> Choice | None:
        """The choice, if it costs the request nothing."""
        if one.is_led_by(entry.request):
            return Choice("led", one, how)
        if one.is_led(self._now) and not entry.only_if_cached:
            return Choice("joined", one, how)
        if one.state is State.DONE:
            has_bytes = one.pinned > self._now and not entry.needs_url
            margin_ms = 0 if one.id == follows else MARGIN_MS
            if has_bytes or one.dies - margin_ms > self._now:
                return Choice("found", one, how)
        return None

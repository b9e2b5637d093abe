"""Where a request stands: it leads, it follows, or there is a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from gateway.domain.errors import GatewayError
from gateway.results.cache_policy import Record
from gateway.store.generations import Entry, How, Leadership, Parts, Refusal
from gateway.store.limits import Settlement, Verdict


class Done(Struct, frozen=True):
    """A complete result; its URLs are alive, or its images' bytes are pinned."""

    entry: Entry
    id: str
    record: Record
    how: How
    age_s: float


class Follow(Struct, frozen=True):
    """Another request is paying for the same."""

    id: str
    how: How


class Repeated(Struct, frozen=True):
    """An earlier attempt ended without anybody knowing whether it was billed: its error again."""

    id: str
    error: GatewayError
    age_s: float


class Leading(Protocol):
    async def progress(
        self, leadership: Leadership, index: int, urls: Sequence[str], paid: Settlement | None
    ) -> None: ...

    async def finish(
        self, lead: Lead, record: Record, cache_s: float, paid: Settlement
    ) -> Verdict | None: ...

    async def fail(
        self, lead: Lead, error: GatewayError | None, paid: Settlement
    ) -> Verdict | None: ...


class Lead:
    """This request pays. It must end by `finish`, `fail` or `hand_over`; none of them raises."""

    __slots__ = ("_ledger", "entry", "leadership", "parts")

    def __init__(self, ledger: Leading, entry: Entry, leadership: Leadership, parts: Parts) -> None:
        self._ledger = ledger
        self.entry = entry
        self.leadership = leadership
        self.parts = parts
        """What an earlier leader has paid for: URLs by upstream call, perhaps not all."""

    @property
    def id(self) -> str:
        return self.leadership.id

    async def progress(self, index: int, urls: Sequence[str], paid: Settlement | None) -> None:
        """Keep a call's images so far; without `paid` only in this worker: the end follows."""
        await self._ledger.progress(self.leadership, index, urls, paid)

    async def finish(self, record: Record, cache_s: float, paid: Settlement) -> Verdict | None:
        """Publish and cache the result. The ends return where the limits stand, None if unknown."""
        return await self._ledger.finish(self, record, cache_s, paid)

    async def fail(self, error: GatewayError, paid: Settlement) -> Verdict | None:
        """Publish the failure; what was paid for stays for the retry."""
        return await self._ledger.fail(self, error, paid)

    async def hand_over(self, paid: Settlement) -> Verdict | None:
        """Let a follower take over: the obstacle is this request's own."""
        return await self._ledger.fail(self, None, paid)


Place = Lead | Follow | Done | Repeated | Refusal


class Decision(Struct, frozen=True):
    """Where a request stands with its tenant's limits, and its place unless they refuse it."""

    verdict: Verdict
    place: Place | None
    has_left: bool = False
    """No `leave` follows."""

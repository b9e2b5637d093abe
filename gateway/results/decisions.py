"""Where a request stands: it leads, it follows, or there is a result."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from msgspec import Struct

from gateway.domain.errors import GatewayError
from gateway.results.cache_policy import Record
from gateway.store.generations import Claim, Entry, How, Parts, Refusal


class Done(Struct, frozen=True):
    """A complete result; its URLs are alive, or its images' bytes are held."""

    entry: Entry
    id: str
    record: Record
    how: How
    age_s: float


class Failed(Struct, frozen=True):
    """The leader's failure, or this request's own deadline; each is given an instance to raise."""

    error: GatewayError


class Leading(Protocol):
    """What a leader asks of its ledger."""

    async def keep_part(self, claim: Claim, index: int, urls: Sequence[str]) -> None: ...

    async def finish(self, claim: Claim, entry: Entry, record: Record, cache_s: float) -> None: ...

    async def fail(
        self, claim: Claim, entry: Entry, error: GatewayError | None, *, answered: bool
    ) -> None: ...

    async def abandon(self, claim: Claim) -> bool: ...


class Following(Protocol):
    """What a follower asks of its ledger."""

    def outcome(self, entry: Entry, id_: str, deadline: float) -> Outcome: ...


class Lead:
    """This request pays. It must end by `finish`, `fail`, `step_down` or `abandon`.

    None of them raises: what the store cannot be told now it is told later.
    """

    __slots__ = ("_ledger", "claim", "entry", "parts")

    def __init__(self, ledger: Leading, entry: Entry, claim: Claim, parts: Parts) -> None:
        self._ledger = ledger
        self.entry = entry
        self.claim = claim
        self.parts = parts
        """What an earlier leader has paid for already: URLs by upstream call, perhaps not all."""

    @property
    def id(self) -> str:
        return self.claim.id

    async def progress(self, index: int, urls: Sequence[str]) -> None:
        """One upstream call has brought these images, all that it has brought so far."""
        await self._ledger.keep_part(self.claim, index, urls)

    async def finish(self, record: Record, cache_s: float = 0.0) -> None:
        """Give the result to all who wait, and keep it: in the cache for `cache_s`."""
        await self._ledger.finish(self.claim, self.entry, record, cache_s)

    async def fail(self, error: GatewayError, *, answered: bool = True) -> None:
        """Give the failure to all who wait; what was paid for stays for the retry.

        `answered`: the client is told, too, and may send the request again for that reason.
        """
        await self._ledger.fail(self.claim, self.entry, error, answered=answered)

    async def step_down(self, *, answered: bool = True) -> None:
        """Leave it to one of those who wait: the obstacle is this request's own, as its limits."""
        await self._ledger.fail(self.claim, self.entry, None, answered=answered)

    async def abandon(self) -> bool:
        """Give up, the client having hung up before anything was sent; False: somebody waits."""
        return await self._ledger.abandon(self.claim)


class Follow(Struct, frozen=True):
    """Another request is paying for the same."""

    ledger: Following
    entry: Entry
    id: str
    how: How

    def outcome(self, deadline: float) -> Outcome:
        """Wait for the result until `deadline`, in the event loop's seconds.

        Lead: the leader is gone, and this request took over. Cancelled, it leaves by itself.
        """
        return self.ledger.outcome(self.entry, self.id, deadline)


Outcome = Coroutine[Any, Any, Done | Lead | Failed]
Place = Lead | Follow | Done | Failed | Refusal

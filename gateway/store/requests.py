"""One request's way through shared state: it enters once, and leaves once (0011).

Every operation names its request and may be repeated, as its answer may be lost.
"""

from collections.abc import Sequence
from typing import Generic, Protocol

from msgspec import Struct

from gateway.observability.context import ClientOutcome
from gateway.store.generations import (
    Completion,
    Entry,
    Failure,
    FencingResult,
    Leadership,
    Place,
    R,
)
from gateway.store.limits import Settlement, TakeRequest, Verdict


class EnterRequest(Struct, frozen=True, kw_only=True):
    entry: Entry
    take: TakeRequest
    """All that it may use; less is booked where it follows or takes over parts."""
    lead_ms: int
    """A leadership ends this long after its last renewal."""
    follows: str | None = None
    """The generation that it has been following: it has entered before, but may have to pay now."""


class Entered(Struct, Generic[R], frozen=True):
    verdict: Verdict
    place: Place[R] | None
    """None where the verdict refuses."""
    has_left: bool = False
    """No `leave` follows: it is answered with URLs from the cache, and holds nothing."""


class End(Struct, frozen=True, kw_only=True):
    """Before the answer."""

    leadership: Leadership
    retry_key: str | None
    outcome: Completion | Failure
    settlement: Settlement
    """What its leader paid for; its place of concurrency stays taken until it leaves."""
    leaves: bool = False
    """With a Completion: its leader leaves, too. Its answer is short, and presumed delivered."""


class Leave(Struct, frozen=True, kw_only=True):
    """After the last byte of the answer; for who left by `end`, where it was not delivered."""

    settlement: Settlement
    """Zero images without leading; changes nothing after `end`."""
    outcome: ClientOutcome
    scope: str
    generation: str | None = None
    """The one whose images it had, or waited for; None: it had no place."""
    retry_key: str | None = None


class RequestStore(Protocol):
    """Whole decisions about one request. Every operation may raise StoreUnavailable."""

    async def enter(self, request: EnterRequest) -> Entered[bytes]:
        """Find the request's place and admit it, or refuse it and leave no trace.

        Order: `follows`, idempotency key, earlier attempts of the same request, cache; among them,
        what costs nothing, then taking over parts, then a new generation (0021, 0022). The limits
        are asked for what the place costs; a retry may take its first attempt's place of
        concurrency. A Refusal asks and books nothing. A request that is given a
        cached result's URLs is counted, and holds nothing, unless it has an idempotency key, which
        is to find what its client was given.
        """

    async def progress(
        self, leadership: Leadership, index: int, urls: Sequence[str], settlement: Settlement
    ) -> FencingResult:
        """Keep a call's images and book all paid so far, which an expired lease keeps."""

    async def end(self, end: End) -> tuple[FencingResult, Verdict]:
        """End a generation, and settle its leader's reservation whatever FencingResult says.

        No `leave` follows one by which its leader leaves, unless the answer is not delivered.
        """

    async def leave(self, leave: Leave) -> Verdict:
        """Free the request's place, and note what became of its client."""

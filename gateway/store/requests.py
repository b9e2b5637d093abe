"""One request's way through shared state: it enters once, and leaves once.

Entering finds the request its place among the generations and admits it against its tenant's
limits in one step. Nothing is written for a request that is refused. Ending a generation keeps its
result and settles its leader's reservation in one step. Leaving, behind the answer, frees the
request's place of concurrency and says whether the client has its images.

Every operation names its request and may be repeated, its answer having been lost.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from gateway.store.generations import Completion, Entry, Failure, FencingResult, Leadership, Place
from gateway.store.limits import Reservation, Settlement, TakeRequest, Verdict


class EnterRequest(Struct, frozen=True, kw_only=True):
    """A request that wants its images."""

    entry: Entry
    take: TakeRequest
    """Its reservation has the id of the request, and names all images and money it may use if it
    has to make all of them. What is booked is less: nothing for who need not pay, and only what
    the parts of an earlier attempt lack for who takes them over."""
    lead_ms: int
    """A leadership ends so long after its last renewal."""
    follows: str | None = None
    """The generation that this request has been following: it has entered before and holds its
    place already, but may have to pay now."""


class Entered(Struct, frozen=True):
    """What came of it."""

    verdict: Verdict
    place: Place | None
    """None where the verdict refuses."""
    has_left: bool = False
    """No `leave` follows: it is answered with URLs from the cache, and nothing is left to do."""


class ClientOutcome(StrEnum):
    """How a client's wait ended."""

    DELIVERED = "delivered"
    """It has been sent all of its answer."""
    GONE = "gone"
    """It hung up, or ran out of time, without the images."""
    ANSWERED = "answered"
    """It was told an error."""


class End(Struct, frozen=True, kw_only=True):
    """The end of a generation, by its leader."""

    leadership: Leadership
    retry_key: str | None
    outcome: Completion | Failure
    settlement: Settlement
    """The leader's: what it paid for."""
    client: ClientOutcome | None = None
    """Where the leader's client waits no longer, or is about to be told an error: its place of
    concurrency is freed in the same step, and no `leave` follows. None: `leave` follows."""


class Leave(Struct, frozen=True, kw_only=True):
    """A request is over, and so is the sending of its answer."""

    settlement: Settlement
    """Zero images for a request that led nothing; of one that was settled by `end` it changes
    nothing any more."""
    outcome: ClientOutcome
    scope: str
    generation: str | None = None
    """The one whose images it had, or waited for; None: it had no place."""
    retry_key: str | None = None


def reserved_for(whole: Reservation, *, pays: bool, known_images: int) -> Reservation:
    """What a request reserves of what it might use at most.

    Nothing where another pays, and only what is missing where some images are paid for already.
    """
    images = max(0, whole.images - known_images) if pays else 0
    cost = whole.cost * images // max(1, whole.images)
    return replace(whole, images=images, cost=cost)


class RequestStore(Protocol):
    """Whole decisions about one request. Every operation may raise StoreUnavailable."""

    async def enter(self, request: EnterRequest) -> Entered:
        """Find the request's place and admit it, or refuse it and leave no trace.

        The place is looked for in this order: `follows`, idempotency key, earlier attempts of the
        same request, cache. What costs nothing goes first; then a generation that failed or whose
        leader is dead is taken over, with its parts; then a new one starts.

        The limits are asked for what the place costs: one request and one place of concurrency,
        and images and money only for what this request has to make. A retry that finds the
        generation of its own earlier attempt while that still holds its place of concurrency takes
        the place over. A Conflict or a Missing is told without asking or booking anything.

        A request that is given a cached result's URLs is counted, and holds nothing. One with an
        idempotency key does, for the key is to find what its client was given.
        """

    async def progress(
        self, leadership: Leadership, index: int, urls: Sequence[str], settlement: Settlement
    ) -> FencingResult:
        """Keep what one upstream call has brought so far, and book it: it is paid for.

        The settlement has all that the leader has paid for until now. A lease that ends gives back
        only what is beyond it.
        """

    async def end(self, end: End) -> tuple[FencingResult, Verdict]:
        """Tell everybody how a generation ended, and settle its leader's reservation.

        The settlement is booked whatever the store makes of the leader's word.
        """

    async def leave(self, leave: Leave) -> Verdict:
        """Free the request's place, and note what became of its client."""

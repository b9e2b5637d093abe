"""What the ledger asks of shared state: who pays for a generation, once.

A generation is one paid piece of work. Whatever must find it holds its id: the cache key, an
idempotency key, and the hash under which an SDK's unmarked retry looks. One generation has one
leader at a time, named by its request; only the leader's word counts, so a leader that was taken
for dead cannot undo its successor's work.

A scope is a tenant, or the tenants that share a cache. Nothing is ever found across scopes.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

SHARED_ERROR_MS = 15_000
"""How long those who wait for a generation are given its failure."""
PARTS_KEPT_MS = 600_000
"""How long paid parts wait for a retry, after a failure or a leader's death."""
DELIVERED_ADOPTED_MS = 60_000
"""A retry this long after a delivery takes the answer for lost …"""
UNDELIVERED_ADOPTED_MS = 600_000
"""… and this long after its end a result that nobody was given."""
IDEMPOTENCY_MS = 86_400_000
MARGIN_MS = 60_000
"""A stored result is not served when its URLs have less than this to live."""
EXCUSE_MS = 60_000
"""How long an answered error explains a retry."""
CANDIDATES = 16
"""Generations that one look for an adoption weighs; identical requests at once may be many."""
ADOPTABLE_MAX = 64
"""Generations kept per adoption hash."""

Parts = Mapping[int, tuple[str, ...]]
"""By upstream call: the image URLs it has brought so far."""


class Idempotency(Struct, frozen=True):
    """A client's own key for a request, and the body it came with; both hashed, with the tenant."""

    key: str
    body: str


class Entry(Struct, frozen=True, kw_only=True):
    """A request that wants a result, and everything by which it may find one."""

    scope: str
    request: str
    """Unique; the generation's id if this request starts one."""
    plan: str
    """What determines the result: parts are resumed only under the same plan."""
    images: int
    """A result has as many."""
    cache_key: str | None = None
    """Under which the result is looked for, shared while it runs, and kept; None: neither."""
    max_age_ms: int | None = None
    fresh: bool = False
    """Use no stored result and join nobody by the cache key, but do keep the result."""
    only_if_cached: bool = False
    needs_url: bool = False
    """Held image bytes do not help: the URLs must be alive."""
    idempotency: Idempotency | None = None
    """Found by this key alone, and by the cache key: adoption is then not looked at."""
    adoption: str | None = None
    """Hash of tenant, API key and body."""
    is_retry: bool = False
    """The client says that it has sent this before."""
    takes_orphans: bool = True
    """Without being a retry, take up what its own client was never given: paid parts of a failed
    request, or a result whose client hung up."""


class Claim(Struct, frozen=True):
    """Leadership of a generation; it ends when another request leads."""

    scope: str
    id: str
    leader: str


class How(StrEnum):
    """By what a result, running or done, was found."""

    HIT = "hit"
    JOINED = "joined"
    REPLAYED = "replayed"
    ADOPTED = "adopted"


class Led(Struct, frozen=True):
    """This request pays, for what the parts lack."""

    claim: Claim
    parts: Parts


class Joined(Struct, frozen=True):
    """Another request is paying for the same."""

    id: str
    how: How


class Found(Struct, frozen=True):
    """A finished result."""

    id: str
    result: bytes
    age_ms: int
    how: How


class Refusal(StrEnum):
    """Why there is no result, and none will come."""

    CONFLICT = "conflict"
    """The idempotency key belongs to another body."""
    MISSING = "missing"
    """`only_if_cached`, and nothing is."""


Begun = Led | Joined | Found | Refusal


class Standing(StrEnum):
    """What the store makes of a leader's word."""

    KEPT = "kept"
    FENCED = "fenced"
    """Another request leads; parts that it lacked were kept all the same."""
    MISSING = "missing"
    """The store has lost the generation: `restore` it."""


class Ending(Struct, frozen=True):
    """A complete result, and how long it may be used."""

    result: bytes
    life_ms: int
    """Until the first of its URLs dies."""
    keep_ms: int
    """For retries and repeats; the cache apart."""
    cache_key: str | None = None
    cache_ms: int = 0
    """As the policy says: the store ends it with the URLs, unless their bytes are held."""


class Failure(Struct, frozen=True):
    """A generation that came to nothing, or to a part of it."""

    parts: Parts
    """What was paid for all the same."""
    error: bytes | None = None
    """For those who wait; None: one of them takes over instead."""
    adoption: str | None = None
    answered: bool = True
    """The leader's client was told, so that its retry is explained."""


class Phase(StrEnum):
    """A generation as its followers see it."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    DEAD = "dead"
    """Nobody leads: `begin` with `follows` takes over."""
    MISSING = "missing"


class Sight(Struct, frozen=True):
    """The answer to a look at one generation."""

    phase: Phase
    payload: bytes = b""
    """The result, or the error."""
    age_ms: int = 0


class Departure(StrEnum):
    """How a client's wait ended."""

    DELIVERED = "delivered"
    LET_GO = "let_go"
    """It hung up, or ran out of time, without the result."""


class Shelf(Struct, frozen=True):
    """What one scope's cache holds, and how often each answer was found."""

    entries: int
    bytes: int
    counts: Mapping[str, int]
    """By `How`, and `led`."""


class FlightStore(Protocol):
    """The generations. Every operation may be repeated, its answer having been lost."""

    async def begin(self, entry: Entry, lease_ms: int, follows: str | None = None) -> Begun:
        """Find a result or whoever is working on it, or else lead. Raises StoreUnavailable.

        Looked for in this order: `follows` (the generation waited for), idempotency key, adoption,
        cache. What costs nothing goes first; then a generation that failed or whose leader is dead
        is taken over, with its parts; then a new one starts.
        """

    async def restore(self, claim: Claim, entry: Entry, lease_ms: int, parts: Parts) -> Standing:
        """Put back a running generation that the store has lost. Raises StoreUnavailable.

        What meanwhile is found by the same keys stays where it is.
        """

    async def progress(self, claim: Claim, index: int, urls: Sequence[str]) -> Standing:
        """Keep what one upstream call has brought so far. Raises StoreUnavailable."""

    async def finish(self, claim: Claim, ending: Ending) -> Standing:
        """Keep the result for everyone who may find it. Raises StoreUnavailable."""

    async def fail(self, claim: Claim, failure: Failure) -> Standing:
        """Tell those who wait, and keep the parts for the next. Raises StoreUnavailable."""

    async def abandon(self, claim: Claim, adoption: str | None) -> bool:
        """Give up before anything was sent, unless somebody follows. Raises StoreUnavailable."""

    async def keep_alive(self, claims: Sequence[Claim], lease_ms: int) -> list[Standing]:
        """Keep leaderships of one scope alive. Raises StoreUnavailable."""

    async def look(self, scope: str, ids: Sequence[str]) -> list[Sight]:
        """What has become of generations. Raises StoreUnavailable."""


class FlightNotes(Protocol):
    """What is learnt of a generation after, or apart from, its making."""

    async def depart(self, claim: Claim, adoption: str | None, how: Departure) -> None:
        """A client's wait is over; `claim.leader` is its request. Raises StoreUnavailable."""

    async def excuse(self, scope: str, adoption: str, request: str) -> None:
        """The request was answered by an error that SDKs retry: that retry is no lost answer.

        Raises StoreUnavailable.
        """

    async def hold(self, scope: str, id_: str, hold_ms: int) -> None:
        """Every image's bytes are held for so long, whatever becomes of the URLs.

        Raises StoreUnavailable.
        """

    async def discard(self, scope: str, id_: str) -> None:
        """Forget a result that cannot be used. Raises StoreUnavailable."""


class FlightShelf(Protocol):
    """The cached results of a scope, for the operator."""

    async def shelf(self, scope: str) -> Shelf:
        """Raises StoreUnavailable."""

    async def purge(self, scope: str) -> int:
        """Serve nothing of the cache any more, and count what that was. Raises StoreUnavailable.

        Results stay where an idempotency key or a retry has a right to them.
        """


class Flights(FlightStore, FlightNotes, FlightShelf, Protocol):
    """Everything about generations."""


class ImagePlace(Struct, frozen=True):
    """One image of a generation's result."""

    scope: str
    id: str
    index: int


class ImageShelf(Struct, frozen=True):
    """Image bytes held for one scope."""

    images: int
    bytes: int


class ImageStore(Protocol):
    """Image bytes as the vendor made them, within a budget. May be on a server of its own."""

    async def put_image(
        self, place: ImagePlace, image: bytes | memoryview, ttl_ms: int, budget: int
    ) -> bool:
        """Hold an image if it fits the scope's budget (bytes): those that end first make room.

        Raises StoreUnavailable.
        """

    async def get_image(self, place: ImagePlace) -> bytes | None:
        """The whole image, or nothing. Raises StoreUnavailable."""

    async def image_shelf(self, scope: str) -> ImageShelf:
        """Raises StoreUnavailable."""

    async def purge_images(self, scope: str) -> int:
        """Raises StoreUnavailable."""

    async def aclose(self) -> None:
        """Release connections; the store is not used afterwards."""

"""What the ledger asks of shared state: who pays for a generation, once.

A generation is one paid piece of work. Whatever must find it holds its id: the cache key, an
idempotency key, and the retry key under which an SDK's unmarked retry looks. One generation has
one leader at a time, named by its request; only the leader's word counts, so a leader that was
taken for dead cannot undo its successor's work.

A scope is a tenant (`tenant:<name>`), or the tenants that share a cache (`group:<name>`). Nothing
is ever found across scopes. How a request finds its place is in `gateway.store.requests`.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from msgspec import Struct, field

SHARED_ERROR_MS = 15_000
"""How long those who wait for a generation are given its failure."""
PARTS_KEPT_MS = 600_000
"""How long paid parts and doubts wait for a retry, after a failure or a leader's death."""
DOUBT_MS = 30_000
"""An unknown outcome is told again for so long, also to a repeat that does not say it is one."""
DELIVERED_REUSED_MS = 60_000
"""A retry this long after a delivery takes the answer for lost …"""
UNDELIVERED_REUSED_MS = 600_000
"""… and this long after its end a result that nobody was given."""
IDEMPOTENCY_MS = 86_400_000
MARGIN_MS = 60_000
"""A stored result is not served when its URLs have less than this to live."""
CANDIDATES = 16
"""Generations that a retry weighs at once; identical requests may be many."""
RETRIED_MAX = 64
"""Generations kept per retry key."""

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
    """Pinned image bytes do not help: the URLs must be alive."""
    idempotency: Idempotency | None = None
    """Found by this key alone, and by the cache key: the retry key is then not looked at."""
    retry_key: str | None = None
    """Hash of tenant, API key and body."""
    is_retry: bool = False
    """The client says that it has sent this before."""
    may_reuse_unclaimed: bool = True
    """Without being a retry, take up what its own client was never given: paid parts of a failed
    request, or a result whose client hung up."""


class Leadership(Struct, frozen=True):
    """Of a generation; it ends when another request leads."""

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

    leadership: Leadership
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


class Doubtful(Struct, frozen=True):
    """An earlier attempt failed, and nobody knows what was billed: its error again."""

    id: str
    payload: bytes
    age_ms: int


class Refusal(StrEnum):
    """Why there is no result, and none will come."""

    CONFLICT = "conflict"
    """The idempotency key belongs to another body."""
    MISSING = "missing"
    """`only_if_cached`, and nothing is. Also for a request that has left already: this entering
    was under way for too long, and its answer is nobody's."""


Place = Led | Joined | Found | Doubtful | Refusal


class FencingResult(StrEnum):
    """What the store makes of a leader's word."""

    KEPT = "kept"
    FENCED = "fenced"
    """Another request leads; parts that it lacked were kept all the same."""
    MISSING = "missing"
    """The store has lost the generation: `restore` it."""


class Completion(Struct, frozen=True):
    """A complete result, and how long it may be used."""

    result: bytes
    life_ms: int
    """Until the first of its URLs dies."""
    keep_ms: int
    """For retries and repeats; the cache apart."""
    cache_key: str | None = None
    cache_ms: int = 0
    """As the policy says: the store ends it with the URLs, unless their bytes are pinned."""


class Failure(Struct, frozen=True):
    """A generation that came to nothing, or to a part of it."""

    parts: Parts = field(default_factory=dict)
    """What was paid for all the same."""
    error: bytes | None = None
    """For those who wait; None hands over to one of them instead."""
    doubtful: bool = False
    """Nobody knows what was billed: the error is told again to whoever repeats the request."""


class State(StrEnum):
    """A generation as its followers see it."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    DEAD = "dead"
    """Nobody leads: to enter with `follows` takes over."""
    MISSING = "missing"


class GenerationStatus(Struct, frozen=True):
    """The answer to a poll, for one generation."""

    state: State
    payload: bytes = b""
    """The result, or the error."""
    age_ms: int = 0


class CacheStats(Struct, frozen=True):
    """What one scope's cache holds, and how often each answer was found."""

    entries: int
    bytes: int
    counts: Mapping[str, int]
    """By `How`, and `led`."""


class GenerationStore(Protocol):
    """The generations that run. Every operation may be repeated, its answer having been lost."""

    async def restore(
        self, leadership: Leadership, entry: Entry, lead_ms: int, parts: Parts
    ) -> FencingResult:
        """Put back a running generation that the store has lost. Raises StoreUnavailable.

        What meanwhile is found by the same keys stays where it is.
        """

    async def renew_leaderships(
        self, leaderships: Sequence[Leadership], lead_ms: int
    ) -> list[FencingResult]:
        """Keep leaderships of one scope alive. Raises StoreUnavailable."""

    async def poll(self, scope: str, ids: Sequence[str]) -> list[GenerationStatus]:
        """What has become of generations. Raises StoreUnavailable."""


class GenerationNotes(Protocol):
    """What is learnt of a generation apart from its making."""

    async def client_gone(self, leadership: Leadership, retry_key: str | None) -> None:
        """The leader's client waits no longer, and the generation goes on: it is unclaimed.

        The leader's place stays taken until its `end`. Raises StoreUnavailable.
        """

    async def pin_images(self, scope: str, id_: str, pin_ms: int) -> None:
        """Every image's bytes are held for so long, whatever becomes of the URLs.

        Raises StoreUnavailable.
        """

    async def discard(self, scope: str, id_: str) -> None:
        """Forget a result that cannot be used. Raises StoreUnavailable."""


class CacheAdmin(Protocol):
    """The cached results of a scope, for the operator."""

    async def cache_stats(self, scope: str) -> CacheStats:
        """Raises StoreUnavailable."""

    async def purge(self, scope: str) -> int:
        """Serve nothing of the cache any more, and count what that was. Raises StoreUnavailable.

        Results stay where an idempotency key or a retry has a right to them.
        """

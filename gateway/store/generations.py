"""What the ledger asks of shared state: who pays for a generation, once (0021, 0022).

A scope is a tenant (`tenant:<name>`) or a cache group (`group:<name>`); nothing is found across
scopes.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Generic, Protocol, TypeAlias, TypeVar

from msgspec import Struct, field

SHARED_ERROR_MS = 15_000
"""How long followers are given the failure."""
PARTS_KEPT_MS = 600_000
"""How long paid parts and doubts wait for a retry, after a failure or a leader's death."""
DOUBT_MS = 30_000
"""How long an unknown outcome is repeated, also to a request that is not marked as a retry."""
DELIVERED_REUSED_MS = 60_000
"""Up to this long after a delivery, a retry takes the answer for lost."""
UNDELIVERED_REUSED_MS = 600_000
"""Up to this long after its end, a retry takes a result that no client was given."""
IDEMPOTENCY_MS = 86_400_000
MARGIN_MS = 60_000
"""A stored result is not served when its URLs have less than this to live."""
CANDIDATES = 16
"""Generations that a retry weighs; identical requests may be many."""
RETRIED_MAX = 64
FORMER_MAX = 16
"""Leaders that a generation remembers, until they leave."""

R = TypeVar("R")
Parts = Mapping[int, tuple[str, ...]]
"""All image URLs so far, by upstream call."""


class Idempotency(Struct, frozen=True):
    """A client's own key and its body; both hashed, with the tenant."""

    key: str
    body: str


class Entry(Struct, frozen=True, kw_only=True):
    """A request that wants a result, and everything by which it may find one."""

    scope: str
    request: str
    """Unique; the generation's id if this request starts one."""
    plan_hash: str
    """Hash of the plan: parts are resumed only under the same one."""
    images: int
    """How many a result has."""
    cache_key: str | None = None
    """By which the result is found, shared while it runs, and kept; None: neither."""
    max_age_ms: int | None = None
    fresh: bool = False
    """Use no stored result and join nobody by the cache key, but keep the result."""
    only_if_cached: bool = False
    needs_url: bool = False
    """Pinned image bytes do not help: the URLs must be alive."""
    idempotency: Idempotency | None = None
    """With it the retry key is not looked at; the cache key is."""
    retry_key: str | None = None
    """Hash of tenant, API key and body. What becomes of a generation is noted there by all."""
    is_retry: bool = False
    """The client says that it has sent this before."""
    may_reuse_unclaimed: bool = True
    """May take paid parts and results that no client was given, without being a retry."""


class Leadership(Struct, frozen=True):
    """Ends when another request leads."""

    scope: str
    id: str
    leader: str


class How(StrEnum):
    """How a result, running or done, was found."""

    HIT = "hit"
    JOINED = "joined"
    REPLAYED = "replayed"
    ADOPTED = "adopted"


class Lead(Struct, frozen=True):
    """This request pays for what the parts lack, and must end the generation."""

    leadership: Leadership
    parts: Parts
    """What an earlier leader has paid for already, perhaps not all of a call."""

    @property
    def id(self) -> str:
        return self.leadership.id


class Follow(Struct, frozen=True):
    """Another request is paying for the same."""

    id: str
    how: How


class Found(Struct, Generic[R], frozen=True):
    """A finished result: bytes to the store, a record to those who can read them."""

    id: str
    result: R
    age_ms: int
    how: How


class Doubtful(Struct, frozen=True):
    """An earlier attempt's error again: nobody knows what was billed."""

    id: str
    payload: bytes
    age_ms: int


class Refusal(StrEnum):
    """Why there is no result, and none will come."""

    CONFLICT = "conflict"
    """The idempotency key belongs to another body."""
    MISSING = "missing"
    """`only_if_cached` found nothing, or the request has left while it entered."""


Place: TypeAlias = Lead | Follow | Found[R] | Doubtful | Refusal
"""Where a request stands."""


def known_images(place: Place[R]) -> int | None:
    """How many a leader need not pay for any more; None for those who pay nothing."""
    return sum(map(len, place.parts.values())) if isinstance(place, Lead) else None


class FencingResult(StrEnum):
    """The store's reply to a leader."""

    KEPT = "kept"
    FENCED = "fenced"
    """Another request leads; parts that it lacked were kept all the same."""
    MISSING = "missing"
    """The store has lost the generation: `restore` it."""


class Completion(Struct, frozen=True):
    result: bytes
    life_ms: int
    """Until the first of its URLs dies."""
    keep_ms: int
    """For retries and repeats, not for the cache."""
    cache_key: str | None = None
    cache_ms: int = 0
    """At most until the URLs die, unless their bytes are pinned."""


class Failure(Struct, frozen=True):
    """A generation that came to nothing, or to a part of it."""

    parts: Parts = field(default_factory=dict)
    """What was paid for all the same."""
    error: bytes | None = None
    """For followers; None lets one of them take over instead."""
    doubtful: bool = False
    """Nobody knows what was billed: the error is repeated to each repeat of the request."""


class State(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    DEAD = "dead"
    """Nobody leads: a follower may take over by `enter` with `follows`."""
    MISSING = "missing"


class GenerationStatus(Struct, frozen=True):
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
    """Running generations. Every operation may be repeated, and raises StoreUnavailable."""

    async def restore(
        self, leadership: Leadership, entry: Entry, lead_ms: int, parts: Parts
    ) -> FencingResult:
        """Put back a running generation that the store has lost; newer finds of its keys stay."""

    async def renew_leaderships(
        self, leaderships: Sequence[Leadership], lead_ms: int
    ) -> list[FencingResult]:
        """All of one scope."""

    async def poll(self, scope: str, ids: Sequence[str]) -> list[GenerationStatus]:
        """What has become of generations."""


class GenerationNotes(Protocol):
    """What is learnt of a generation apart from its making. All raise StoreUnavailable."""

    async def client_gone(self, leadership: Leadership, retry_key: str | None) -> None:
        """The leader's client waits no longer: unclaimed. The leader keeps its place till `end`."""

    async def pin_images(self, scope: str, id_: str, pin_ms: int) -> None:
        """Every image's bytes are held for so long, with or without URLs."""

    async def discard(self, scope: str, id_: str) -> None:
        """Forget an unusable result."""


class CacheAdmin(Protocol):
    """The cached results of a scope, for the operator. All raise StoreUnavailable."""

    async def cache_stats(self, scope: str) -> CacheStats:
        """What is kept now; the counts end 40 days after the last answer."""

    async def purge(self, scope: str) -> int:
        """Empty the cache, and count; idempotency keys and retries keep theirs."""

"""Requests and results for the contract of generations."""

from __future__ import annotations

from msgspec.structs import replace

from gateway.store.base import Store
from gateway.store.generations import Claim, Ending, Entry, Found, How, Led, Phase

LEASE_MS = 10_000
DAY_MS = 86_400_000
LATE_MS = 400
"""What a command may have taken on a busy machine."""
SCOPE = "tenant:acme"


def entry(request: str, **changes: object) -> Entry:
    """A request that shares its result by a cache key."""
    base = Entry(scope=SCOPE, request=request, plan="plan", images=1, cache_key="key")
    return replace(base, **changes)


def unshared(request: str, **changes: object) -> Entry:
    """A request that only its own retry may find."""
    return entry(request, **{"cache_key": None, "adoption": "same", **changes})


def retry(request: str, **changes: object) -> Entry:
    return unshared(request, is_retry=True, **changes)


def ending(result: bytes = b"result", **changes: object) -> Ending:
    base = Ending(result, life_ms=DAY_MS, keep_ms=600_000, cache_key="key", cache_ms=DAY_MS)
    return replace(base, **changes)


UNCACHED = ending(cache_key=None, cache_ms=0)


async def lead(store: Store, wanted: Entry, follows: str | None = None) -> Claim:
    begun = await store.begin(wanted, LEASE_MS, follows)
    assert isinstance(begun, Led), begun
    return begun.claim


async def found(store: Store, wanted: Entry) -> tuple[bytes, How]:
    begun = await store.begin(wanted, LEASE_MS)
    assert isinstance(begun, Found), begun
    return begun.result, begun.how


async def phase(store: Store, id_: str) -> Phase:
    (sight,) = await store.look(SCOPE, [id_])
    return sight.phase

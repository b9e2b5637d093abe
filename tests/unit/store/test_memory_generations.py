"""How much of the past the in-process store remembers."""

from __future__ import annotations

from msgspec.structs import replace

from gateway.observability.context import ClientOutcome
from gateway.store.generations import Completion, Entry, Idempotency, Refusal, State
from gateway.store.limits import Limits
from gateway.store.memory import ROOM_EVERY, MemoryStore
from tests.contract.generations import end, lead, request_of


class Now:
    def __init__(self) -> None:
        self.seconds = 1e9

    def __call__(self) -> float:
        return self.seconds


async def make(store: MemoryStore, scope: str, number: int, keep_ms: int = 600_000) -> None:
    claim = await lead(store, one_of(scope, number))
    await end(store, claim, Completion(b"x", 86_400_000, keep_ms), client=ClientOutcome.GONE)


def one_of(scope: str, number: int) -> Entry:
    return Entry(scope=f"tenant:{scope}", request=f"r{number}", plan_hash="p", images=1)


def size(store: MemoryStore, scope: str) -> int:
    return store._scopes[f"tenant:{scope}"].size


async def test_the_largest_scope_makes_room() -> None:
    """A small tenant's results are not forgotten for a busy one's."""
    store = MemoryStore(Now(), generations_max=500)
    for number in range(10):
        await make(store, "small", number)
    for number in range(3000):
        await make(store, "busy", number)
        assert size(store, "busy") <= 500 + ROOM_EVERY
    assert size(store, "small") == 10


async def test_what_would_be_forgotten_first_goes_first() -> None:
    store = MemoryStore(Now(), generations_max=500)
    await make(store, "acme", 0, keep_ms=3_600_000)
    for number in range(1, 2000):
        await make(store, "acme", number)
    (seen,) = await store.poll("tenant:acme", ["r0"])
    assert seen.state is State.DONE


async def test_what_runs_is_never_forgotten() -> None:
    store = MemoryStore(Now(), generations_max=100)
    for number in range(1000):
        await lead(store, one_of("acme", number))
    assert size(store, "acme") == 1000


async def test_what_is_over_is_forgotten() -> None:
    now = Now()
    store = MemoryStore(now)
    for number in range(100):
        key = Idempotency(f"{number}", "b") if number % 2 else None
        wanted = replace(
            one_of("acme", number), cache_key=f"{number}", retry_key=f"{number}", idempotency=key
        )
        await lead(store, wanted)
    now.seconds += 3600
    await store.poll("tenant:acme", [])
    scope = store._scopes["tenant:acme"]
    pointers = scope._pointers
    left = (scope.size, pointers._cache_keys, pointers._keys, pointers._retry_keys, pointers._taken)
    assert left == (0, {}, {}, {}, {})


async def test_who_is_refused_leaves_nothing() -> None:
    """Nor does who asks for what is only in a cache."""
    store = MemoryStore(Now())
    for number in range(100):
        wanted = replace(
            one_of("acme", number),
            cache_key=f"{number}",
            retry_key=f"{number}",
            is_retry=True,
            only_if_cached=number % 2 == 1,
        )
        entered = await store.enter(request_of(wanted, limits=Limits(concurrent_requests=0)))
        assert entered.place in {None, Refusal.MISSING}
    scope, books = store._scopes["tenant:acme"], store._tenants["acme"]
    pointers = scope._pointers
    left = (scope.size, pointers._cache_keys, pointers._keys, pointers._retry_keys, pointers._taken)
    assert left == (0, {}, {}, {}, {})
    assert (books._bookings, books._leases, books._gone) == ({}, {}, {})

"""How much of the past the in-process store remembers."""

from __future__ import annotations

from gateway.store.generations import Ending, Entry, Led
from gateway.store.memory.generations import ROOM_EVERY, MemoryFlights


class Now:
    def __init__(self) -> None:
        self.seconds = 1e9

    def __call__(self) -> float:
        return self.seconds


async def make(store: MemoryFlights, scope: str, number: int, keep_ms: int = 600_000) -> None:
    wanted = Entry(scope=scope, request=f"r{number}", plan="p", images=1)
    begun = await store.begin(wanted, 10_000)
    assert isinstance(begun, Led)
    await store.finish(begun.claim, Ending(b"x", 86_400_000, keep_ms))


def size(store: MemoryFlights, scope: str) -> int:
    return store._scopes[scope].size


async def test_the_largest_scope_makes_room() -> None:
    """A small tenant's results are not forgotten for a busy one's."""
    store = MemoryFlights(Now(), generations_max=500)
    for number in range(10):
        await make(store, "small", number)
    for number in range(3000):
        await make(store, "busy", number)
        assert size(store, "busy") <= 500 + ROOM_EVERY
    assert size(store, "small") == 10


async def test_what_would_be_forgotten_first_goes_first() -> None:
    store = MemoryFlights(Now(), generations_max=500)
    await make(store, "acme", 0, keep_ms=3_600_000)
    for number in range(1, 2000):
        await make(store, "acme", number)
    (seen,) = await store.look("acme", ["r0"])
    assert seen.phase.value == "done"


async def test_what_runs_is_never_forgotten() -> None:
    store = MemoryFlights(Now(), generations_max=100)
    for number in range(1000):
        await store.begin(Entry(scope="acme", request=f"r{number}", plan="p", images=1), 10_000)
    assert size(store, "acme") == 1000


async def test_what_is_over_is_forgotten() -> None:
    now = Now()
    store = MemoryFlights(now)
    for number in range(100):
        wanted = Entry(
            scope="acme",
            request=f"r{number}",
            plan="p",
            images=1,
            cache_key=f"{number}",
            adoption=f"{number}",
        )
        await store.begin(wanted, 10_000)
    await store.excuse("acme", "5", "x")
    now.seconds += 3600
    await store.look("acme", [])
    scope = store._scopes["acme"]
    pointers = scope._pointers
    assert (scope.size, pointers._slots, pointers._keys, pointers._adoptable) == (0, {}, {}, {})

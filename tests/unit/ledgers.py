"""Ledgers over one store that can be away, in virtual time: the workers of a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self

from msgspec.structs import replace

from gateway.results import Done, Entry, Failed, Follow, Lead, Ledger
from gateway.results.cache_policy import Record
from gateway.store.base import StoreUnavailable
from gateway.store.memory import MemoryStore

NOON = 1_800_000_000.0
LIFE_S = 86_400
SCOPE = "tenant:acme"
LEASE_S = 10.0


def now() -> float:
    """Unix time, as far as the loop has come."""
    return NOON + asyncio.get_running_loop().time()


class FlakyStore(MemoryStore):
    """A store that can be away, or do what it is asked and not answer."""

    def __init__(self) -> None:
        super().__init__(now)
        self.is_away = False
        self.away_for: set[str] = set()
        """Scopes on a node that is away."""
        self.is_silent = False
        self.asked: list[str] = []
        self.began: list[str] = []
        """The requests that asked for their place."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in OPERATIONS:
            return self._flaky(name, found)
        return found

    def _flaky(
        self, name: str, operation: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        async def ask(*args: Any) -> Any:
            self.asked.append(name)
            if name == "begin":
                self.began.append(args[0].request)
            await asyncio.sleep(0.001)
            if self.is_away or scope_of(args[0]) in self.away_for:
                raise StoreUnavailable("gone")
            answer = await operation(*args)
            if self.is_silent:
                raise StoreUnavailable("silent", in_doubt=True)
            return answer

        return ask

    def lose_everything(self) -> None:
        self._scopes.clear()


def scope_of(first: Any) -> str:
    """Of an operation's first argument."""
    if isinstance(first, list):
        (scope,) = {scope_of(one) for one in first}
        return scope
    return first if isinstance(first, str) else str(first.scope)


OPERATIONS = {
    "begin",
    "restore",
    "progress",
    "finish",
    "fail",
    "abandon",
    "keep_alive",
    "look",
    "depart",
    "excuse",
    "hold",
    "discard",
}


class Gateway:
    """Some workers over one store."""

    def __init__(self, workers: int = 2, **options: Any) -> None:
        self.store = FlakyStore()
        self.workers = [
            Ledger(self.store, fallback=MemoryStore(now), now=now, lease_s=LEASE_S, **options)
            for _ in range(workers)
        ]

    async def __aenter__(self) -> Self:
        for worker in self.workers:
            worker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self.workers:
            await worker.aclose()

    async def kill(self, number: int) -> None:
        """A worker ends without a word."""
        worker = self.workers[number]
        for task in (worker._upkeep, worker._watcher._task):
            if task:
                task.cancel()
        worker._access.store = Dead()


class Dead(FlakyStore):
    """What a killed worker's last words reach."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = True


def entry(request: str, **changes: object) -> Entry:
    base = Entry(scope=SCOPE, request=request, plan="plan", images=1, cache_key="key")
    return replace(base, **changes)


def unshared(request: str, **changes: object) -> Entry:
    return entry(request, **{"cache_key": None, "adoption": "same", **changes})


def record(name: str = "a", images: int = 1, life_s: float = LIFE_S) -> Record:
    return Record(
        urls=tuple(f"https://images/{name}/{number}.png" for number in range(images)),
        created=int(now()),
        expires_at=int(now() + life_s),
        model="qwen-image",
    )


async def lead(worker: Ledger, wanted: Entry) -> Lead:
    place = await worker.enter(wanted)
    assert isinstance(place, Lead), place
    return place


async def follow(worker: Ledger, wanted: Entry) -> Follow:
    place = await worker.enter(wanted)
    assert isinstance(place, Follow), place
    return place


async def done(worker: Ledger, wanted: Entry) -> Done:
    place = await worker.enter(wanted)
    assert isinstance(place, Done), place
    return place


def waiting(place: Follow, within_s: float = 300.0) -> asyncio.Task[Done | Lead | Failed]:
    deadline = asyncio.get_running_loop().time() + within_s
    return asyncio.create_task(place.outcome(deadline))

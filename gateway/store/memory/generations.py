"""Generations in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.store.generations import (
    CacheStats,
    Entry,
    FencingResult,
    GenerationStatus,
    Leadership,
    Parts,
)
from gateway.store.memory.scope import ScopeState

GENERATIONS_MAX = 10_000
"""Generations that are not running: beyond it, the first to expire make room."""
ROOM_EVERY = 256
"""Requests between two looks at the room."""


class MemoryGenerations:
    """`clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float], generations_max: int = GENERATIONS_MAX) -> None:
        self._clock = clock
        self._most = generations_max
        self._scopes: dict[str, ScopeState] = {}
        self._entered = 0

    async def restore(
        self, leadership: Leadership, entry: Entry, lead_ms: int, parts: Parts
    ) -> FencingResult:
        return self._scope(leadership.scope).restore(leadership, entry, lead_ms, parts)

    async def renew_leaderships(
        self, leaderships: Sequence[Leadership], lead_ms: int
    ) -> list[FencingResult]:
        return [self._scope(one.scope).renew(one, lead_ms) for one in leaderships]

    async def poll(self, scope: str, ids: Sequence[str]) -> list[GenerationStatus]:
        state = self._scope(scope)
        return [state.poll(id_) for id_ in ids]

    async def client_gone(self, leadership: Leadership, retry_key: str | None) -> None:
        self._scope(leadership.scope).client_gone(leadership, retry_key)

    async def pin_images(self, scope: str, id_: str, pin_ms: int) -> None:
        self._scope(scope).pin_images(id_, pin_ms)

    async def discard(self, scope: str, id_: str) -> None:
        self._scope(scope).discard(id_)

    async def cache_stats(self, scope: str) -> CacheStats:
        return self._scope(scope).cache_stats()

    async def purge(self, scope: str) -> int:
        return self._scope(scope).purge()

    def _scope(self, name: str) -> ScopeState:
        scope = self._scopes.get(name)
        if scope is None:
            scope = self._scopes[name] = ScopeState()
        scope.begin_operation(int(self._clock() * 1000))
        return scope

    def _make_room(self) -> None:
        """The largest scope gives way; other scopes keep their results."""
        self._entered += 1
        if self._entered % ROOM_EVERY:
            return
        excess = sum(scope.size for scope in self._scopes.values()) - self._most
        if excess > 0:
            largest = max(self._scopes.values(), key=lambda scope: scope.size)
            largest.drop(excess + self._most // 10)

"""The memory store with a store's faults, for every test of what the gateway does without one."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.store.availability import StoreUnavailable
from gateway.store.memory import MemoryStore

OPERATIONS = frozenset(
    name
    for name, _ in inspect.getmembers(MemoryStore, inspect.iscoroutinefunction)
    if not name.startswith("_") and name != "aclose"
)


class FaultyStore(MemoryStore):
    """A store that can be away, or do what it is asked and not answer."""

    def __init__(self, clock: Callable[[], float], *, takes_s: float = 0.0) -> None:
        super().__init__(clock)
        self.is_away = False
        self.is_silent = False
        self.takes_s = takes_s
        """Of the event loop's time, for the way of each operation there and back."""
        self.asked = Counter[str]()
        """Operations, by name."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return self._at_risk(name, found) if name in OPERATIONS else found

    def is_away_for(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether one operation finds the store away: of a cluster, one node may be."""
        return self.is_away

    def lose_everything(self) -> None:
        """As a server that restarts without its data."""
        super().__init__(self._clock)

    def _at_risk(
        self, name: str, operation: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        async def ask(*args: Any, **named: Any) -> Any:
            self.asked[name] += 1
            if self.takes_s:
                await asyncio.sleep(self.takes_s / 2)
            if self.is_away_for(name, args):
                raise StoreUnavailable("gone")
            answer = await operation(*args, **named)
            if self.takes_s:
                await asyncio.sleep(self.takes_s / 2)
            if self.is_silent:
                raise StoreUnavailable("silent", in_doubt=True)
            return answer

        return ask

"""The store, or while it is away the worker's own memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from gateway.store.base import StoreUnavailable
from gateway.store.generations import FlightNotes, FlightStore

T = TypeVar("T")

log = logging.getLogger(__name__)


class LedgerStore(FlightStore, FlightNotes, Protocol):
    """What the ledger needs of the store."""


class Access:
    """Which store is asked, for each scope by itself: of a cluster, one node may be away.

    Once lost, the shared one is not asked before `found` says so. `fallback` shadows what this
    worker leads, so that it knows what is running when the store is lost. Without one the store,
    being in this process itself, is never lost.
    """

    def __init__(self, store: LedgerStore, fallback: LedgerStore | None) -> None:
        self.store = store
        self._fallback = fallback
        self._lost: dict[str, None] = {}
        self.changed = asyncio.Event()
        """Set when a scope is lost."""

    @property
    def degraded(self) -> bool:
        """Whether any scope is lost."""
        return bool(self._lost)

    @property
    def lost_scopes(self) -> list[str]:
        """Those that are lost, last those that were tried last."""
        return list(self._lost)

    def is_lost(self, scope: str) -> bool:
        """Whether the store is not asked for this one."""
        return scope in self._lost

    async def ask(self, scope: str, operation: Callable[[LedgerStore], Awaitable[T]]) -> T:
        """The store's answer, or else the fallback's. Raises StoreUnavailable without one."""
        if scope not in self._lost or self._fallback is None:
            try:
                return await operation(self.store)
            except StoreUnavailable as lost:
                if self._fallback is None:
                    raise
                self.lost(scope, lost)
        return await operation(self._fallback)

    async def shadow(self, operation: Callable[[LedgerStore], Awaitable[object]]) -> None:
        """Do to the fallback what is done to the store."""
        if self._fallback is not None:
            await operation(self._fallback)

    def lost(self, scope: str, why: StoreUnavailable) -> None:
        """The store does not answer."""
        if not self._lost:
            log.warning("generations are shared only inside this worker: %s", why)
        if scope not in self._lost:
            self.changed.set()
        self._lost.pop(scope, None)
        self._lost[scope] = None  # at the end

    def found(self, scope: str) -> None:
        """The store answers, and knows of everything that this worker leads there."""
        if scope in self._lost:
            del self._lost[scope]
            if not self._lost:
                log.warning("generations are shared by the store again")

"""The store, or while it is away the worker's own memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from gateway.store.base import StoreUnavailable
from gateway.store.flights import FlightNotes, FlightStore

T = TypeVar("T")

log = logging.getLogger(__name__)


class LedgerStore(FlightStore, FlightNotes, Protocol):
    """What the ledger needs of the store."""


class Access:
    """Which store is asked. Once lost, the shared one is not asked before `found` says so.

    `fallback` shadows what this worker leads, so that it knows what is running when the store is
    lost. Without one the store, being in this process itself, is never lost.
    """

    def __init__(self, store: LedgerStore, fallback: LedgerStore | None) -> None:
        self.store = store
        self._fallback = fallback
        self.degraded = False
        self.changed = asyncio.Event()
        """Set when the store is lost."""

    async def ask(self, operation: Callable[[LedgerStore], Awaitable[T]]) -> T:
        """The store's answer, or else the fallback's. Raises StoreUnavailable without one."""
        if not self.degraded or self._fallback is None:
            try:
                return await operation(self.store)
            except StoreUnavailable as lost:
                if self._fallback is None:
                    raise
                self.lost(lost)
        return await operation(self._fallback)

    async def shadow(self, operation: Callable[[LedgerStore], Awaitable[object]]) -> None:
        """Do to the fallback what is done to the store."""
        if self._fallback is not None:
            await operation(self._fallback)

    def lost(self, why: StoreUnavailable) -> None:
        """The store does not answer."""
        if not self.degraded:
            log.warning("generations are shared only inside this worker: %s", why)
            self.degraded = True
            self.changed.set()

    def found(self) -> None:
        """The store answers, and knows of everything that this worker leads."""
        if self.degraded:
            log.warning("generations are shared by the store again")
            self.degraded = False

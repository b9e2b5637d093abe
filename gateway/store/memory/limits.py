"""Limits and usage of the tenants in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import tzinfo

from gateway.store.calendar import ZoneClock
from gateway.store.limits import Limits, Reservation, Usage, Verdict
from gateway.store.memory.tenant import TenantBooks


class MemoryLimits:
    """`clock` gives Unix seconds; days and months are those of `zone`."""

    def __init__(self, clock: Callable[[], float], zone: tzinfo) -> None:
        self._clock = clock
        self._zone = ZoneClock(zone)
        self._tenants: dict[str, TenantBooks] = {}

    async def renew(self, tenant: str, reservations: Sequence[Reservation], lease_ms: int) -> None:
        books = self._books_of(tenant)
        for reservation in reservations:
            books.renew(reservation, lease_ms)

    async def levels(self, tenant: str, limits: Limits) -> Verdict:
        return self._books_of(tenant).verdict(limits)

    async def usage(self, tenant: str, limits: Limits) -> Usage:
        books = self._books_of(tenant)
        return Usage(tenant, books.verdict(limits), dict(books.day.use), dict(books.month.use))

    def _books_of(self, tenant: str) -> TenantBooks:
        books = self._tenants.get(tenant)
        if books is None:
            books = self._tenants[tenant] = TenantBooks()
        now = self._clock()
        books.begin_operation(int(now * 1000), self._zone.at(now))
        return books

"""What tenants may use, have reserved and have used.

Money is in micro-units of the catalogue's currency (1.00 = 1_000_000); times are milliseconds on
the backend's clock; days and months are those of `budgets.time_zone`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

CONCURRENCY_RETRY_MS = 1_000
"""Least wait when only concurrency is full: nobody knows when a running request ends."""
LEFT_KEPT = 10_000
"""Left or expired requests that the store remembers per tenant: repeats of them do nothing."""
LEFT_KEPT_MS = 900_000
"""How long it remembers them."""


class Limits(Struct, frozen=True, kw_only=True):
    """What one tenant may use, money in micro-units; `None` is no limit."""

    requests_per_minute: int | None = None
    images_per_minute: int | None = None
    concurrent_requests: int | None = None
    images_per_day: int | None = None
    spend_per_month: int | None = None
    """Micro-units of currency."""


class Reason(StrEnum):
    """A limit, or the loss of the store behind it."""

    REQUESTS_PER_MINUTE = "requests_per_minute"
    IMAGES_PER_MINUTE = "images_per_minute"
    CONCURRENT_REQUESTS = "concurrent_requests"
    IMAGES_PER_DAY = "images_per_day"
    SPEND_PER_MONTH = "spend_per_month"
    STORE_UNAVAILABLE = "store_unavailable"


class Reservation(Struct, frozen=True):
    """What one request holds of its tenant's limits, from entering until it leaves."""

    id: str
    """The request's: unique. Repeating an operation with the same id changes nothing."""
    family: str
    """The catalogue's model family, never a name that a caller made up."""
    images: int
    cost: int
    """Micro-units of currency."""

    def less(self, known_images: int | None) -> Reservation:
        """Only what is missing beside images that are paid for; None where another pays for all."""
        images = 0 if known_images is None else max(0, self.images - known_images)
        cost = self.cost * images // max(1, self.images)
        return replace(self, images=images, cost=cost)


class TakeRequest(Struct, frozen=True):
    tenant: str
    limits: Limits
    reservation: Reservation
    lease_ms: int = 30_000
    """The reservation expires this long after its last renewal."""


class LimitStatus(Struct, frozen=True):
    limit: int
    remaining: int
    """Never negative, though accounting may run over (an image that cost more than planned)."""
    reset_ms: int
    """Until the limit is back at its initial state if nothing else happens; 0 for concurrency."""


def level_of(limit: int | None, used: int, reset_ms: int) -> LimitStatus | None:
    return None if limit is None else LimitStatus(limit, max(0, limit - used), reset_ms)


class Verdict(Struct, frozen=True, kw_only=True):
    """Admitted or refused whole, and where the limits stand. A refusal leaves no trace."""

    allowed: bool
    reason: Reason | None = None
    """The limit that blocks longest; a budget goes before a rate, a rate before concurrency."""
    retry_after_ms: int | None = None
    """Exact for rates, `CONCURRENCY_RETRY_MS` for concurrency; None for budgets (see `reset_ms`),
    and for a request that alone exceeds the limit."""
    requests: LimitStatus | None = None
    images: LimitStatus | None = None
    concurrent: LimitStatus | None = None
    day: LimitStatus | None = None
    month: LimitStatus | None = None
    """Levels of the limits that the tenant has, also in a refusal."""
    by_store: bool = True
    """False where a worker decided without the store."""


class Settlement(Struct, frozen=True):
    """Absolute: all that a request has really used until now. Its end gives back the rest."""

    tenant: str
    reservation: str
    family: str
    images: int
    """Generated and billed: 0 for a failure or a cache hit."""
    cost: int
    """Micro-units of currency."""
    limits: Limits = Limits()
    """Those whose levels are wanted; settling checks none."""


class FamilyUse(Struct, frozen=True):
    requests: int = 0
    """Those that have ended."""
    images: int = 0
    """Also of running requests, as far as they have come."""
    cost: int = 0
    """Micro-units of currency."""


class Usage(Struct, frozen=True):
    tenant: str
    levels: Verdict
    """The verdict on a request for nothing now."""
    today: Mapping[str, FamilyUse]
    """By family. An image counts on the day on which it was booked as used."""
    this_month: Mapping[str, FamilyUse]


class LimitStore(Protocol):
    """Counters and leases of the tenants. All raise StoreUnavailable."""

    async def renew(self, tenant: str, reservations: Sequence[Reservation], lease_ms: int) -> None:
        """Keep running requests alive, and book lost or expired ones again, unasked (0011).

        Settled ones keep their place; those that have left stay away.
        """

    async def levels(self, tenant: str, limits: Limits) -> Verdict:
        """Expired leases are given back first."""

    async def usage(self, tenant: str, limits: Limits) -> Usage:
        """Use of this day and month per family."""

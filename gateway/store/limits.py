"""What tenants may use, have reserved and have used.

Money is an integer number of micro-units of the catalogue's currency (1.00 = 1_000_000).
Times are durations in milliseconds unless a name says otherwise; the clock is the backend's.
Days and months are those of `budgets.time_zone` (gateway.store.calendar).
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

CONCURRENCY_RETRY_MS = 1_000
"""Least wait when only concurrency is full: nobody knows when a running request ends."""
LEFT_KEPT = 10_000
"""Requests per tenant of which the store knows that they have left or expired …"""
LEFT_KEPT_MS = 900_000
"""… and for how long: within both bounds what is repeated for them does nothing."""


class Limits(Struct, frozen=True):
    """What one tenant may use; `None` is no limit."""

    requests_per_minute: int | None = None
    images_per_minute: int | None = None
    concurrent_requests: int | None = None
    images_per_day: int | None = None
    """Calendar day."""
    spend_per_month: int | None = None
    """Micro-units of currency, calendar month."""


class Reason(StrEnum):
    """Why a request was refused: a limit, or the loss of the store behind it."""

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
    """Of models, as the catalogue has them; never a name that a caller made up."""
    images: int
    cost: int
    """Micro-units of currency."""


class TakeRequest(Struct, frozen=True):
    """One request that wants to start, with everything it may use."""

    tenant: str
    limits: Limits
    reservation: Reservation
    lease_ms: int = 30_000
    """The reservation is given back by itself this long after its last renewal."""


class LimitStatus(Struct, frozen=True):
    """Where one limit stands after the decision."""

    limit: int
    remaining: int
    """Never negative, though accounting may run over (an image that cost more than planned)."""
    reset_ms: int
    """Until the limit is back at its initial state if nothing else happens; 0 for concurrency."""


class Verdict(Struct, frozen=True):
    """Admitted whole or refused whole, and where the limits stand. A refusal leaves no trace."""

    allowed: bool
    reason: Reason | None = None
    """The limit in the way longest; a budget goes before a rate, a rate before concurrency."""
    retry_after_ms: int | None = None
    """Exact for the per-minute limits: the first moment at which the same request would pass if
    nothing else happened. `CONCURRENCY_RETRY_MS` for concurrency. `None` for budgets (see
    their `reset_ms`) and for a request that alone is larger than the limit."""
    requests: LimitStatus | None = None
    images: LimitStatus | None = None
    concurrent: LimitStatus | None = None
    day: LimitStatus | None = None
    month: LimitStatus | None = None
    """Levels of the limits that the tenant has, refusals included."""
    by_store: bool = True
    """Whether the shared store decided, and not a worker without it."""


class Settlement(Struct, frozen=True):
    """What a request has really used until now. What was reserved beyond is given back at its end.

    Absolute: images that were booked as they came are part of it, not added to it.
    """

    tenant: str
    reservation: str
    family: str
    images: int
    """Generated and billed: 0 for a failure or a cache hit."""
    cost: int
    """Micro-units of currency."""
    limits: Limits = Limits()
    """Those whose levels are wanted; settling itself asks no limit."""


class FamilyUse(Struct, frozen=True):
    """Use of one family of models."""

    requests: int = 0
    """Those that have ended."""
    images: int = 0
    """Those of requests that still run included, as far as they are there."""
    cost: int = 0
    """Micro-units of currency."""


class Usage(Struct, frozen=True):
    """What one tenant has used, and where its limits stand."""

    tenant: str
    levels: Verdict
    """As a request for nothing would have been answered now."""
    today: Mapping[str, FamilyUse]
    """By family; calendar day. An image counts on the day on which it was booked as used."""
    this_month: Mapping[str, FamilyUse]


class LimitStore(Protocol):
    """Counters and leases of the tenants."""

    async def renew(self, tenant: str, reservations: Sequence[Reservation], lease_ms: int) -> None:
        """Keep requests alive; one that the store has lost or given back is booked again.

        Books without asking: the request is running, and what it pays for only now is booked, too.
        One that was settled keeps its place, one that has left stays away.
        Raises StoreUnavailable.
        """

    async def levels(self, tenant: str, limits: Limits) -> Verdict:
        """Where the limits stand; expired leases are given back. Raises StoreUnavailable."""

    async def usage(self, tenant: str, limits: Limits) -> Usage:
        """Use of this day and month per family, for the operator. Raises StoreUnavailable."""

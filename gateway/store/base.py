"""What the gateway asks of shared state: whole decisions, each atomic.

Every backend keeps these contracts; `tests/contract` runs the same cases over all of them.
Money is an integer number of micro-units of the catalogue's currency (1.00 = 1_000_000).
Times are durations in milliseconds unless a name says otherwise; the clock is the backend's.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from gateway.store.generations import Flights

CONCURRENCY_RETRY_MS = 1_000
"""Least wait when only concurrency is full: nobody knows when a running request ends."""
SETTLED_KEPT = 10_000
"""Reservations per tenant of which the store knows that they were settled or expired …"""
SETTLED_KEPT_MS = 900_000
"""… and for how long: within both bounds a repeated settlement does nothing."""


class StoreUnavailable(Exception):
    """The backend gave no answer in time, or none that can be trusted.

    Every operation that moves a counter names a reservation or a slot and can be repeated.
    """

    def __init__(self, message: str, *, in_doubt: bool = False) -> None:
        super().__init__(message)
        self.in_doubt = in_doubt
        """Whether the operation may have happened, or may still."""


# --- tenants' limits ---------------------------------------------------------------------


class Limits(Struct, frozen=True):
    """What one tenant may use; `None` is no limit."""

    requests_per_minute: int | None = None
    images_per_minute: int | None = None
    concurrent_requests: int | None = None
    images_per_day: int | None = None
    """Calendar day, UTC."""
    spend_per_month: int | None = None
    """Micro-units of currency, calendar month, UTC."""


class Reason(StrEnum):
    """Why a request was refused: a limit, or the loss of the store behind it."""

    REQUESTS_PER_MINUTE = "requests_per_minute"
    IMAGES_PER_MINUTE = "images_per_minute"
    CONCURRENT_REQUESTS = "concurrent_requests"
    IMAGES_PER_DAY = "images_per_day"
    SPEND_PER_MONTH = "spend_per_month"
    STORE_UNAVAILABLE = "store_unavailable"

    @property
    def is_budget(self) -> bool:
        """Whether waiting a little is no use: the day's or the month's allowance is spent."""
        return self in {Reason.IMAGES_PER_DAY, Reason.SPEND_PER_MONTH}


class Reservation(Struct, frozen=True):
    """One request's claim on its tenant's limits, from `take` until `release`."""

    id: str
    """Unique per request; repeating an operation with the same id changes nothing."""
    model: str
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
    """The answer to an `Ask`: admitted whole or refused whole. A refusal leaves no trace."""

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
    """The end of a request: what it really used. What was reserved beyond that is given back."""

    tenant: str
    reservation: str
    model: str
    images: int
    """Images delivered from a paid generation: 0 for a failure or a cache hit."""
    cost: int
    """Micro-units of currency."""
    limits: Limits = Limits()
    """Those whose levels are wanted; settling itself asks no limit."""


class ModelUse(Struct, frozen=True):
    """Settled use of one model."""

    requests: int = 0
    images: int = 0
    cost: int = 0
    """Micro-units of currency."""


class Usage(Struct, frozen=True):
    """What one tenant has used, settled requests only, and where its limits stand."""

    tenant: str
    levels: Verdict
    """As a request for nothing would have been answered now."""
    today: Mapping[str, ModelUse]
    """By model; calendar day, UTC. A request counts on the day on which it ended."""
    this_month: Mapping[str, ModelUse]


class LimitStore(Protocol):
    """Counters and leases of the tenants."""

    async def take(self, ask: TakeRequest) -> Verdict:
        """Admit a request against all its tenant's limits at once, or refuse it.

        Expired leases are given back first: concurrency, images and money. One that was admitted
        with no images and no cost, and is asked for again with some, is asked for the difference
        only: it has been counted, and has its place.
        Raises StoreUnavailable.
        """

    async def renew(self, tenant: str, reservations: Sequence[Reservation], lease_ms: int) -> None:
        """Keep requests alive; one that the store has lost or given back is booked again.

        Books without asking: the request is running, and what it pays for only now is booked, too.
        One that was settled stays settled.
        Raises StoreUnavailable.
        """

    async def release(self, settlement: Settlement) -> Verdict:
        """Free the lease, give back what was not used, add to the usage counters.

        The second release of a reservation does nothing. The release of one that the store
        never saw or has lost is booked in full. Expired leases are given back after it. The
        answer tells the levels as `usage` would now. Raises StoreUnavailable.
        """

    async def usage(self, tenant: str, limits: Limits) -> Usage:
        """Use of this day and month per model. Raises StoreUnavailable."""


class Share(Struct, frozen=True):
    """This worker's place among the live ones."""

    index: int = 0
    workers: int = 1

    def of(self, limit: int) -> int:
        """Split `limit` so that the parts of all workers add up to exactly `limit`."""
        return limit * (self.index + 1) // self.workers - limit * self.index // self.workers


class Membership(Protocol):
    """Who else is working on this store."""

    async def heartbeat(self, worker: str, ttl_ms: int) -> Share:
        """Count `worker` as alive for `ttl_ms`; 0 signs it off. Raises StoreUnavailable."""


# --- pacing of the upstream accounts -----------------------------------------------------

BACK_OFF_MAX_MS = 3_600_000
FLOW_TTL_MS = 15_000
"""A waiting worker that has not claimed for this long is taken for dead."""
GRACE_US = 20_000
"""How long a slot waits for each worker before the next in turn may have it."""
LEAD_US = 10_000
"""How early a slot may be claimed, at most a tenth of the interval: hides the way to the store."""


class PacedAccount(Struct, frozen=True):
    """One upstream account as a candidate for a slot."""

    name: str
    interval_us: int
    """Least time between two calls of one model on this account."""
    floor_us: int = 0
    """The caller knows of no free slot before this, from now; it heals a store that lost data."""


class Claim(Struct, frozen=True):
    """One worker's request for the next slot of a model, and its whole queue for it."""

    model: str
    worker: str
    accounts: tuple[PacedAccount, ...]
    waiting: Mapping[str, int]
    """Calls waiting in this worker, by tenant; empty signs the worker off."""
    report: bool = False
    """Also say who else is waiting: `Turn.flows`."""


class Grant(Struct, frozen=True):
    """A slot: one call of `tenant` may start on `account` after `delay_us`."""

    tenant: str
    account: str
    delay_us: int
    slot_us: int
    """The slot's time on the store's clock, to give it back by."""


class QueueShare(Struct, frozen=True):
    """Calls of one tenant waiting in one worker."""

    tenant: str
    worker: str
    waiting: int
    tag: int
    """The tenant's virtual start time: the lowest tag goes next."""
    served: int
    """When the tenant was last served, as a sequence number; breaks ties, oldest first."""


class ClaimResult(Struct, frozen=True):
    """The answer to a `Claim`."""

    grant: Grant | None
    wait_us: int
    """Nothing can be had for this long."""
    free_us: Mapping[str, int]
    """By account: until its next free slot, after this grant; negative if it has long been free."""
    virtual_time: int = 0
    """The tag of a tenant that has not been served lately."""
    flows: tuple[QueueShare, ...] = ()


class PaceStore(Protocol):
    """The slots of the upstream accounts, one queue per model over all workers."""

    async def claim(self, claim: Claim) -> ClaimResult:
        """Take the next slot if it is due and this worker's turn. Raises StoreUnavailable.

        Slots of an account are at least its interval apart. Tenants take turns, and inside a
        tenant its workers; a worker that is late by its grace loses the slot to the next one.
        """

    async def back_off(self, model: str, account: str, delay_ms: int) -> None:
        """Give out no slot of this account and model for `delay_ms`, at most BACK_OFF_MAX_MS.

        Raises StoreUnavailable.
        """

    async def give_back(self, model: str, account: PacedAccount, slot_us: int) -> None:
        """Return a slot that nobody wanted, unless a later one has been given out already.

        Raises StoreUnavailable.
        """


class Closable(Protocol):
    """The life of a backend."""

    async def ping(self) -> None:
        """Raises StoreUnavailable."""

    async def aclose(self) -> None:
        """Release connections; the store is not used afterwards."""


class Store(LimitStore, Membership, PaceStore, Flights, Closable, Protocol):
    """A backend with every capability, as the application is given it."""

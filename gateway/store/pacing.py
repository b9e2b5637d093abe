"""The slots of the upstream accounts: when the next call of a model may start, and whose it is."""

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

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


class SlotRequest(Struct, frozen=True):
    """One worker's request for the next slot of a model, and its whole queue for it."""

    model: str
    worker: str
    accounts: tuple[PacedAccount, ...]
    waiting: Mapping[str, int]
    """Calls waiting in this worker, by tenant; empty signs the worker off."""
    report: bool = False
    """Also say who else is waiting: `ClaimResult.flows`."""


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
    """The answer to a `SlotRequest`."""

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

    async def claim(self, request: SlotRequest) -> ClaimResult:
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

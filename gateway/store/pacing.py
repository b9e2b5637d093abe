"""The slots of the upstream accounts: when the next call may start, and whose it is (0012)."""

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

BACK_OFF_MAX_MS = 3_600_000
WAITING_TTL_MS = 15_000
"""A waiting worker that has not claimed for this long counts as dead."""
GRACE_US = 20_000
"""How long a slot waits for each worker before the next in turn may have it."""
LEAD_US = 10_000
"""How early a slot may be claimed, at most a tenth of the interval: hides the round trip."""


class PacedAccount(Struct, frozen=True):
    name: str
    interval_us: int
    """Least time between two calls of one model on this account."""
    floor_us: int = 0
    """The caller knows no free slot sooner than this from now; heals a store that lost data."""


class SlotRequest(Struct, frozen=True):
    """One worker's request for the next slot of a model, and its whole queue for it."""

    model: str
    worker: str
    accounts: tuple[PacedAccount, ...]
    waiting: Mapping[str, int]
    """By tenant; empty signs the worker off."""
    report: bool = False
    """Also return who else is waiting: `ClaimResult.shares`."""


class Grant(Struct, frozen=True):
    """One call of `tenant` may start on `account` after `delay_us`."""

    tenant: str
    account: str
    delay_us: int
    slot_us: int
    """On the store's clock, to give it back by."""


class QueueShare(Struct, frozen=True):
    """Calls of one tenant waiting in one worker."""

    tenant: str
    worker: str
    waiting: int
    start_tag: int
    """The tenant's virtual start time: the lowest goes next."""
    served: int
    """Sequence number of its last service; breaks ties, oldest first."""


class ClaimResult(Struct, frozen=True):
    grant: Grant | None
    wait_us: int
    """Nothing can be had for this long."""
    free_us: Mapping[str, int]
    """By account: until its next free slot after this grant; negative if it has long been free."""
    virtual_time: int = 0
    """The start tag of a tenant that has not been served lately."""
    shares: tuple[QueueShare, ...] = ()


class PaceStore(Protocol):
    """One queue per model over all workers. All operations raise StoreUnavailable."""

    async def claim(self, request: SlotRequest) -> ClaimResult:
        """Take the next slot if it is due and this worker's turn (0012)."""

    async def back_off(self, model: str, account: str, delay_ms: int) -> None:
        """Give no slot for `delay_ms`, at most BACK_OFF_MAX_MS."""

    async def give_back(self, model: str, account: PacedAccount, slot_us: int) -> None:
        """Return an unused slot, unless a later one is given out already."""

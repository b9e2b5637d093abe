"""Slots in one process by start-time fair queueing (0012), as in `lua/pacing/claim.lua`."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct, field

from gateway.store.pacing import (
    BACK_OFF_MAX_MS,
    GRACE_US,
    LEAD_US,
    WAITING_TTL_MS,
    ClaimResult,
    Grant,
    PacedAccount,
    QueueShare,
    SlotRequest,
)


class MemoryPace:
    """`clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._models: dict[str, _Model] = {}

    async def claim(self, request: SlotRequest) -> ClaimResult:
        return self._model(request.model).claim(request, self._now_us())

    async def back_off(self, model: str, account: str, delay_ms: int) -> None:
        delay_us = min(delay_ms, BACK_OFF_MAX_MS) * 1000
        self._model(model).back_off(account, self._now_us() + delay_us)

    async def give_back(self, model: str, account: PacedAccount, slot_us: int) -> None:
        self._model(model).give_back(account, slot_us)

    def _model(self, model: str) -> _Model:
        return self._models.setdefault(model, _Model())

    def _now_us(self) -> int:
        return int(self._clock() * 1e6)


class _Worker(Struct):
    expires_us: int
    waiting: dict[str, int]
    served: dict[str, int] = field(default_factory=dict)
    """When this worker last served each tenant, as a sequence number."""


class _Model:
    def __init__(self) -> None:
        self._free_us: dict[str, int] = {}
        self._workers: dict[str, _Worker] = {}
        self._virtual_time = 0
        self._sequence = 0
        self._tags: dict[str, tuple[int, int]] = {}
        """(tag, when last served) of the tenants whose tag is ahead of the virtual time."""

    def claim(self, request: SlotRequest, now_us: int) -> ClaimResult:
        self._show(request, now_us)
        frees = {account.name: self._free(account, now_us) for account in request.accounts}
        if not request.waiting or not frees:
            return ClaimResult(None, 0, {})
        account = min(request.accounts, key=lambda account: frees[account.name])
        places = {name: self._best_place(name) for name in self._workers}
        place = places[request.worker]
        before_me = sum(other < place for other in places.values())
        lead_us = min(LEAD_US, account.interval_us // 10)
        opens_us = frees[account.name] + before_me * GRACE_US - lead_us
        grant = None
        if now_us >= opens_us:
            slot_us = max(frees[account.name], now_us)
            grant = Grant(place[2], account.name, slot_us - now_us, slot_us)
            frees[account.name] = self._free_us[account.name] = slot_us + account.interval_us
            self._serve(request.worker, place)
            opens_us = min(frees.values()) - lead_us
        return ClaimResult(
            grant=grant,
            wait_us=max(0, opens_us - now_us),
            free_us={name: free_us - now_us for name, free_us in frees.items()},
            virtual_time=self._virtual_time,
            shares=self._shares() if request.report else (),
        )

    def back_off(self, account: str, until_us: int) -> None:
        self._free_us[account] = max(self._free_us.get(account, 0), until_us)

    def give_back(self, account: PacedAccount, slot_us: int) -> None:
        if self._free_us.get(account.name) == slot_us + account.interval_us:
            self._free_us[account.name] = slot_us

    def _show(self, request: SlotRequest, now_us: int) -> None:
        """Note the caller's queue and forget dead workers."""
        old = self._workers.pop(request.worker, None)
        served = old.served if old else {}
        if request.waiting:
            self._workers[request.worker] = _Worker(
                now_us + WAITING_TTL_MS * 1000,
                dict(request.waiting),
                {tenant: served[tenant] for tenant in request.waiting if tenant in served},
            )
        for name in [name for name, other in self._workers.items() if other.expires_us <= now_us]:
            del self._workers[name]

    def _free(self, account: PacedAccount, now_us: int) -> int:
        floor_us = now_us + account.floor_us if account.floor_us else 0
        # Nothing is further away than the longest back-off, unless the clock was set back.
        furthest_us = now_us + BACK_OFF_MAX_MS * 1000
        return max(min(self._free_us.get(account.name, 0), furthest_us), floor_us)

    def _best_place(self, worker: str) -> tuple[int, int, str, int, str]:
        """Tag and last service of the next tenant, its own service there, names."""
        its = self._workers[worker]
        return min(
            (*self._tag(tenant), tenant, its.served.get(tenant, 0), worker)
            for tenant in its.waiting
        )

    def _tag(self, tenant: str) -> tuple[int, int]:
        tag, served = self._tags.get(tenant, (0, 0))
        return (tag, served) if tag >= self._virtual_time else (self._virtual_time, 0)

    def _serve(self, worker: str, place: tuple[int, int, str, int, str]) -> None:
        tag, _, tenant, _, _ = place
        self._sequence += 1
        self._virtual_time = tag
        self._tags[tenant] = (tag + 1, self._sequence)
        self._tags = {name: value for name, value in self._tags.items() if value[0] >= tag}
        its = self._workers[worker]
        its.served[tenant] = self._sequence
        its.waiting[tenant] -= 1
        if not its.waiting[tenant]:
            del its.waiting[tenant], its.served[tenant]
        if not its.waiting:
            del self._workers[worker]

    def _shares(self) -> tuple[QueueShare, ...]:
        return tuple(
            QueueShare(tenant, name, waiting, *self._tag(tenant))
            for name, worker in self._workers.items()
            for tenant, waiting in worker.waiting.items()
        )

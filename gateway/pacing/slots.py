"""The slots of the upstream accounts: the store's, or this worker's own while it is away."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Container, Mapping, Sequence

import structlog
from msgspec import Struct
from msgspec.structs import replace

from gateway.store.availability import Share, StoreUnavailable
from gateway.store.pacing import ClaimResult, Grant, PacedAccount, PaceStore, SlotRequest
from gateway.upstream.accounts import Accounts

HEADROOM = 0.03
"""Slots are this much further apart than the account's rate says: room for jitter on the way."""
PUNCTUAL_S = 0.012
"""A call late by less than this, or than the headroom, is on time; at most a quarter of the
interval counts. Vendors count the calls of a second, and do not measure the distance of two."""
DEGRADED_SHOWN_S = 6.0
"""How long a failed claim shows: while calls wait, there is one every 5 s."""
FLOOR_SLACK_US = 50_000
"""How much earlier than known a slot may be: round trips to the store vary by less."""

log = structlog.get_logger()


class LocalFallback(Struct, frozen=True):
    """What a worker paces itself with while the store is away."""

    store: PaceStore
    """In process."""
    share: Callable[[], Share] = Share
    """This worker's place among the live ones, as last known."""
    wall: Callable[[], float] = time.time
    """Unix seconds, by which the workers keep out of each other's way."""


class Slots:
    """Claims slots, and remembers when each account is next free as far as this worker knows."""

    def __init__(
        self,
        store: PaceStore,
        accounts: Accounts,
        worker: str,
        fallback: LocalFallback | None,
    ) -> None:
        self._store = store
        self._accounts = accounts
        self.worker = worker
        self._fallback = fallback
        self._free_at: dict[tuple[str, str], float] = {}
        self._own_slot_at: dict[tuple[str, str], float] = {}
        self._down: dict[str, float] = {}
        """When the store last failed to give a slot, by model: cluster nodes fail alone."""

    @property
    def degraded(self) -> bool:
        """Whether any model's slots are this worker's own."""
        since = asyncio.get_running_loop().time() - DEGRADED_SHOWN_S
        return any(at >= since for at in self._down.values())

    async def claim(
        self,
        model: str,
        accounts: Sequence[str],
        waiting: Mapping[str, int],
        *,
        report: bool,
        stuck: Container[str] = (),
    ) -> ClaimResult:
        """`stuck` accounts come last among equals. Raises StoreUnavailable without a fallback."""
        now = asyncio.get_running_loop().time()
        # With every breaker open the call is let through to meet it, and says so to its client.
        # Asked for each slot: an account may rest, or be back, since a call joined.
        fit = self._accounts.fit(model, accounts) or accounts
        names = [name for name in fit if name not in stuck] or fit
        paced = tuple(self._paced(model, name, now) for name in names)
        request = SlotRequest(model, self.worker, paced, waiting, report)
        try:
            claimed = await self._store.claim(request)
        except StoreUnavailable as why:
            if self._fallback is None:
                raise
            self._mark_down(model, why)
            return await self._claim_locally(self._fallback, request, now)
        self._mark_up(model)
        floors = {account.name: account.floor_us for account in paced}
        for name, free_us in claimed.free_us.items():
            # An answer that only repeats our floor would bring it nearer with each claim.
            if free_us == 0 or free_us != floors[name]:
                # From before the claim was sent, so never later than the truth.
                self._free_at[model, name] = now + free_us / 1e6
        return claimed

    async def give_back(self, model: str, grant: Grant) -> None:
        now = asyncio.get_running_loop().time()
        account = self._paced(model, grant.account, now)
        try:
            await self._store.give_back(model, account, grant.slot_us)
        except StoreUnavailable as why:
            self._mark_down(model, why)

    async def back_off(self, model: str, account: str, delay_s: float) -> None:
        """Delay the next slot of an account, in all workers that can be reached."""
        until = asyncio.get_running_loop().time() + delay_s
        self._own_slot_at.pop((model, account), None)
        self._free_at[model, account] = max(self._free_at.get((model, account), 0), until)
        try:
            await self._store.back_off(model, account, round(delay_s * 1000))
        except StoreUnavailable as why:
            self._mark_down(model, why)

    def schedule(self, model: str, accounts: Sequence[str]) -> list[tuple[float, float]]:
        """For each account: when it is next free, in the loop's seconds, and its interval."""
        is_down = model in self._down
        workers = self._fallback.share().workers if self._fallback and is_down else 1
        known = self._own_slot_at if is_down else self._free_at
        return [
            (known.get((model, name), 0.0), self._interval_us(model, name) * workers / 1e6)
            for name in accounts
        ]

    def apart_s(self, model: str, account: str) -> float:
        """The distance of two calls by the account's rate."""
        return self._interval_us(model, account) / 1e6 / (1 + HEADROOM)

    def tolerance_s(self, model: str, account: str) -> float:
        """By how much a call may miss its slot without coming too close to the next one."""
        apart_s = self.apart_s(model, account)
        return max(apart_s * HEADROOM, min(PUNCTUAL_S, apart_s / 4))

    def _paced(self, model: str, name: str, now: float) -> PacedAccount:
        floor_us = (self._free_at.get((model, name), now) - now) * 1e6 - FLOOR_SLACK_US
        return PacedAccount(name, self._interval_us(model, name), max(0, round(floor_us)))

    def _interval_us(self, model: str, name: str) -> int:
        rate = self._accounts.rate(model, name)
        return round(1e6 / rate * (1 + HEADROOM)) if rate else 1

    async def _claim_locally(
        self, fallback: LocalFallback, request: SlotRequest, now: float
    ) -> ClaimResult:
        """Claim at this worker's own moments on each account."""
        accounts = tuple(
            PacedAccount(
                account.name, 1, self._own_slot_in_us(fallback, request.model, account, now)
            )
            for account in request.accounts
        )
        claimed = await fallback.store.claim(replace(request, accounts=accounts))
        if claimed.grant:
            key = request.model, claimed.grant.account
            taken_at = now + claimed.grant.delay_us / 1e6
            interval = self._interval_us(*key) / 1e6
            self._free_at[key] = taken_at + interval
            half_a_round = interval * fallback.share().workers / 2
            self._own_slot_at[key] = _next_own_slot(
                fallback, taken_at + half_a_round, now, interval
            )
        return claimed

    def _own_slot_in_us(
        self, fallback: LocalFallback, model: str, account: PacedAccount, now: float
    ) -> int:
        key = model, account.name
        own_slot_at = self._own_slot_at.get(key, -math.inf)
        if own_slot_at < now - FLOOR_SLACK_US / 1e6:
            earliest = max(now, self._free_at.get(key, now))
            own_slot_at = _next_own_slot(fallback, earliest, now, account.interval_us / 1e6)
            self._own_slot_at[key] = own_slot_at
        return max(0, round((own_slot_at - now) * 1e6))

    def _mark_down(self, model: str, why: StoreUnavailable) -> None:
        if not self._down:
            log.warning("pacing_store_lost", cause=str(why))
        self._down[model] = asyncio.get_running_loop().time()

    def _mark_up(self, model: str) -> None:
        if self._down.pop(model, None) is not None and not self._down:
            log.warning("pacing_store_found")


def _next_own_slot(fallback: LocalFallback, earliest: float, now: float, interval: float) -> float:
    """The first of this worker's moments from `earliest` on: every W-th slot by the wall clock."""
    share = fallback.share()
    wall = fallback.wall() + earliest - now
    return earliest + (share.index * interval - wall) % (share.workers * interval)

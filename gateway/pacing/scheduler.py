"""One model's queue, and the task that serves it for as long as something waits."""

from __future__ import annotations

import asyncio
import copy
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from gateway.domain.errors import UpstreamRefused
from gateway.pacing.slots import Slots
from gateway.pacing.wait_queue import Slot, SlotTooLate, Waiter, WaitEstimate, WaitQueue, slot_at
from gateway.store.pacing import ClaimResult, Grant

REFRESH_S = 5.0
"""Longest time between two claims of a worker; the store forgets it after three times as long."""
MARGIN_S = 0.03
"""A slot expected this close before the deadline may yet miss it."""
GATHER_S = 0.005
"""Least time between two claims made only because calls joined."""

AHEAD_S = 2.0
"""How early a slot is announced: time to connect, too short for an idle connection to close."""
STUCK_S = 1.0
"""From slot to wire; longer means that something is wrong with the account."""
UNSENT = 2
"""Intervals that the next call waits for one that is not on its way, as while it connects."""

log = structlog.get_logger()

Prepare = Callable[[str, str], None]
"""Called with the model and the account of a slot that is about to come."""


class _Sending:
    """One call from its slot to the wire, in the loop's seconds."""

    __slots__ = ("at", "due", "grant", "handed_at")

    def __init__(self, grant: Grant, due: float, handed_at: float) -> None:
        self.grant = grant
        self.due = due
        self.handed_at = handed_at
        self.at: float | None = None


class ModelScheduler:
    """One model's queue and the task that serves it, which lives while something waits."""

    def __init__(self, model: str, slots: Slots, prepare: Prepare, accounts: Sequence[str]) -> None:
        self.queue = WaitQueue()
        self._model = model
        self._slots = slots
        self._prepare = prepare
        self._accounts = accounts
        self._loop = asyncio.get_running_loop()
        self._estimate = WaitEstimate(ClaimResult(None, 0, {}), slots.worker, {})
        self._last: dict[str, _Sending] = {}
        self._unsent: dict[str, dict[int, float]] = {}
        """By account: the slots whose calls are not on their way, and when they were handed out."""
        self._joined = False
        self._is_holding = self._was_late = self._leaves_out = False
        self._round_trip_s = math.inf
        """To the store and back."""
        self._sleep: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    def join(self, waiter: Waiter) -> None:
        self.queue.join(waiter)
        self._joined = True
        self._wake()

    def serve_from(self, accounts: Sequence[str]) -> None:
        """After a change of configuration, a call takes new accounts, and its own that are left."""
        former, self._accounts = self._accounts, accounts
        if accounts == former:
            return
        for waiter in [one for waiters in self.queue.tenants.values() for one in waiters]:
            wanted = [name for name in accounts if name in waiter.accounts or name not in former]
            if accounts:
                self.queue.change_accounts(waiter, tuple(wanted or accounts))
            else:
                message = "No account of this gateway serves this model any more."
                self._refuse(waiter, UpstreamRefused(message, param="model"))
        self._joined = True
        self._wake()

    def leave(self, waiter: Waiter) -> None:
        if waiter in self.queue:
            self.queue.leave(waiter)
            if not self.queue.size:
                self._wake()

    def sent(self, grant: Grant) -> None:
        """A late call also delays the other workers' next slot."""
        account, now = grant.account, self._loop.time()
        self._unsent.get(account, {}).pop(grant.slot_us, None)
        if self._leaves_out:
            self._wake()
        last = self._last.get(account)
        if last is None or last.grant is not grant or last.at is not None:
            return
        last.at = now
        if now - last.due > self._slots.tolerance_s(self._model, account):
            interval = self._slots.schedule(self._model, [account])[0][1]
            self._in_background(self._slots.back_off(self._model, account, interval))
        if self._is_holding:
            self._wake()

    def give_back(self, grant: Grant) -> None:
        """To a call that waits here, or to the store."""
        self._unsent.get(grant.account, {}).pop(grant.slot_us, None)
        last = self._last.get(grant.account)
        if last is not None and last.grant is grant:
            del self._last[grant.account]
        if not self._hand(grant, self._loop.time()):
            self._in_background(self._slots.give_back(self._model, grant))

    def expected_in_s(self, tenant: str, position: int) -> float:
        """Seconds until the slot of a call with `position` calls of its tenant before it."""
        now = self._loop.time()
        schedule = self._slots.schedule(self._model, self.queue.accounts())
        return slot_at(schedule, self._estimate.before(tenant, position), now) - now

    async def aclose(self) -> None:
        tasks = [*self._background, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _hand(self, grant: Grant, due: float) -> bool:
        """False: no call wants the slot."""
        while (waiter := self.queue.pick(grant.tenant, grant.account)) is not None:
            is_taken = waiter.give(Slot(grant.account, grant))
            self.queue.leave(waiter)
            if is_taken:
                handed_at = self._loop.time()
                self._last[grant.account] = _Sending(grant, due, handed_at)
                self._unsent.setdefault(grant.account, {})[grant.slot_us] = handed_at
                return True
        return False

    def _refuse(self, waiter: Waiter, outcome: Exception) -> None:
        waiter.refuse(outcome)
        self.queue.leave(waiter)

    # -- the task

    def _wake(self) -> None:
        if self._task is None:
            if not self.queue.size:
                return
            self._task = asyncio.create_task(self._run(), name=f"pacing {self._model}")
        elif self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)

    async def _run(self) -> None:
        try:
            while self.queue.size:
                await self._serve()
        except Exception as error:
            log.exception("pacing_failed", model=self._model, refused=self.queue.size)
            for waiters in list(self.queue.tenants.values()):
                for waiter in list(waiters):
                    # Each raises its own, or its traceback would grow with every one of them.
                    self._refuse(waiter, copy.copy(error).with_traceback(None))
        finally:
            self._task = None

    async def _serve(self) -> None:
        report, self._joined = self._joined, False
        claimed_at = self._loop.time()
        waiting = self.queue.waiting()
        stuck = self._stuck()
        self._leaves_out = bool(stuck)
        claimed = await self._slots.claim(
            self._model, self.queue.accounts(), waiting, report=report, stuck=stuck
        )
        # A busy loop reads the answer late; the round trip itself hardly ever takes longer.
        self._round_trip_s = min(self._loop.time() - claimed_at, self._round_trip_s * 1.25)
        if report and self.queue.size:  # they may all have left meanwhile
            self._reject_too_late(claimed)
        if claimed.grant and not await self._pass_on(
            claimed.grant, claimed_at + self._round_trip_s
        ):
            await self._slots.give_back(self._model, claimed.grant)
            if self._was_late:
                return
        await self._rest(claimed_at, claimed.wait_us / 1e6)
        self._expire()
        if not self.queue.size and sum(waiting.values()) > (claimed.grant is not None):
            await self._slots.claim(self._model, (), {}, report=False)

    def _stuck(self) -> set[str]:
        """Accounts whose last call does not get away, as while connections hang."""
        before = self._loop.time() - STUCK_S
        return {
            account
            for account, unsent in self._unsent.items()
            if unsent and next(iter(unsent.values())) < before
        }

    async def _pass_on(self, grant: Grant, granted_at: float) -> bool:
        """Give the slot to a call at its time; False: it goes back."""
        due, account = granted_at + grant.delay_us / 1e6, grant.account
        apart = self._slots.apart_s(self._model, account)
        self._is_holding = True
        while (wait_s := self._wait_s(account, due, apart)) > 0:
            await self._sleep_until(self._loop.time() + wait_s)
        self._is_holding = False
        # So late, the next slot may have been taken, and that call be under way already.
        was_late, self._was_late = self._was_late, self._loop.time() - due > apart / 2
        if self._was_late and not was_late:
            return False
        return self._hand(grant, due)

    def _wait_s(self, account: str, due: float, apart: float) -> float:
        """Until a slot is due and far enough from the account's last call."""
        now, last = self._loop.time(), self._last.get(account)
        if last is None:
            return due - now
        if last.at is None:  # woken once it is sent
            return max(due, last.handed_at + UNSENT * apart) - now
        return max(due, last.at + apart) - now

    async def _rest(self, claimed_at: float, wait_s: float) -> None:
        """Sleep until a slot may be had, a deadline passes or a call joins."""
        # The next claim is to reach the store by then, which takes it as long as this one took.
        until = claimed_at + min(wait_s, REFRESH_S)
        first = self.queue.next_deadline()
        if first:
            until = min(until, first.deadline)
        if self.queue.size and not self._joined:
            preparing = self._prepare_next()
            try:
                await self._sleep_until(until)
            finally:
                preparing.cancel()
        if self._joined:
            await asyncio.sleep(claimed_at + GATHER_S - self._loop.time())

    def _prepare_next(self) -> asyncio.TimerHandle:
        """Announce the next slot shortly before it comes."""
        accounts = self.queue.accounts()
        schedule = self._slots.schedule(self._model, accounts)
        (free_at, _), account = min(zip(schedule, accounts, strict=True))
        return self._loop.call_at(free_at - AHEAD_S, self._prepare, self._model, account)

    async def _sleep_until(self, until: float) -> None:
        self._sleep = self._loop.create_future()
        timer = self._loop.call_at(until, self._wake)
        try:
            await self._sleep
        finally:
            timer.cancel()
            self._sleep = None

    def _expire(self) -> None:
        """Refuse calls past their deadline, which others had delayed."""
        now = self._loop.time()
        while (first := self.queue.next_deadline()) and first.deadline <= now:
            self._refuse(first, SlotTooLate(self.expected_in_s(first.tenant, 0)))

    def _reject_too_late(self, claimed: ClaimResult) -> None:
        """Refuse new calls that come too late, before the granted slot goes to one of them."""
        own = Counter(self.queue.waiting())
        granted = Counter([claimed.grant.tenant] if claimed.grant else ())
        self._estimate = WaitEstimate(claimed, self._slots.worker, own - granted)
        now = self._loop.time()
        schedule = self._slots.schedule(self._model, self.queue.accounts())
        all_served_at = slot_at(schedule, self._estimate.total, now)
        for tenant in list(self.queue.tenants):
            gone = granted[tenant]
            refused: Waiter | None = None
            for position, waiter in reversed(list(self.queue.unchecked(tenant))):
                waiter.is_checked = True
                latest = waiter.deadline - MARGIN_S
                if waiter.calls == 1 and all_served_at <= latest and not refused:
                    continue
                last = position - gone + waiter.calls - 1
                at = (
                    slot_at(schedule, self._estimate.before(tenant, last), now)
                    if last >= 0
                    else now
                )
                if at > latest or (refused and waiter.follows(refused)):
                    self._refuse(waiter, SlotTooLate(at - now))
                    gone += 1
                    refused = waiter

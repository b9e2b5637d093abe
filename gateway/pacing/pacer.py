"""When an upstream call may start: one fair queue per model, over all workers and accounts.

A call waits as a bare future in this worker's queue. One task per model, alive only while
something waits, asks the store for the next slot and wakes the call whose turn it is at that
very moment, so a call that was cancelled or ran out of time takes no slot.

Without the store each worker paces itself to its share of every account's rate, in turn with
the others by the wall clock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

from gateway.pacing.eta import Outlook, slot_at
from gateway.pacing.queue import Line, QueueBounds, QueueFull, SlotTooLate, Waiter
from gateway.pacing.slots import Accounts, Alone, Slots
from gateway.store.base import Grant, PaceStore, Turn

REFRESH_S = 5.0
"""A waiting worker shows itself this often; the store forgets it after three times as long."""
MARGIN_S = 0.03
"""A slot expected this close before the deadline may yet miss it, after the whole wait."""
GATHER_S = 0.005
"""Least time between two claims made only because calls joined: they are looked at together."""

log = logging.getLogger(__name__)


class Pacer:
    """Gives each upstream call of this worker its slot.

    `alone` is for the time in which `store` is away; without it the store is taken to be always
    there. `on_wait` is told the model and the seconds that a call waited for its slot.
    """

    def __init__(
        self,
        store: PaceStore,
        accounts: Accounts,
        *,
        worker: str,
        alone: Alone | None = None,
        bounds: QueueBounds = QueueBounds(),
        on_wait: Callable[[str, float], None] = lambda _model, _wait_s: None,
    ) -> None:
        self._slots = Slots(store, accounts, worker, alone)
        self._accounts = accounts
        self._bounds = bounds
        self._on_wait = on_wait
        self._pumps: dict[str, _Pump] = {}

    @property
    def degraded(self) -> bool:
        """Whether slots are given out without the store."""
        return self._slots.degraded

    def waiting(self) -> dict[str, int]:
        """Calls in this worker's queue, by model."""
        return {model: pump.line.size for model, pump in self._pumps.items()}

    async def slot(
        self, model: str, tenant: str, *, accounts: Sequence[str], deadline: float, calls: int = 1
    ) -> str:
        """Wait for the moment at which one call may start, and say on which of `accounts`.

        `deadline` is in the event loop's seconds. `calls` is how many slots the caller needs from
        this one on: a request of ten calls asks for ten slots at once with `calls` 10, 9 … 1 and
        the same deadline, and either all are too late or none. Raises QueueFull, SlotTooLate.
        """
        if not accounts:
            raise ValueError("a call needs an account")
        unpaced = [name for name in accounts if self._accounts.rate(model, name) is None]
        if unpaced:
            return self._pick_unpaced(model, unpaced)
        pump = self._pumps.get(model) or self._open(model)
        line = pump.line
        tenant_size = line.size_of(tenant)
        if line.size >= self._bounds.per_model or tenant_size >= self._bounds.per_tenant:
            raise QueueFull(pump.expected_in_s(tenant, tenant_size + calls - 1))
        return await pump.wait(Waiter(tenant, tuple(accounts), deadline, calls))

    async def back_off(self, model: str, account: str, delay_s: float) -> None:
        """Start no call of `model` on `account` for a time, in any worker: it answered 429."""
        await self._slots.back_off(model, account, delay_s)

    async def aclose(self) -> None:
        """Stop giving out slots; whoever still waits has been cancelled before."""
        for pump in self._pumps.values():
            await pump.aclose()

    def _pick_unpaced(self, model: str, names: list[str]) -> str:
        usable = [name for name in names if self._accounts.is_usable(model, name)] or names
        return usable[0]

    def _open(self, model: str) -> _Pump:
        pump = self._pumps[model] = _Pump(model, self._slots, self._on_wait)
        return pump


class _Pump:
    """One model's queue and the task that serves it, which lives while something waits."""

    def __init__(self, model: str, slots: Slots, on_wait: Callable[[str, float], None]) -> None:
        self.line = Line()
        self._model = model
        self._slots = slots
        self._on_wait = on_wait
        self._loop = asyncio.get_running_loop()
        self._outlook = Outlook(Turn(None, 0, {}), slots.worker, {})
        self._sent_at: dict[str, float] = {}
        """When the last call of each account was on its way, on the steady clock."""
        self._joined = False
        self._sleep: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._returns: set[asyncio.Task[None]] = set()

    async def wait(self, waiter: Waiter) -> str:
        """The account that the waiter may call now. Raises SlotTooLate."""
        self.line.join(waiter)
        self._joined = True
        self._rouse()
        try:
            outcome = await waiter.future
        except asyncio.CancelledError:
            self._abandon(waiter)
            raise
        if isinstance(outcome, Exception):
            raise outcome
        # Runs once this turn of the loop has written what it has to send.
        self._loop.call_soon(self._mark, outcome.account)
        return outcome.account

    def _mark(self, account: str) -> None:
        self._sent_at[account] = time.monotonic()

    def _delay_s(self, grant: Grant) -> float:
        """Until the grant's slot; a busy loop that sent the last call late moves it on."""
        _, interval = self._slots.rhythm(self._model, [grant.account])[0]
        since = time.monotonic() - self._sent_at.get(grant.account, 0.0)
        return max(grant.delay_us / 1e6, min(interval, interval - since))

    def expected_in_s(self, tenant: str, position: int) -> float:
        """Seconds until the slot of a call with `position` calls of its tenant before it."""
        now = self._loop.time()
        rhythm = self._slots.rhythm(self._model, self.line.accounts())
        return slot_at(rhythm, self._outlook.before(tenant, position), now) - now

    async def aclose(self) -> None:
        tasks = [*self._returns, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # -- leaving early

    def _abandon(self, waiter: Waiter) -> None:
        if waiter in self.line:
            self.line.leave(waiter)
            if not self.line.size:
                self._rouse()
        elif not waiter.future.cancelled():
            # Its slot came in the same moment: it goes to someone else.
            outcome = waiter.future.result()
            if isinstance(outcome, Grant) and not self._hand(outcome):
                task = asyncio.create_task(self._slots.give_back(self._model, outcome))
                self._returns.add(task)
                task.add_done_callback(self._returns.discard)

    def _hand(self, grant: Grant) -> bool:
        waiter = self.line.pick(grant.tenant, grant.account)
        if waiter is None:
            return False
        self.line.leave(waiter)
        waiter.future.set_result(grant)
        self._on_wait(self._model, self._loop.time() - waiter.joined_at)
        return True

    def _refuse(self, waiter: Waiter, outcome: Exception) -> None:
        self.line.leave(waiter)
        if not waiter.future.done():
            waiter.future.set_result(outcome)

    # -- the task

    def _rouse(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"pacing {self._model}")
        elif self._sleep and not self._sleep.done():
            self._sleep.set_result(None)

    async def _run(self) -> None:
        try:
            while self.line.size:
                await self._serve()
        except Exception as error:
            log.exception("pacing of %s failed; whoever waits is refused", self._model)
            for waiters in list(self.line.tenants.values()):
                for waiter in list(waiters):
                    self._refuse(waiter, error)
        finally:
            self._task = None

    async def _serve(self) -> None:
        """One claim and what follows from it."""
        report, self._joined = self._joined, False
        claimed_at = self._loop.time()
        waiting = self.line.waiting()
        turn = await self._slots.claim(self._model, self.line.accounts(), waiting, report=report)
        if report:
            self._weigh(turn)
        if turn.grant:
            await asyncio.sleep(self._delay_s(turn.grant))
            if not self._hand(turn.grant):
                await self._slots.give_back(self._model, turn.grant)
        await self._rest(claimed_at, turn.wait_us / 1e6)
        self._expire()
        if not self.line.size and sum(waiting.values()) > (turn.grant is not None):
            await self._slots.claim(self._model, (), {}, report=False)

    async def _rest(self, claimed_at: float, wait_s: float) -> None:
        """Sleep until a slot may be had, a deadline passes or a call joins."""
        until = self._loop.time() + min(wait_s, REFRESH_S)
        first = self.line.next_deadline()
        if first:
            until = min(until, first.deadline)
        if self.line.size and not self._joined:
            await self._sleep_until(until)
        if self._joined:
            await asyncio.sleep(claimed_at + GATHER_S - self._loop.time())

    async def _sleep_until(self, until: float) -> None:
        self._sleep = self._loop.create_future()
        timer = self._loop.call_at(until, _wake, self._sleep)
        try:
            await self._sleep
        finally:
            timer.cancel()
            self._sleep = None

    def _expire(self) -> None:
        """Refuse those whose time is up, others having come in between."""
        now = self._loop.time()
        while (first := self.line.next_deadline()) and first.deadline <= now:
            self._refuse(first, SlotTooLate(self.expected_in_s(first.tenant, 0)))

    def _weigh(self, turn: Turn) -> None:
        """Refuse those who joined since the last look and whose slot would come too late.

        Before the slot just granted is given to anyone: it may be one of them that asks for many.
        """
        own = Counter(self.line.waiting())
        granted = Counter([turn.grant.tenant] if turn.grant else ())
        self._outlook = Outlook(turn, self._slots.worker, own - granted)
        now = self._loop.time()
        rhythm = self._slots.rhythm(self._model, self.line.accounts())
        all_served_at = slot_at(rhythm, self._outlook.total, now)
        for tenant in list(self.line.tenants):
            gone = granted[tenant]
            refused: Waiter | None = None
            for position, waiter in reversed(list(self.line.unweighed(tenant))):
                waiter.weighed = True
                latest = waiter.deadline - MARGIN_S
                if waiter.calls == 1 and all_served_at <= latest and not refused:
                    continue
                last = position - gone + waiter.calls - 1
                at = slot_at(rhythm, self._outlook.before(tenant, last), now) if last >= 0 else now
                if at > latest or (refused and waiter.follows(refused)):
                    self._refuse(waiter, SlotTooLate(at - now))
                    gone += 1
                    refused = waiter


def _wake(sleep: asyncio.Future[None]) -> None:
    if not sleep.done():
        sleep.set_result(None)

"""When an upstream call may start: one fair queue per model, over all workers and accounts.

A call waits as a row in this worker's queue. One task per model, alive only while something
waits, asks the store for the next slot and wakes the call whose turn it is at that very moment, so
a call that was cancelled or ran out of time takes no slot.

A slot is a moment, and the vendor counts when calls arrive: a busy process may send one late. So
the sender of a call reports when it did, the account's next call keeps its distance to that
moment, and a call that was sent after its slot keeps the other workers away for longer.

Without the store each worker paces itself to its share of every account's rate, in turn with
the others by the wall clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from gateway.pacing.scheduler import ModelScheduler, Prepare
from gateway.pacing.slots import Accounts, LocalFallback, Slots
from gateway.pacing.wait_queue import QueueBounds, QueueFull, Slot, Waiter
from gateway.store.pacing import PaceStore

Wait = Callable[[asyncio.Future[Slot]], Awaitable[Slot]]


def for_as_long_as_it_takes(slot: asyncio.Future[Slot]) -> Awaitable[Slot]:
    return slot  # without a coroutine, which would be a frame more for each that waits


class Pacer:
    """Gives each upstream call of this worker its slot.

    `fallback` paces while `store` is away; without it those who wait are then refused. `prepare`
    is called with the model and the account of a slot that is about to come, to connect ahead.
    """

    def __init__(
        self,
        store: PaceStore,
        accounts: Accounts,
        *,
        worker: str,
        fallback: LocalFallback | None = None,
        bounds: QueueBounds = QueueBounds(),
        prepare: Prepare = lambda _model, _account: None,
    ) -> None:
        self._slots = Slots(store, accounts, worker, fallback)
        self._accounts = accounts
        self._bounds = bounds
        self._prepare = prepare
        self._schedulers: dict[str, ModelScheduler] = {}

    @property
    def degraded(self) -> bool:
        """Whether slots are given out without the store."""
        return self._slots.degraded

    def waiting(self) -> dict[str, int]:
        """Calls in this worker's queue, by model."""
        return {model: scheduler.queue.size for model, scheduler in self._schedulers.items()}

    async def slot(
        self,
        model: str,
        tenant: str,
        *,
        accounts: Sequence[str],
        deadline: float,
        calls: int = 1,
        wait: Wait = for_as_long_as_it_takes,
    ) -> Slot:
        """Wait for the moment at which one call may start; say `sent` once it has.

        `deadline` is in the event loop's seconds. `calls` is how many slots the caller needs from
        this one on: a request of ten calls asks for ten slots at once with `calls` 10, 9 … 1 and
        the same deadline, and either all are too late or none. `wait` awaits the slot; it may end
        the wait by raising, and a slot that has come by then goes to another call.

        Raises:
            QueueFull, SlotTooLate: nothing was sent.
            UpstreamRefused: no account serves the model any more.
            StoreUnavailable: there is no `fallback`.
        """
        if not accounts:
            raise ValueError("a call needs an account")
        fit = self._accounts.fit(model, accounts)
        unpaced = next((name for name in fit if self._accounts.rate(model, name) is None), None)
        if unpaced is not None:
            return Slot(unpaced)
        scheduler = self._schedulers.get(model) or self._open(model)
        queue = scheduler.queue
        ahead = queue.size_of(tenant)
        if queue.size >= self._bounds.per_model or ahead >= self._bounds.per_tenant:
            raise QueueFull(scheduler.expected_in_s(tenant, ahead + calls - 1))
        slot: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        waiter = Waiter(tenant, tuple(accounts), deadline, calls, slot)
        scheduler.join(waiter)
        try:
            return await wait(slot)
        except BaseException:
            if slot.done() and not slot.cancelled() and slot.exception() is None:
                self.give_back(model, slot.result())  # it came in the same moment
            scheduler.leave(waiter)
            raise
        finally:
            # A refusal holds this frame, and must not be held by it: what has waited for long is
            # old, and a circle of old objects stays until the garbage collector looks at them all.
            del slot, waiter

    def sent(self, model: str, slot: Slot) -> None:
        """The call that was given the slot is on its way, or will not be made."""
        if slot.grant is not None:
            self._schedulers[model].sent(slot.grant)

    def give_back(self, model: str, slot: Slot) -> None:
        """Nothing will be sent: another call may have the slot."""
        if slot.grant is not None:
            self._schedulers[model].give_back(slot.grant)

    def accounts_changed(self) -> None:
        """Let those who wait have the accounts that there are now."""
        for model, scheduler in self._schedulers.items():
            scheduler.serve_from(self._accounts.names(model))

    async def back_off(self, model: str, account: str, delay_s: float) -> None:
        """Start no call of `model` on `account` for a time, in any worker: it answered 429."""
        await self._slots.back_off(model, account, delay_s)

    async def aclose(self) -> None:
        """Stop giving out slots, after every call that waits has been cancelled."""
        for scheduler in self._schedulers.values():
            await scheduler.aclose()

    def _open(self, model: str) -> ModelScheduler:
        scheduler = self._schedulers[model] = ModelScheduler(
            model, self._slots, self._prepare, self._accounts.names(model)
        )
        return scheduler

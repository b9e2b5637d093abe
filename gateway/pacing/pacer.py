"""When an upstream call may start: one fair queue per model, over all workers (0012, 0014)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from gateway.config import Pacing
from gateway.pacing.scheduler import ModelScheduler, Prepare
from gateway.pacing.slots import LocalFallback, Slots
from gateway.pacing.wait_queue import QueueFull, Slot, Waiter
from gateway.store.pacing import PaceStore
from gateway.upstream.accounts import Accounts

Wait = Callable[[asyncio.Future[Slot]], Awaitable[Slot]]


def for_as_long_as_it_takes(slot: asyncio.Future[Slot]) -> Awaitable[Slot]:
    return slot  # without a coroutine, which would be a frame more for each that waits


class Pacer:
    """Gives each upstream call of this worker its slot.

    `fallback` paces while `store` is away; without it waiting calls are refused. `prepare` is
    called with model and account before a slot comes, to connect ahead.
    """

    def __init__(
        self,
        store: PaceStore,
        accounts: Accounts,
        *,
        worker: str,
        fallback: LocalFallback | None = None,
        bounds: Pacing = Pacing(),
        prepare: Prepare = lambda _model, _account: None,
    ) -> None:
        self._slots = Slots(store, accounts, worker, fallback)
        self._accounts = accounts
        self._bounds = bounds
        self._prepare = prepare
        self._schedulers: dict[str, ModelScheduler] = {}

    @property
    def degraded(self) -> bool:
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
        """Wait for the moment at which one call may start; call `sent` once it has.

        `deadline` is in the event loop's seconds. A request of ten calls asks ten times at once
        with `calls` 10, 9 … 1 and one deadline: either all are too late or none. `wait` may raise
        to end the wait; the slot then goes to another call.

        Raises QueueFull or SlotTooLate with nothing sent, UpstreamRefused if no account serves the
        model any more, StoreUnavailable without a `fallback`.
        """
        if not accounts:
            raise ValueError("a call needs an account")
        if (unpaced := self._unpaced(model, accounts)) is not None:
            return Slot(unpaced)
        scheduler = self._schedulers.get(model) or self._open(model)
        queue = scheduler.queue
        ahead = queue.size_of(tenant)
        if queue.size >= self._bounds.waiting_per_model or ahead >= self._bounds.waiting_per_tenant:
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

    def _unpaced(self, model: str, accounts: Sequence[str]) -> str | None:
        """Not in `slot`, whose frame would keep the names while it waits."""
        fit = self._accounts.fit(model, accounts)
        return next((name for name in fit if self._accounts.rate(model, name) is None), None)

    def sent(self, model: str, slot: Slot) -> None:
        """The call of this slot is on its way, or will not be made."""
        if slot.grant is not None:
            self._schedulers[model].sent(slot.grant)

    def give_back(self, model: str, slot: Slot) -> None:
        """Nothing will be sent: another call may have the slot."""
        if slot.grant is not None:
            self._schedulers[model].give_back(slot.grant)

    def accounts_changed(self) -> None:
        """Waiting calls get the present accounts."""
        for model, scheduler in self._schedulers.items():
            scheduler.serve_from(self._accounts.names(model))

    async def back_off(self, model: str, account: str, delay_s: float) -> None:
        """Start no call of `model` on `account` for a time, in any worker: it answered 429."""
        await self._slots.back_off(model, account, delay_s)

    async def aclose(self) -> None:
        """Stop giving out slots; every waiting call has been cancelled before."""
        for scheduler in self._schedulers.values():
            await scheduler.aclose()

    def _open(self, model: str) -> ModelScheduler:
        scheduler = self._schedulers[model] = ModelScheduler(
            model, self._slots, self._prepare, self._accounts.names(model)
        )
        return scheduler

"""Waiting for generations of other workers: one poll for all followers of this worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from gateway.store.generations import GenerationStatus, State

TICK_S = 0.1
EVERY_MAX_S = 1.0
SLOWER = 1.5
AGAIN_S = 0.5
"""How long one follower may take to take over before the next one is sent."""

log = structlog.get_logger()

GenerationKey = tuple[str, str]
"""Scope and id of a generation."""
Waiter = asyncio.Future[GenerationStatus]
Waiters = dict[Waiter, None]
"""A dict as a set: empty, as for most generations, it takes a third of a set's memory."""
Poll = Callable[[str, Sequence[str]], Awaitable[Sequence[GenerationStatus]]]


class FollowerPoller:
    """Polls what is followed, and sleeps while nothing is.

    All followers learn of an end. If the leader is gone, one at a time is sent to take over; if the
    store lost the generation, only after `missing_s`, within which the leader restores it.
    """

    def __init__(self, poll: Poll, *, missing_s: float) -> None:
        self._poll = poll
        self._missing_s = missing_s
        self._watches: dict[GenerationKey, _Watch] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def followed(self) -> int:
        return len(self._watches)

    def wait(self, key: GenerationKey) -> Waiter:
        """Resolves once something can be done; the caller removes what it cancels by `leave`."""
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()
        self.adopt(key, {waiter: None})
        return waiter

    def adopt(self, key: GenerationKey, waiters: Waiters) -> None:
        loop = asyncio.get_running_loop()
        if not waiters:
            return
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = _Watch(loop.time())
        watch.waiters |= waiters
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run(), name="ledger-watcher")

    def leave(self, key: GenerationKey, waiter: Waiter) -> None:
        watch = self._watches.get(key)
        if watch is not None:
            watch.waiters.pop(waiter, None)
            if not watch.waiters:
                del self._watches[key]

    def take(self, key: GenerationKey) -> Waiters:
        """Those who wait; the caller tells them from now on."""
        watch = self._watches.pop(key, None)
        return watch.waiters if watch else {}

    async def aclose(self) -> None:
        """Every waiter has been cancelled before."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._watches:
            await asyncio.sleep(TICK_S)
            due: dict[str, list[str]] = {}
            for (scope, id_), watch in self._watches.items():
                if watch.due <= loop.time():
                    due.setdefault(scope, []).append(id_)
            for scope, ids in due.items():
                try:
                    statuses = await self._poll(scope, ids)
                except Exception:
                    log.exception("followers_not_told", scope=scope)
                    continue
                for id_, status in zip(ids, statuses, strict=True):
                    self._tell((scope, id_), status, loop.time())

    def _tell(self, key: GenerationKey, status: GenerationStatus, now: float) -> None:
        watch = self._watches.get(key)
        if watch is None:
            return
        is_over = status.state in {State.DONE, State.FAILED}
        if is_over:
            tell(self.take(key), status)
        elif watch.needs_successor(status.state, now, self._missing_s):
            watch.due = now + AGAIN_S
            waiter = next(iter(watch.waiters))
            tell({waiter}, status)
            self.leave(key, waiter)


class _Watch:
    __slots__ = ("_every", "_missing_since", "due", "waiters")

    def __init__(self, now: float) -> None:
        self.waiters: Waiters = {}
        self.due = now + TICK_S
        self._every = TICK_S
        self._missing_since: float | None = None

    def needs_successor(self, state: State, now: float, missing_s: float) -> bool:
        """Whether somebody has to take over; if not, the next look comes later than the last."""
        if state is State.DEAD:
            return True
        if state is State.MISSING:
            self._missing_since = self._missing_since or now
            self.due = now + TICK_S
            return now - self._missing_since >= missing_s
        self._missing_since = None
        self._every = min(self._every * SLOWER, EVERY_MAX_S)
        self.due = now + self._every
        return False


def tell(waiters: Iterable[Waiter], status: GenerationStatus) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(status)

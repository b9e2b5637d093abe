"""The ledger of one worker: every request passes it before anything is paid."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from msgspec.structs import replace

from gateway.domain.errors import (
    GatewayError,
    IncompleteResult,
    ServiceUnavailable,
    UpstreamAmbiguous,
)
from gateway.results.cache_policy import Record, decode, encode
from gateway.results.failover import FailoverStore, LedgerStore, unused
from gateway.results.followers import FollowerPoller, GenerationKey, Waiter
from gateway.results.holdings import Holdings, LeaseTimes, LedGeneration
from gateway.results.shared_errors import decode_error, encode_error
from gateway.results.upkeep import Upkeep
from gateway.results.writer import LedgerWriter
from gateway.store.availability import StoreUnavailable
from gateway.store.generations import (
    UNDELIVERED_REUSED_MS,
    Completion,
    Entry,
    Failure,
    Follow,
    Found,
    GenerationStatus,
    How,
    Lead,
    Place,
    Refusal,
    State,
    known_images,
)
from gateway.store.limits import Limits, Settlement, Verdict
from gateway.store.requests import End, Entered, EnterRequest, Leave
from gateway.tenants.local_limits import LocalLimits

TRIES = 4
"""How often a request looks again after an unusable result; each is discarded."""
LAST_NOTES_S = 1.0
"""How long a worker's end waits for the last writes to the store."""
TRUST_AFTER_S = 1.0
"""How long other workers' leaders may take to come back after a loss of the store."""


class Wait(Protocol):
    """Waits for a future, or raises why it does not."""

    def __call__(self, waiter: Waiter, /) -> Awaitable[GenerationStatus]: ...


class Ledger:
    """Finds each request its place, and keeps alive what this worker holds.

    `fallback` mirrors what this worker holds; without one the store is in-process and always there.
    `now` gives Unix seconds.
    """

    def __init__(
        self,
        store: LedgerStore,
        *,
        worker: str,
        fallback: LedgerStore | None = None,
        local: LocalLimits | None = None,
        now: Callable[[], float] = time.time,
        times: LeaseTimes = LeaseTimes(),
    ) -> None:
        self.local = local or LocalLimits()
        self.times = times
        self._store = store
        self._worker = worker
        self._stores = FailoverStore(store, fallback, self.local)
        self._now = now
        self._poller = FollowerPoller(self._poll, missing_s=times.lead_s / 3 + 1)
        self._holdings = Holdings()
        self._writer = LedgerWriter(
            self._stores, self._holdings, self._poller.adopt, lead_ms=times.lead_ms
        )
        self._upkeep = Upkeep(
            self._stores,
            self._holdings,
            self._writer,
            self.local,
            worker=worker,
            times=times,
        )
        self._trust_at: dict[str, float] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def degraded(self) -> bool:
        """Whether some requests see only this worker's own, and no cache."""
        return self._stores.degraded

    @property
    def has_reached(self) -> bool:
        """Whether the store has ever answered."""
        return self._stores.has_reached

    @property
    def leading(self) -> int:
        return self._holdings.leading

    @property
    def followed(self) -> int:
        """Generations of other workers that have followers here."""
        return self._poller.followed

    @property
    def backlog(self) -> int:
        """Ends that wait for the store."""
        return self._writer.backlog.size

    @property
    def dropped(self) -> int:
        """Ends lost because the backlog was full."""
        return self._writer.backlog.dropped

    def start(self) -> None:
        """Keep leases alive in the background; needs a running event loop."""
        self._task = asyncio.create_task(self._upkeep.run(), name="ledger-upkeep")

    async def aclose(self) -> None:
        """Stop, write the backlog and hand over what is led if the store is there, and sign off."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._poller.aclose()
        if self._background:
            await asyncio.wait(self._background, timeout=LAST_NOTES_S)
        for generation in self._holdings.generations():
            await self._writer.end(handed_over(generation), None)
        for scope in self._writer.backlog.scopes():
            with contextlib.suppress(StoreUnavailable):
                await self._writer.backlog.flush(scope, self._writer.write)
        with contextlib.suppress(StoreUnavailable):
            await self._store.heartbeat(self._worker, 0)
        if self.backlog:
            self._writer.backlog.log_lost()
        for task in self._background:
            task.cancel()

    # -- a request

    async def enter(self, request: EnterRequest) -> Entered[Record]:
        """Find a request its place and admit it, or neither. Never raises StoreUnavailable."""
        try:
            return await self._enter(request)
        except ServiceUnavailable:
            await self._writer.leave(unused(request))
            raise

    async def follow(self, request: EnterRequest, follow: Follow, wait: Wait) -> Entered[Record]:
        """Returns Lead to take over; raises the leader's failure, or what `wait` raises."""
        waiter = self._wait((request.entry.scope, follow.id))
        try:
            status = await wait(waiter)
        except BaseException:
            self._unfollow((request.entry.scope, follow.id), waiter)
            raise
        return await self._after(request, follow.id, status)

    def client_gone(self, lead: Lead, retry_key: str | None) -> None:
        """The leader's client waits no longer: its retry may have what is being made."""

        async def note(store: LedgerStore) -> None:
            await store.client_gone(lead.leadership, retry_key)

        self._spawn(self._stores.mirror(note))
        self._spawn(self._note(lead.leadership.scope, note))

    async def leave(self, leave: Leave) -> None:
        """After the last byte of the answer."""
        await self._writer.leave(leave)

    async def levels(self, tenant: str, limits: Limits) -> Verdict | None:
        """Where a tenant's limits stand, as far as this worker knows."""
        return await self._stores.levels(tenant, limits)

    async def pin_images(self, scope: str, id_: str, pin_s: float) -> None:
        """Every image's bytes are held for so long."""
        pin_ms = round(pin_s * 1000)
        await self._note(scope, lambda store: store.pin_images(scope, id_, pin_ms))

    async def discard(self, scope: str, id_: str) -> None:
        """Forget a result that cannot be used: its bytes are gone, its URLs dead, or no image."""
        await self._note(scope, lambda store: store.discard(scope, id_))

    # -- leading
    #
    # None of these raises: what the store cannot be told now it is told later. Those that end a
    # generation say where the tenant's limits stand then, or None if nobody knows.

    async def progress(
        self, lead: Lead, index: int, urls: Sequence[str], paid: Settlement | None
    ) -> None:
        """Keep a call's images so far; without `paid` only in this worker: the end follows."""
        await self._writer.progress(lead.leadership, index, urls, paid)

    async def finish(
        self,
        lead: Lead,
        entry: Entry,
        record: Record,
        cache_s: float,
        paid: Settlement,
        *,
        leaves: bool = False,
    ) -> Verdict | None:
        """Give the result to all who wait, and keep it: in the cache for `cache_s`.

        `leaves`: no `leave` follows, unless the leader's answer is not delivered.
        """
        result = encode(record)
        completion = Completion(
            result,
            life_ms=round(record.life_s(self._now()) * 1000),
            keep_ms=UNDELIVERED_REUSED_MS,
            cache_key=entry.cache_key,
            cache_ms=round(cache_s * 1000),
        )
        end = End(
            leadership=lead.leadership,
            retry_key=entry.retry_key,
            outcome=completion,
            settlement=paid,
            leaves=leaves,
        )
        return await self._writer.end(end, GenerationStatus(State.DONE, result))

    async def fail(
        self, lead: Lead, entry: Entry, error: GatewayError | None, paid: Settlement
    ) -> Verdict | None:
        """Give the failure to all who wait; what was paid for stays for the retry.

        None leaves the generation to one of those who wait: the obstacle is this request's own.
        """
        shared = None if error is None else encode_error(error)
        end = End(
            leadership=lead.leadership,
            retry_key=entry.retry_key,
            outcome=Failure(error=shared, doubtful=is_doubtful(error)),
            settlement=paid,
        )
        status = None if shared is None else GenerationStatus(State.FAILED, shared)
        return await self._writer.end(end, status)

    # -- finding a place

    async def _enter(self, request: EnterRequest) -> Entered[Record]:
        is_held = False
        for _ in range(TRIES):
            entered = await self._ask(request)
            if entered.place is None or isinstance(entered.place, Refusal):
                if is_held:
                    await self._writer.leave(unused(request))
                return Entered(entered.verdict, entered.place)
            if not entered.has_left:
                is_held = True
                await self._stores.mirror_entry(request, entered)
                reservation = request.take.reservation.less(known_images(entered.place))
                self._holdings.reserve(request.take.tenant, reservation)
            place = await self._accept(request, entered.place)
            if place is not None:
                if entered.has_left:  # while it cannot be read, the request may yet pay
                    await self._stores.mirror_entry(request, entered)
                return Entered(entered.verdict, place, entered.has_left)
            request = replace(request, follows=entered.place.id)
        raise ServiceUnavailable("What is kept for this request cannot be read; try again.")

    async def _ask(self, request: EnterRequest) -> Entered[bytes]:
        try:
            entered, is_in_doubt = await self._stores.enter(request)
        except asyncio.CancelledError:
            # The store may have been asked: its answer would be nobody's.
            self._spawn(self._writer.leave(unused(request)))
            raise
        if is_in_doubt and not entered.verdict.allowed:
            self._writer.write_later(unused(request))
        return entered

    async def _accept(self, request: EnterRequest, place: Place[bytes]) -> Place[Record] | None:
        """None for a result that is not this gateway's."""
        if isinstance(place, Found):
            return await self._read(request.entry, place)
        if isinstance(place, Lead):
            self._lead(request, place)
        return place

    def _lead(self, request: EnterRequest, lead: Lead) -> None:
        entry, paid = request.entry, unused(request).settlement
        until = asyncio.get_running_loop().time() + self.times.longest_s
        generation = LedGeneration(entry, lead.leadership, lead.parts, until=until, paid=paid)
        generation.waiters = self._poller.take(generation.key)
        generation.is_stored = not self._stores.is_lost(entry.scope)
        self._holdings.lead(generation)

    async def _read(self, entry: Entry, found: Found[bytes]) -> Found[Record] | None:
        record = decode(found.result, entry.images)
        if record is None:
            await self.discard(entry.scope, found.id)
            return None
        return Found(found.id, record, found.age_ms, found.how)

    # -- following

    def _wait(self, key: GenerationKey) -> Waiter:
        generation = self._holdings.find(key)
        if generation is None:
            return self._poller.wait(key)
        waiter: Waiter = asyncio.get_running_loop().create_future()
        generation.waiters[waiter] = None
        return waiter

    def _unfollow(self, key: GenerationKey, waiter: Waiter) -> None:
        """The generation may have changed hands meanwhile."""
        generation = self._holdings.find(key)
        if generation is not None:
            generation.waiters.pop(waiter, None)
        self._poller.leave(key, waiter)

    async def _after(
        self, request: EnterRequest, id_: str, status: GenerationStatus
    ) -> Entered[Record]:
        if status.state is State.FAILED:
            raise decode_error(status.payload)
        if status.state is State.DONE:
            found = Found(id_, status.payload, status.age_ms, How.JOINED)
            readable = await self._read(request.entry, found)
            if readable is not None:
                return Entered(Verdict(allowed=True), readable)
        entered = await self._enter(replace(request, follows=id_))
        if isinstance(entered.place, Refusal):
            raise ServiceUnavailable("The images that were waited for are lost.")
        return entered

    async def _poll(self, scope: str, ids: Sequence[str]) -> Sequence[GenerationStatus]:
        """Without the store, and just after, other workers' leaders are trusted."""
        loop = asyncio.get_running_loop()
        statuses = await self._stores.ask(scope, lambda store: store.poll(scope, ids))
        unknown = {State.MISSING}
        if self._stores.is_lost(scope):
            self._trust_at[scope] = loop.time() + TRUST_AFTER_S
        elif loop.time() < self._trust_at.get(scope, 0.0):
            unknown.add(State.DEAD)
        else:
            self._trust_at.pop(scope, None)
            return statuses
        running = GenerationStatus(State.RUNNING)
        return [running if one.state in unknown else one for one in statuses]

    # -- notes

    async def _note(self, scope: str, note: Callable[[LedgerStore], Awaitable[None]]) -> None:
        """Write what the store can do without."""
        with contextlib.suppress(StoreUnavailable):
            await self._stores.ask(scope, note)

    def _spawn(self, work: Any) -> None:  # noqa: ANN401 - any coroutine
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def handed_over(generation: LedGeneration) -> End:
    """A worker ends: its followers elsewhere need not wait for its lease."""
    return End(
        leadership=generation.leadership,
        retry_key=generation.entry.retry_key,
        outcome=Failure(),
        settlement=generation.paid,
    )


def is_doubtful(error: GatewayError | None) -> bool:
    """Whether nobody knows what was billed; a call that brought too few images was answered."""
    return isinstance(error, UpstreamAmbiguous) and not isinstance(error, IncompleteResult)

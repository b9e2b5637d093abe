"""Ledgers over one store that can be away, in virtual time: the workers of a gateway."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

from msgspec import Struct
from msgspec.structs import replace

from gateway.domain.errors import GatewayError, UpstreamTimeout
from gateway.observability.context import ClientOutcome
from gateway.results import Doubtful, Entry, Follow, Found, How, Lead, Ledger, Refusal
from gateway.results.cache_policy import Record
from gateway.results.holdings import LeaseTimes
from gateway.store.availability import Share, StoreUnavailable
from gateway.store.limits import Limits, Reservation, Settlement, TakeRequest, Verdict
from gateway.store.memory import MemoryStore
from gateway.store.requests import Entered, EnterRequest, Leave

NOON = 1_800_000_000.0
LIFE_S = 86_400
SCOPE = "tenant:acme"
TENANT = "acme"
LEAD_S = 10.0
PRICE = 1_000


def now() -> float:
    """Unix time, as far as the loop has come."""
    return NOON + asyncio.get_running_loop().time()


class FlakyStore(MemoryStore):
    """A store that can be away, or do what it is asked and not answer."""

    def __init__(self) -> None:
        super().__init__(now)
        self.is_away = False
        self.away_for: set[str] = set()
        """Scopes on a node that is away."""
        self.is_silent = False
        self.asked: list[str] = []
        self.entered: list[str] = []
        """The requests that asked for their place."""
        self.share = Share()
        """What a worker is told of itself."""
        self.drop_next_end = False
        """Answer the next end, and forget it: a master that dies before its replica has it."""

    def lose_everything(self) -> None:
        """As a server that was restarted without its data."""
        vars(self).update(vars(MemoryStore(now)))

    async def heartbeat(self, worker: str, ttl_ms: int) -> Share:
        await super().heartbeat(worker, ttl_ms)
        return self.share

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in OPERATIONS:
            return self._flaky(name, found)
        return found

    def _flaky(
        self, name: str, operation: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        async def ask(*args: Any) -> Any:
            self.asked.append(name)
            if name == "enter":
                self.entered.append(args[0].entry.request)
            await asyncio.sleep(0.001)
            if self.is_away or scope_of(args[0]) in self.away_for:
                raise StoreUnavailable("gone")
            before = copy.deepcopy(vars(self)) if name == "end" and self.drop_next_end else None
            answer = await operation(*args)
            if before is not None:
                vars(self).update(before, drop_next_end=False)
            if self.is_silent:
                raise StoreUnavailable("silent", in_doubt=True)
            return answer

        return ask


def scope_of(first: Any) -> str:
    """The scope of an operation's first argument."""
    match first:
        case EnterRequest():
            return first.entry.scope
        case Leave():
            return first.scope
        case list():
            (scope,) = {scope_of(one) for one in first}
            return scope
        case str():
            return first if ":" in first else f"tenant:{first}"
    owner = getattr(first, "leadership", first)
    return str(owner.scope)


OPERATIONS = {
    "enter",
    "end",
    "leave",
    "restore",
    "progress",
    "renew",
    "renew_leaderships",
    "poll",
    "levels",
    "heartbeat",
    "pin_images",
    "discard",
}


class Failed(Struct, frozen=True):
    """A follower was told an error."""

    error: GatewayError


class Request:
    """One request in one worker, as its pipeline would lead it through the ledger."""

    def __init__(
        self, ledger: Ledger, wanted: Entry, limits: Limits = Limits(), tenant: str | None = None
    ) -> None:
        self.ledger = ledger
        self.tenant = tenant or wanted.scope.partition(":")[2]
        self.entry = wanted
        self.paid = 0
        self.verdict = Verdict(allowed=True)
        reservation = Reservation(wanted.request, "qwen", wanted.images, wanted.images * PRICE)
        take = TakeRequest(self.tenant, limits, reservation)
        self.request = EnterRequest(entry=wanted, take=take, lead_ms=round(LEAD_S * 1000))
        self.place: Any = None

    async def enter(self) -> Any:
        return self._at(await self.ledger.enter(self.request))

    def _at(self, entered: Entered[Record]) -> Any:
        self.verdict, self.place = entered.verdict, entered.place
        match self.place:
            case Lead() as lead:
                return Leading(self, lead)
            case Follow() as follow:
                return Following(self, follow)
        return self.place

    def settlement(self) -> Settlement:
        return Settlement(
            self.tenant, self.entry.request, "qwen", images=self.paid, cost=self.paid * PRICE
        )

    async def leave(self, outcome: ClientOutcome) -> None:
        await self.ledger.leave(
            Leave(
                settlement=self.settlement(),
                outcome=outcome,
                scope=self.entry.scope,
                generation=getattr(self.place, "id", None),
                retry_key=self.entry.retry_key,
            )
        )


class Leading:
    """A request that pays."""

    def __init__(self, request: Request, lead: Lead) -> None:
        self.request, self.ledger = request, request.ledger
        self.lead = lead
        self.id, self.parts = lead.id, lead.parts
        self.leadership = lead.leadership

    async def progress(self, index: int, urls: Sequence[str]) -> None:
        known = len(self.parts.get(index, ()))
        self.request.paid += len(urls) - known
        await self.ledger.progress(self.lead, index, urls, self.request.settlement())

    async def finish(self, record: Record, cache_s: float = 0.0) -> None:
        known = sum(map(len, self.parts.values()))
        self.request.paid = max(self.request.paid, len(record.urls) - known)
        await self.ledger.finish(
            self.lead, self.request.entry, record, cache_s, self.request.settlement()
        )

    async def fail(self, error: GatewayError) -> None:
        await self.ledger.fail(self.lead, self.request.entry, error, self.request.settlement())

    async def hand_over(self) -> None:
        await self.ledger.fail(self.lead, self.request.entry, None, self.request.settlement())

    async def leave(self, outcome: ClientOutcome = ClientOutcome.DELIVERED) -> None:
        await self.request.leave(outcome)


class Following:
    """A request that waits for another's images."""

    def __init__(self, request: Request, follow: Follow) -> None:
        self.request = request
        self.follow = follow
        self.id, self.how = follow.id, follow.how

    async def outcome(self, within_s: float = 300.0) -> Any:
        """Found, Leading or Failed; within its time, or else it has left."""

        async def wait(waiter: asyncio.Future[Any]) -> Any:
            try:
                return await asyncio.wait_for(asyncio.shield(waiter), within_s)
            except TimeoutError:
                raise UpstreamTimeout("not ready in time") from None

        request = self.request
        try:
            place = request._at(await request.ledger.follow(request.request, self.follow, wait))
        except GatewayError as error:
            return Failed(error)
        if isinstance(place, Following):
            self.follow = place.follow
            return await self.outcome(within_s)
        return place

    async def leave(self, outcome: ClientOutcome = ClientOutcome.GONE) -> None:
        await self.request.leave(outcome)


class Gateway:
    """Some workers over one store."""

    def __init__(self, workers: int = 2, **options: Any) -> None:
        self.store = FlakyStore()
        self.workers: list[Ledger] = []
        for number in range(workers):
            self.add(worker=f"w{number}", **options)

    def add(self, **options: Any) -> None:
        fallback = MemoryStore(now)
        longest_s = options.pop("longest_s", 3600.0)
        times = LeaseTimes(lead_s=LEAD_S, longest_s=longest_s, beat_s=options.pop("beat_s", 0.5))
        self.workers.append(Ledger(self.store, fallback=fallback, now=now, times=times, **options))

    async def __aenter__(self) -> Self:
        for worker in self.workers:
            worker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self.workers:
            await worker.aclose()

    async def kill(self, number: int) -> None:
        """A worker ends without a word."""
        worker = self.workers[number]
        for task in (worker._task, worker._poller._task):
            if task:
                task.cancel()
        worker._stores.store = worker._store = Dead()


class Dead(FlakyStore):
    """What a killed worker's last words reach."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = True


def entry(request: str, **changes: object) -> Entry:
    base = Entry(scope=SCOPE, request=request, plan_hash="plan", images=1, cache_key="key")
    return replace(base, **changes)


def unshared(request: str, **changes: object) -> Entry:
    return entry(request, **{"cache_key": None, "retry_key": "same", **changes})


def record(name: str = "a", images: int = 1, life_s: float = LIFE_S) -> Record:
    return Record(
        urls=tuple(f"https://images/{name}/{number}.png" for number in range(images)),
        created=int(now()),
        expires_at=int(now() + life_s),
        model="qwen-image",
    )


async def enter(worker: Ledger, wanted: Entry, **options: Any) -> Any:
    return await Request(worker, wanted, **options).enter()


async def lead(worker: Ledger, wanted: Entry, **options: Any) -> Leading:
    place = await enter(worker, wanted, **options)
    assert isinstance(place, Leading), place
    return place


async def follow(worker: Ledger, wanted: Entry, **options: Any) -> Following:
    place = await enter(worker, wanted, **options)
    assert isinstance(place, Following), place
    return place


async def done(worker: Ledger, wanted: Entry, **options: Any) -> Found[Record]:
    place = await enter(worker, wanted, **options)
    assert isinstance(place, Found), place
    return place


def remaining(verdict: Verdict) -> list[int | None]:
    """What is left of each limit, in the order of `Limits`."""
    levels = (verdict.requests, verdict.images, verdict.concurrent, verdict.day, verdict.month)
    return [None if level is None else level.remaining for level in levels]


def waiting(place: Following, within_s: float = 300.0) -> asyncio.Task[Any]:
    return asyncio.create_task(place.outcome(within_s))


__all__ = [
    "LEAD_S",
    "SCOPE",
    "Doubtful",
    "Failed",
    "Following",
    "Found",
    "Gateway",
    "How",
    "Leading",
    "Refusal",
    "Request",
    "done",
    "enter",
    "entry",
    "follow",
    "lead",
    "record",
    "remaining",
    "unshared",
    "waiting",
]

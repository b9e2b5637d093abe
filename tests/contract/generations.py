"""Requests and results for the contract of generations, and short ways to the operations."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from gateway.observability.context import ClientOutcome
from gateway.store import Store
from gateway.store.generations import (
    Completion,
    Entry,
    Failure,
    FencingResult,
    Found,
    How,
    Lead,
    Leadership,
    Place,
    State,
)
from gateway.store.limits import Limits, Reservation, Settlement, TakeRequest
from gateway.store.requests import End, EnterRequest, Leave

LEASE_MS = 10_000
DAY_MS = 86_400_000
SCOPE = "tenant:acme"
UNLIMITED = Limits()


def entry(request: str, **changes: object) -> Entry:
    """A request that shares its result by a cache key."""
    base = Entry(scope=SCOPE, request=request, plan_hash="plan", images=1, cache_key="key")
    return replace(base, **changes)


def unshared(request: str, **changes: object) -> Entry:
    """A request that only its own retry may find."""
    return entry(request, **{"cache_key": None, "retry_key": "same", **changes})


def retry(request: str, **changes: object) -> Entry:
    return unshared(request, is_retry=True, **changes)


def completion(result: bytes = b"result", **changes: object) -> Completion:
    base = Completion(result, life_ms=DAY_MS, keep_ms=600_000, cache_key="key", cache_ms=DAY_MS)
    return replace(base, **changes)


UNCACHED = completion(cache_key=None, cache_ms=0)


def tenant_of(scope: str) -> str:
    """Whose requests a test's are: a group's are everybody's."""
    kind, _, name = scope.partition(":")
    return name if kind == "tenant" else "acme"


def request_of(
    wanted: Entry,
    follows: str | None = None,
    *,
    limits: Limits = UNLIMITED,
    images: int | None = None,
    cost: int = 0,
) -> EnterRequest:
    """One that may use as many images as it wants, unless the test says otherwise."""
    want = Reservation(wanted.request, "m", wanted.images if images is None else images, cost)
    take = TakeRequest(tenant_of(wanted.scope), limits, want)
    return EnterRequest(entry=wanted, take=take, lead_ms=LEASE_MS, follows=follows)


async def enter(store: Store, wanted: Entry, follows: str | None = None) -> Place[bytes]:
    """The place of a request without limits."""
    entered = await store.enter(request_of(wanted, follows))
    assert entered.place is not None
    return entered.place


async def lead(store: Store, wanted: Entry, follows: str | None = None) -> Leadership:
    place = await enter(store, wanted, follows)
    assert isinstance(place, Lead), place
    return place.leadership


async def found(store: Store, wanted: Entry) -> tuple[bytes, How]:
    place = await enter(store, wanted)
    assert isinstance(place, Found), place
    return place.result, place.how


async def progress(
    store: Store, leadership: Leadership, index: int, urls: Sequence[str]
) -> FencingResult:
    return await store.progress(leadership, index, urls, nothing_used(leadership))


async def end(
    store: Store,
    leadership: Leadership,
    outcome: Completion | Failure,
    *,
    retry_key: str | None = None,
    client: ClientOutcome | None = None,
) -> FencingResult:
    """With a `client`, its leader leaves, too."""
    told = End(
        leadership=leadership,
        retry_key=retry_key,
        outcome=outcome,
        settlement=nothing_used(leadership),
    )
    standing, _ = await store.end(told)
    if client is not None:
        await leave(store, leadership, client, retry_key)
    return standing


async def leave(
    store: Store,
    leadership: Leadership,
    outcome: ClientOutcome = ClientOutcome.GONE,
    retry_key: str | None = "same",
) -> None:
    """`leadership.leader` is the request that leaves, whether it leads or not."""
    await store.leave(
        Leave(
            settlement=nothing_used(leadership),
            outcome=outcome,
            scope=leadership.scope,
            generation=leadership.id,
            retry_key=retry_key,
        )
    )


def nothing_used(leadership: Leadership) -> Settlement:
    return Settlement(tenant_of(leadership.scope), leadership.leader, "m", 0, 0)


async def state(store: Store, id_: str) -> State:
    (status,) = await store.poll(SCOPE, [id_])
    return status.state

"""Requests at the door: what each may use, what is booked of it, and what a refused one is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Limits, Tenant
from gateway.domain.errors import (
    BudgetExhausted,
    GatewayError,
    LargerThanLimit,
    RateLimited,
    ServiceUnavailable,
)
from gateway.observability.context import ClientOutcome, RequestContext
from gateway.observability.metrics import Metrics
from gateway.protocol.openai import ImageRequest
from gateway.results import Ledger
from gateway.results.failover import ALONE_RETRY_MS
from gateway.store.availability import Share
from gateway.store.generations import Entry, Failure, Leadership
from gateway.store.limits import CONCURRENCY_RETRY_MS
from gateway.store.memory import MemoryStore
from gateway.store.requests import End, EnterRequest, Leave
from gateway.tenants.admission import LEASE_MS, Admission, Books, Ticket
from gateway.tenants.keys import Caller, choose_model
from gateway.tenants.local_limits import LocalLimits
from gateway.tenants.usage_log import UsageLog
from gateway.translate.request import Plan, to_dashscope
from tests.contract.stores import Clock, remaining
from tests.running import shipped_catalogue, tenants
from tests.unit.ledgers import FlakyStore
from tests.virtual_time import in_virtual_time

SCOPE = "tenant:acme"


class Door:
    """An admission over a store, and one tenant."""

    def __init__(
        self, usage: UsageLog | None = None, *, books_doubtful: bool = True, **limits: Any
    ) -> None:
        self.clock = Clock()
        self.store = MemoryStore(self.clock)
        acme, *_ = tenants()
        tenant = Tenant(name="acme", keys=acme.keys, limits=Limits(**limits))
        self.caller = Caller(tenant, tenant.keys[0])
        self.metrics = Metrics("test")
        self.admission = Admission(
            [tenant],
            metrics=self.metrics,
            usage=usage,
            now=self.clock,
            steady=self.clock,
            books=Books(doubtful=books_doubtful),
        )
        self._requests = 0

    def ticket(self, **fields: Any) -> Ticket:
        self._requests += 1
        context = RequestContext(f"req_{self._requests}")
        return self.admission.ticket(self.caller, self.plan(**fields), context)

    def request(self, ticket: Ticket, **more: Any) -> EnterRequest:
        """One whose result is shared with nobody, unless `more` names a generation to follow."""
        entry = Entry(
            scope=SCOPE,
            request=ticket.context.request_id,
            plan_hash="plan",
            images=ticket.plan.images,
            cache_key=more.pop("cache_key", None),
        )
        return EnterRequest(entry=entry, take=ticket.wanted, lead_ms=1000, **more)

    async def admit(self, **fields: Any) -> Ticket:
        ticket = self.ticket(**fields)
        entered = await self.store.enter(self.request(ticket))
        self.admission.check(ticket, entered.verdict, was_following=False)
        return ticket

    async def refused(self, **fields: Any) -> GatewayError:
        with pytest.raises(GatewayError) as caught:
            await self.admit(**fields)
        return caught.value

    async def end(self, ticket: Ticket) -> None:
        """With nothing to show; its client is told at once."""
        id_ = ticket.context.request_id
        end = End(
            leadership=Leadership(SCOPE, id_, id_),
            retry_key=None,
            outcome=Failure(error=b"no"),
            settlement=ticket.settlement(),
        )
        await self.store.end(end)
        leave = Leave(
            settlement=ticket.settlement(),
            outcome=ClientOutcome.ANSWERED,
            scope=SCOPE,
            generation=id_,
        )
        verdict = await self.store.leave(leave)
        self.admission.settled(ticket, verdict)

    async def generate(self, seconds: float) -> None:
        ticket = await self.admit()
        self.clock.advance(seconds)
        ticket.book(1)
        await self.end(ticket)

    async def left(self) -> list[int | None]:
        limits = self.admission.limits_of(self.caller)
        return remaining(await self.store.levels("acme", limits))

    def plan(self, **fields: Any) -> Plan:
        request = ImageRequest(prompt="a fox", **fields)
        choice = choose_model(
            shipped_catalogue(), self.caller.tenant, request.model, "qwen-image-2.0"
        )
        return to_dashscope(request, choice, "nearest")


def limit_headers(ticket: Ticket) -> Mapping[str, str]:
    made = ticket.context.limit_headers
    assert made is not None
    return made()


# --- what is reserved, and what is booked of it


async def test_a_request_may_use_all_of_its_images_and_their_price() -> None:
    door = Door(images_per_day=10)
    ticket = door.ticket(n=4)
    reservation = ticket.wanted.reservation
    assert (reservation.id, reservation.images) == (ticket.context.request_id, 4)
    assert reservation.cost == 4 * door.plan().entry.cost(ticket.plan.size).micros
    assert reservation.family == ticket.plan.family


async def test_every_call_is_booked_at_once_and_the_rest_given_back_at_the_end(
    tmp_path: Path,
) -> None:
    usage = UsageLog(tmp_path / "usage.jsonl")
    door = Door(usage, images_per_day=10)
    ticket = await door.admit(n=4)
    ticket.book(2)
    ticket.doubt(1)
    lines = [json.loads(line) for line in (tmp_path / "usage.jsonl").read_text().splitlines()]
    calls = [(line.get("call", 0), line["images"], line.get("doubtful", False)) for line in lines]
    assert calls == [(0, 2, False), (1, 1, True)]
    await door.end(ticket)
    assert (await door.left())[3] == 7
    usage.close()


@pytest.mark.parametrize(("books_doubtful", "left"), [(True, 8), (False, 10)])
async def test_whether_a_doubtful_image_counts_is_configured(
    books_doubtful: bool, left: int
) -> None:
    door = Door(books_doubtful=books_doubtful, images_per_day=10)
    ticket = await door.admit(n=2)
    ticket.doubt(2)
    await door.end(ticket)
    assert (await door.left())[3] == left


async def test_an_answer_says_where_the_limits_stand_after_it() -> None:
    door = Door(images_per_minute=10)
    ticket = await door.admit(n=4)
    assert limit_headers(ticket)["x-ratelimit-remaining-images"] == "6"
    ticket.book(1)
    await door.end(ticket)
    assert limit_headers(ticket)["x-ratelimit-remaining-images"] == "9"


async def test_a_refused_request_is_told_its_limits_too() -> None:
    door = Door(requests_per_minute=1)
    await door.admit()
    ticket = door.ticket()
    entered = await door.store.enter(door.request(ticket))
    with pytest.raises(RateLimited):
        door.admission.check(ticket, entered.verdict, was_following=False)
    assert limit_headers(ticket)["x-ratelimit-remaining-requests"] == "0"


# --- a full concurrency


@pytest.mark.parametrize(
    ("places", "generation_s", "told_s"), [(2, 20, 10), (1, 20, 20), (1, 300, 59), (50, 20, 1)]
)
async def test_the_wait_for_a_place_is_guessed_from_how_long_they_are_held(
    places: int, generation_s: float, told_s: float
) -> None:
    """Never less than a second, nor so long that an SDK would not believe it."""
    door = Door(concurrent_requests=places)
    for _ in range(3):
        await door.generate(generation_s)
    for _ in range(places):
        await door.admit()
    error = await door.refused()
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == pytest.approx(told_s, abs=0.001)


async def test_a_tenant_s_first_requests_tell_nothing_yet() -> None:
    door = Door(concurrent_requests=1)
    await door.admit()
    assert (await door.refused()).retry_after_s == CONCURRENCY_RETRY_MS / 1000


async def test_a_guess_follows_what_changes() -> None:
    door = Door(concurrent_requests=1)
    for generation_s in [10] * 5 + [40] * 40:
        await door.generate(generation_s)
        door.store = MemoryStore(door.clock)  # no lease is renewed here
    await door.admit()
    assert (await door.refused()).retry_after_s == pytest.approx(40, abs=0.5)


# --- taking over


async def test_who_takes_over_from_the_dead_is_not_told_that_the_budget_is_used_up() -> None:
    """The dead one's images are booked until its lease ends; after that there is room."""
    door = Door(images_per_day=4)
    dead, follower = door.ticket(n=3), door.ticket(n=3)
    await door.store.enter(door.request(dead, cache_key="key"))
    joined = await door.store.enter(door.request(follower, cache_key="key"))
    door.admission.check(follower, joined.verdict, was_following=False)
    door.clock.advance(10)
    takes_over = door.request(follower, cache_key="key", follows=dead.context.request_id)
    refused = await door.store.enter(takes_over)
    with pytest.raises(ServiceUnavailable) as told:
        door.admission.check(follower, refused.verdict, was_following=True)
    assert told.value.retry_after_s == LEASE_MS / 1000
    door.clock.advance(LEASE_MS / 1000)
    entered = await door.store.enter(takes_over)
    door.admission.check(follower, entered.verdict, was_following=True)
    assert (await door.left())[3] == 1


async def test_who_takes_over_is_told_of_every_other_limit_as_it_is() -> None:
    door = Door(images_per_minute=4)
    await door.admit(n=3)
    follower = door.ticket(n=3)
    entered = await door.store.enter(door.request(follower))
    with pytest.raises(RateLimited):
        door.admission.check(follower, entered.verdict, was_following=True)


async def test_a_used_up_budget_is_told_to_a_new_request() -> None:
    door = Door(images_per_day=4)
    await door.admit(n=3)
    assert isinstance(await door.refused(n=3), BudgetExhausted)


# --- too large


@in_virtual_time
async def test_without_the_store_too_large_for_the_share_is_not_too_large() -> None:
    """It fits the limit, so it may come back; what does not fit that is told so at once."""
    door = Door(images_per_minute=4)
    store = FlakyStore()
    store.is_away = True
    local = LocalLimits(share=Share(0, 2))
    ledger = Ledger(store, worker="w1", fallback=MemoryStore(door.clock), local=local)

    async def told(images: int) -> GatewayError:
        ticket = door.ticket(n=images)
        decision = await ledger.enter(door.request(ticket))
        with pytest.raises(GatewayError) as caught:
            door.admission.check(ticket, decision.verdict, was_following=False)
        return caught.value

    share, whole = await told(3), await told(5)
    assert type(share) is RateLimited
    assert share.retry_after_s == ALONE_RETRY_MS / 1000
    assert type(whole) is LargerThanLimit

"""Requests at the door: what each reserves and under which name, and what a refused one is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.config import Limits, Tenant
from gateway.domain.errors import GatewayError, LargerThanLimit, RateLimited, ServiceUnavailable
from gateway.observability.context import RequestContext
from gateway.observability.metrics import Metrics
from gateway.protocol.openai import ImageRequest
from gateway.store.base import CONCURRENCY_RETRY_MS, Share, StoreUnavailable, TakeRequest, Verdict
from gateway.store.memory import MemoryStore
from gateway.tenants.admission import Admission, AdmissionTicket
from gateway.tenants.keys import Caller, choose_model
from gateway.tenants.limiter import ALONE_RETRY_MS, Limiter
from gateway.translate.request import Plan, to_dashscope
from tests.contract.stores import Clock, remaining
from tests.running import shipped_catalogue, tenants


class Swallowing(MemoryStore):
    """A store that may do what it is asked and not answer."""

    swallows = False

    async def take(self, ask: TakeRequest) -> Verdict:
        verdict = await super().take(ask)
        if self.swallows:
            raise StoreUnavailable("silent", in_doubt=True)
        return verdict


class Door:
    """An admission with its parts, and one tenant."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.store = Swallowing(self.clock)
        self.limiter = Limiter(self.store, worker="w1", fallback=MemoryStore(self.clock))
        acme, *_ = tenants()
        tenant = Tenant(name="acme", keys=acme.keys, limits=Limits(**limits))
        self.caller = Caller(tenant, tenant.keys[0])
        self.admission = Admission(
            self.limiter,
            [tenant],
            metrics=Metrics("test"),
            usage=None,
            now=self.clock,
            steady=self.clock,
        )

    async def admit(self, context: RequestContext | None = None, **fields: Any) -> AdmissionTicket:
        plan = self.plan(**fields)
        return await self.admission.admit(self.caller, plan, context or RequestContext("req_1"))

    async def refused(self, context: RequestContext | None = None, **fields: Any) -> GatewayError:
        with pytest.raises(GatewayError) as caught:
            await self.admit(context, **fields)
        return caught.value

    def plan(self, **fields: Any) -> Plan:
        request = ImageRequest(prompt="a fox", **fields)
        choice = choose_model(
            shipped_catalogue(), self.caller.tenant, request.model, "qwen-image-2.0"
        )
        return to_dashscope(request, choice, "nearest")


async def test_an_attempt_that_is_taken_back_leaves_the_next_one_alone() -> None:
    """The store carried out the first, unheard; what it holds is released when it answers again."""
    door, context = Door(concurrent_requests=10, images_per_day=100), RequestContext("req_1")
    door.store.swallows = True
    await door.refused(context, n=6)
    door.store.swallows = False
    await door.admit(context, n=6)
    door.limiter.start()
    await asyncio.sleep(0.02)
    assert door.limiter.owed == 0
    levels = (await door.store.usage("acme", door.admission._limits["acme"])).levels
    assert remaining(levels)[2:4] == [9, 94]
    await door.limiter.aclose()


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
        held = await door.admit()
        door.clock.advance(generation_s)
        await door.admission.settle(held, 1, "req_1")
    for _ in range(places):
        await door.admit()
    error = await door.refused()
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == pytest.approx(told_s, abs=0.001)


async def test_a_tenant_s_first_requests_tell_nothing_yet() -> None:
    door = Door(concurrent_requests=1)
    await door.admit()
    assert (await door.refused()).retry_after_s == CONCURRENCY_RETRY_MS / 1000


async def test_requests_that_make_nothing_do_not_shorten_the_guess() -> None:
    """Those that are given another's images hold their place for a moment."""
    door = Door(concurrent_requests=1)
    held = await door.admit()
    door.clock.advance(30)
    await door.admission.settle(held, 1, "req_1")
    for _ in range(20):
        free = await door.admission.admit(door.caller, door.plan(), RequestContext("r"), pays=False)
        await door.admission.settle(free, 0, "req_1")
    await door.admit()
    assert (await door.refused()).retry_after_s == pytest.approx(30, abs=0.001)


async def test_a_guess_follows_what_changes() -> None:
    door = Door(concurrent_requests=1)
    for generation_s in [10] * 5 + [40] * 40:
        held = await door.admit()
        door.clock.advance(generation_s)
        await door.admission.settle(held, 1, "req_1")
    await door.admit()
    assert (await door.refused()).retry_after_s == pytest.approx(40, abs=0.5)


# --- taking over


async def test_who_takes_over_from_the_dead_is_not_told_that_the_budget_is_used_up() -> None:
    """The dead one's images are booked until its lease ends; after that there is room."""
    door = Door(images_per_day=4)
    await door.admit(n=3)
    follower = await door.admission.admit(
        door.caller, door.plan(n=3), RequestContext("req_2"), pays=False
    )
    with pytest.raises(ServiceUnavailable) as refused:
        await door.admission.pay(follower)
    assert refused.value.retry_after_s == door.limiter.lease_s
    door.clock.advance(door.limiter.lease_s)
    held = await door.admission.pay(follower)
    await door.admission.settle(held, 3, "req_2")
    levels = (await door.store.usage("acme", door.admission._limits["acme"])).levels
    assert remaining(levels)[3] == 1


# --- too large


class Away(MemoryStore):
    async def take(self, ask: TakeRequest) -> Verdict:
        raise StoreUnavailable("gone")


async def test_without_the_store_too_large_for_the_share_is_not_too_large() -> None:
    """It fits the limit, so it may come back; what does not fit that is told so at once."""
    door = Door(images_per_minute=4)
    door.limiter.share = Share(0, 2)
    door.limiter._store = Away(door.clock)
    share, whole = await door.refused(n=3), await door.refused(n=5)
    assert type(share) is RateLimited
    assert share.retry_after_s == ALONE_RETRY_MS / 1000
    assert type(whole) is LargerThanLimit

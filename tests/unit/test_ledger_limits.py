"""Reservations and settlements that must not be lost, and limits without the store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from msgspec.structs import replace

from gateway.config import OnLoss
from gateway.domain.errors import ServiceUnavailable, UpstreamFailed
from gateway.observability.context import ClientOutcome
from gateway.results import Ledger, Refusal
from gateway.results.failover import ALONE_RETRY_MS
from gateway.results.writer import Backlog
from gateway.store.availability import Share, StoreUnavailable
from gateway.store.generations import Idempotency
from gateway.store.limits import Limits, Reason, Verdict
from gateway.tenants.local_limits import LocalLimits, Policy
from tests.unit.ledgers import (
    SCOPE,
    TENANT,
    Gateway,
    Leading,
    Request,
    entry,
    lead,
    record,
    remaining,
)
from tests.virtual_time import in_virtual_time

COST = 1_000
ALL = Limits(
    requests_per_minute=100,
    images_per_minute=100,
    concurrent_requests=100,
    images_per_day=100,
    spend_per_month=100 * COST,
)
RATES = Limits(requests_per_minute=100)
LOCAL = OnLoss(budgets="local")


def gateway_of(
    on_loss: OnLoss = OnLoss(), share: Share = Share(), workers: int = 1, **options: Any
) -> Gateway:
    gateway = Gateway(0)
    gateway.store.share = share
    for number in range(workers):
        local = LocalLimits(on_loss, Share(number, workers) if workers > 1 else share)
        gateway.add(worker=f"w{number}", local=local, **options)
    return gateway


async def enter(
    gateway: Gateway, name: object, limits: Limits, images: int = 1, worker: int = 0
) -> Request:
    """One that would lead, whatever else runs."""
    wanted = entry(f"r{name}", cache_key=None, images=images)
    request = Request(gateway.workers[worker], wanted, limits)
    await request.enter()
    return request


async def admitted(
    gateway: Gateway, limits: Limits, of: int, name: str = "", worker: int = 0
) -> int:
    requests = [await enter(gateway, f"{name}{n}", limits, worker=worker) for n in range(of)]
    return sum(request.verdict.allowed for request in requests)


async def settle(request: Request, images: int = 1) -> Verdict | None:
    request.paid = images
    error = UpstreamFailed("no")
    return await request.ledger.fail(request.place, request.entry, error, request.settlement())


async def left(gateway: Gateway) -> list[int | None]:
    """As the store sees it; money in images."""
    levels = remaining(await gateway.store.levels(TENANT, ALL))
    assert levels[4] is not None
    return [*levels[:4], levels[4] // COST]


@in_virtual_time
async def test_what_is_admitted_is_settled() -> None:
    gateway = gateway_of()
    request = await enter(gateway, 1, ALL, images=10)
    assert await left(gateway) == [99, 90, 99, 90, 90]
    await settle(request, images=4)
    assert await left(gateway) == [99, 96, 99, 96, 96]
    await request.leave(ClientOutcome.DELIVERED)
    assert await left(gateway) == [99, 96, 100, 96, 96]


@in_virtual_time
async def test_the_place_of_concurrency_lasts_until_the_request_leaves() -> None:
    """A slow reader holds it: deliveries count."""
    gateway = gateway_of(LOCAL)
    one = Limits(concurrent_requests=1)
    first = await enter(gateway, 1, one)
    await settle(first)
    assert (await enter(gateway, 2, one)).verdict.reason is Reason.CONCURRENT_REQUESTS
    await first.leave(ClientOutcome.DELIVERED)
    assert (await enter(gateway, 3, one)).verdict.allowed


@in_virtual_time
async def test_a_refused_request_holds_nothing() -> None:
    async with gateway_of() as gateway:
        refused = await enter(gateway, 1, Limits(images_per_day=1), images=2)
        assert not refused.verdict.allowed
        assert refused.place is None
        await asyncio.sleep(60)
        assert await left(gateway) == [100, 100, 100, 100, 100]
        assert gateway.workers[0].leading == 0


@pytest.mark.parametrize("why", ["only if cached", "key of another body"])
@in_virtual_time
async def test_a_request_that_can_have_no_place_holds_nothing(why: str) -> None:
    """Or each would take a place of concurrency for as long as its worker lives."""
    async with gateway_of() as gateway:
        await lead(gateway.workers[0], entry("first", idempotency=Idempotency("key", "one")))
        wanted = entry("second", idempotency=Idempotency("key", "two"))
        if why == "only if cached":
            wanted = entry("second", cache_key="another", only_if_cached=True)
        place = await Request(gateway.workers[0], wanted, ALL).enter()
        assert isinstance(place, Refusal)
        await asyncio.sleep(60)
        assert (await left(gateway))[2] == 99


@in_virtual_time
async def test_a_request_whose_results_cannot_be_read_holds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store cannot forget what it gives, and the request is told to come again."""
    async with gateway_of() as gateway:
        store = gateway.store
        kept = await lead(gateway.workers[0], entry("kept"))
        await kept.finish(record(images=2), 60)
        await kept.leave()

        async def discard(*_: object) -> None:
            """Keep it."""

        monkeypatch.setattr(store, "discard", discard)
        with pytest.raises(ServiceUnavailable):
            await Request(gateway.workers[0], entry("second"), ALL).enter()
        await asyncio.sleep(60)
        assert (await left(gateway))[2] == 100


@in_virtual_time
async def test_a_settlement_tells_where_the_limits_stand_after_it() -> None:
    gateway = gateway_of()
    request = await enter(gateway, 1, ALL, images=10)
    request.paid = 4
    used = replace_limits(request, ALL)
    verdict = await request.ledger.fail(request.place, request.entry, None, used)
    assert verdict is not None
    assert verdict.by_store
    assert remaining(verdict)[:2] == [99, 96]


def replace_limits(request: Request, limits: Limits) -> Any:
    return replace(request.settlement(), limits=limits)


@pytest.mark.parametrize(
    ("on_loss", "told"),
    [
        (OnLoss(), [50, None, None, None, None]),
        (OnLoss(rates="allow"), None),
        (OnLoss(rates="refuse"), None),
    ],
    ids=["local", "allow", "refuse"],
)
@in_virtual_time
async def test_without_the_store_levels_are_those_of_the_shares_that_are_enforced(
    on_loss: OnLoss, told: list[int | None] | None
) -> None:
    gateway = gateway_of(on_loss, Share(0, 2))
    gateway.store.is_away = True
    levels = await gateway.workers[0].levels(TENANT, RATES)
    assert (None if levels is None else remaining(levels)) == told


@in_virtual_time
async def test_a_node_that_is_away_is_told_once() -> None:
    """And not by every tenant of it in turn."""
    with structlog.testing.capture_logs() as lines:
        async with gateway_of() as gateway:
            await asyncio.sleep(0.1)
            gateway.store.away_for = {SCOPE}
            for number in range(20):
                request = await enter(gateway, number, RATES)
                assert (request.verdict.allowed, request.verdict.by_store) == (True, False)
            await asyncio.sleep(2)
            states = [gateway.workers[0].degraded]
            gateway.store.away_for = set()
            await asyncio.sleep(2)
            states.append(gateway.workers[0].degraded)
    assert states == [True, False]
    assert [line["event"] for line in lines] == ["store_lost", "store_found"]


@in_virtual_time
async def test_leases_of_live_requests_are_renewed_and_only_theirs() -> None:
    async with gateway_of() as gateway:
        long = await enter(gateway, "long", ALL)
        done = await enter(gateway, "done", ALL)
        await settle(done)
        await done.leave(ClientOutcome.DELIVERED)
        await asyncio.sleep(100)
        assert (await left(gateway))[2] == 99
        await settle(long)
        await long.leave(ClientOutcome.DELIVERED)
        assert (await left(gateway))[2:] == [100, 98, 98]


@in_virtual_time
async def test_a_dead_worker_gives_back_within_its_lease() -> None:
    """Nobody renews; what its requests had reserved and not used is free again."""
    gateway = gateway_of()
    for number in range(10):
        request = await enter(gateway, number, ALL, images=2)
        if number < 3:
            await Leading(request, request.place).progress(0, ["a"])
    await asyncio.sleep(30.1)
    assert await left(gateway) == [90, 97, 100, 97, 97]


@pytest.mark.parametrize("steps", range(6))
@in_virtual_time
async def test_an_entry_that_is_cancelled_holds_nothing(steps: int) -> None:
    async with gateway_of() as gateway:
        entering = asyncio.create_task(enter(gateway, 1, ALL, images=10))
        for _ in range(steps):
            await asyncio.sleep(0)
        entering.cancel()
        await asyncio.wait([entering])
        await asyncio.sleep(1)
        assert (await left(gateway))[1:] == [100, 100, 100, 100]


# --- without the store


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@in_virtual_time
async def test_without_the_store_all_workers_together_admit_the_limit(workers: int) -> None:
    """Each its share; never so many times the limit as there are workers."""
    gateway = gateway_of(workers=workers)
    gateway.store.is_away = True
    counts = [
        await admitted(gateway, RATES, of=150, name=f"{number}-", worker=number)
        for number in range(workers)
    ]
    assert sum(counts) == 100


@in_virtual_time
async def test_the_share_counts_what_the_store_admitted_here() -> None:
    """A worker that had its share already gets no more when the store goes."""
    gateway = gateway_of(share=Share(0, 2))
    assert await admitted(gateway, RATES, of=70, name="a") == 70
    gateway.store.is_away = True
    assert await admitted(gateway, RATES, of=70, name="b") == 0


@in_virtual_time
async def test_the_bound_around_a_loss_is_less_than_twice_the_limit() -> None:
    """The worst case: one worker was given everything just before."""
    gateway = gateway_of(workers=4)
    total = await admitted(gateway, RATES, of=150, name="a")
    gateway.store.is_away = True
    for number in range(4):
        total += await admitted(gateway, RATES, of=150, name=f"b{number}-", worker=number)
    assert total == 175


@in_virtual_time
async def test_concurrency_is_shared_too_and_freed_by_leaving() -> None:
    gateway = gateway_of(share=Share(0, 2))
    gateway.store.is_away = True
    four = Limits(concurrent_requests=4)
    first = await enter(gateway, 1, four)
    await enter(gateway, 2, four)
    assert not (await enter(gateway, 3, four)).verdict.allowed
    await settle(first)
    await first.leave(ClientOutcome.DELIVERED)
    assert (await enter(gateway, 4, four)).verdict.allowed


@in_virtual_time
async def test_requests_admitted_alone_hold_their_concurrency() -> None:
    """Their leases are renewed here too, for as long as the store is away."""
    async with gateway_of() as gateway:
        gateway.store.is_away = True
        two = Limits(concurrent_requests=2)
        assert await admitted(gateway, two, of=3, name="a") == 2
        await asyncio.sleep(100)
        assert await admitted(gateway, two, of=1, name="b") == 0


@in_virtual_time
async def test_a_request_larger_than_the_share_may_come_back() -> None:
    """It is not larger than the limit, so it is told to wait and not that it never fits."""
    gateway = gateway_of(share=Share(0, 2))
    gateway.store.is_away = True
    verdict = (await enter(gateway, 1, Limits(images_per_minute=10), images=8)).verdict
    assert (verdict.allowed, verdict.retry_after_ms) == (False, ALONE_RETRY_MS)


@pytest.mark.parametrize(("rates", "expected"), [("local", 100), ("allow", 150), ("refuse", 0)])
@in_virtual_time
async def test_the_policy_for_rates_is_configured(rates: Policy, expected: int) -> None:
    gateway = gateway_of(OnLoss(rates=rates))
    gateway.store.is_away = True
    assert await admitted(gateway, RATES, of=150) == expected


@pytest.mark.parametrize(("budgets", "expected"), [("refuse", 0), ("local", 50), ("allow", 150)])
@pytest.mark.parametrize(
    "limits",
    [Limits(images_per_day=100), Limits(spend_per_month=100 * COST)],
    ids=["day", "month"],
)
@in_virtual_time
async def test_the_policy_for_budgets_is_configured(
    budgets: Policy, expected: int, limits: Limits
) -> None:
    gateway = gateway_of(OnLoss(budgets=budgets), Share(0, 2))
    gateway.store.is_away = True
    assert await admitted(gateway, limits, of=150) == expected


@in_virtual_time
async def test_a_refused_budget_names_the_store_and_says_when_to_come_back() -> None:
    """It is not spent, only unknown: 503, not 429."""
    gateway = gateway_of()
    gateway.store.is_away = True
    verdict = (await enter(gateway, 1, ALL)).verdict
    assert verdict.reason is Reason.STORE_UNAVAILABLE
    assert verdict.retry_after_ms == ALONE_RETRY_MS
    assert (await enter(gateway, 2, RATES)).verdict.allowed


# --- the store comes back


@in_virtual_time
async def test_settlements_wait_for_the_store() -> None:
    async with gateway_of() as gateway:
        requests = [await enter(gateway, number, ALL, images=10) for number in range(3)]
        gateway.store.is_away = True
        for request in requests:
            await settle(request)
            await request.leave(ClientOutcome.ANSWERED)
        assert gateway.workers[0].backlog == 6
        gateway.store.is_away = False
        await asyncio.sleep(1)
        assert (gateway.workers[0].backlog, gateway.workers[0].degraded) == (0, False)
        assert await left(gateway) == [97, 97, 100, 97, 97]


@in_virtual_time
async def test_a_settlement_whose_answer_was_lost_counts_once() -> None:
    async with gateway_of() as gateway:
        request = await enter(gateway, 1, ALL, images=10)
        gateway.store.is_silent = True
        await settle(request, images=2)
        await request.leave(ClientOutcome.ANSWERED)
        gateway.store.is_silent = False
        await asyncio.sleep(1)
        assert await left(gateway) == [99, 98, 100, 98, 98]


@in_virtual_time
async def test_running_requests_are_made_known_to_a_store_that_came_back_empty() -> None:
    """Admitted alone, or lost with the store's data: they are counted again."""
    async with gateway_of() as gateway:
        await enter(gateway, "before", RATES)
        gateway.store.is_away = True
        await enter(gateway, "alone", RATES)
        gateway.store.lose_everything()
        gateway.store.is_away = False
        await asyncio.sleep(11)
        assert await left(gateway) == [98, 98, 98, 98, 98]


@in_virtual_time
async def test_what_a_promoted_replica_lacks_is_settled_again() -> None:
    """The last seconds' ends are repeated once after a reconnect, and counted once."""
    async with gateway_of() as gateway:
        kept, lost = [await enter(gateway, number, ALL, images=4) for number in range(2)]
        await settle(kept, images=2)
        gateway.store.drop_next_end = True
        await settle(lost, images=3)
        assert (await left(gateway))[3:] == [94, 94]
        gateway.store.reconnects += 1
        await asyncio.sleep(2)
        assert (await left(gateway))[3:] == [95, 95]
        for request in (kept, lost):
            await request.leave(ClientOutcome.DELIVERED)
        await asyncio.sleep(60)
        assert (await left(gateway))[2:] == [100, 95, 95]


@in_virtual_time
async def test_a_refusal_in_doubt_is_taken_back() -> None:
    """The store did admit it, but its answer was lost and the budget's policy refused."""
    async with gateway_of() as gateway:
        gateway.store.is_silent = True
        assert not (await enter(gateway, 1, ALL, images=10)).verdict.allowed
        gateway.store.is_silent = False
        await asyncio.sleep(1)
        assert await left(gateway) == [99, 100, 100, 100, 100]


@in_virtual_time
async def test_refusals_in_an_outage_owe_nothing() -> None:
    """Or a flood of refused requests would push the settlements out."""
    gateway = gateway_of()
    gateway.store.is_away = True
    assert await admitted(gateway, ALL, of=50) == 0
    assert gateway.workers[0].backlog == 0


@in_virtual_time
async def test_too_many_settlements_are_lost_aloud() -> None:
    gateway = gateway_of()
    worker = gateway.workers[0]
    worker._writer.backlog = Backlog(most=2)
    requests = [await enter(gateway, number, RATES) for number in range(3)]
    gateway.store.is_away = True
    with structlog.testing.capture_logs() as lines:
        for request in requests:
            await settle(request)
    assert (worker.backlog, worker.dropped) == (2, 1)
    assert [line["event"] for line in lines] == ["store_lost", "settlement_lost"]


@in_virtual_time
async def test_closing_hands_over_what_is_owed() -> None:
    gateway = gateway_of()
    request = await enter(gateway, 1, ALL, images=10)
    gateway.store.is_away = True
    await settle(request)
    await request.leave(ClientOutcome.ANSWERED)
    gateway.store.is_away = False
    await gateway.workers[0].aclose()
    assert await left(gateway) == [99, 99, 100, 99, 99]


@in_virtual_time
async def test_closing_without_the_store_says_what_is_lost() -> None:
    with structlog.testing.capture_logs() as lines:
        async with gateway_of() as gateway:
            request = await enter(gateway, 1, RATES, images=3)
            gateway.store.is_away = True
            await settle(request, images=2)
    (line,) = [line for line in lines if line["event"] == "settlements_lost"]
    assert (line["settlements"], line["images"], line["cost_micros"]) == (1, 2, 2 * COST)


@in_virtual_time
async def test_the_share_is_learnt_from_the_store_within_a_second() -> None:
    """Or an outage right after a start would find shares that add up to more than the limit."""
    async with gateway_of() as gateway:
        ledger: Ledger = gateway.workers[0]
        await asyncio.sleep(0.1)
        gateway.store.share = Share(2, 5)
        await asyncio.sleep(1)
        assert ledger.local.share == Share(2, 5)


@in_virtual_time
async def test_fewer_workers_are_believed_only_after_a_lease() -> None:
    """A store that came back without its data has heard of few."""
    async with gateway_of(share=Share(0, 4)) as gateway:
        await asyncio.sleep(1)
        gateway.store.share = Share(0, 1)
        await asyncio.sleep(20)
        assert gateway.workers[0].local.share == Share(0, 4)
        await asyncio.sleep(20)
        assert gateway.workers[0].local.share == Share(0, 1)


# --- shares


@pytest.mark.parametrize("limit", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_shares_add_up(limit: int, workers: int) -> None:
    shares = [Share(index, workers).of(limit) for index in range(workers)]
    assert sum(shares) == limit
    assert max(shares) - min(shares) <= 1


__all__ = ["StoreUnavailable"]

"""The limiter: leases, settlements that must not be lost, and life without the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from gateway.store.base import (
    Limits,
    Reason,
    Reservation,
    Settlement,
    Share,
    StoreUnavailable,
    TakeRequest,
    Usage,
    Verdict,
)
from gateway.store.memory import MemoryStore
from gateway.tenants import limiter as limits_module
from gateway.tenants.limiter import Limiter, Loss, OnLoss
from tests.contract.stores import Clock, remaining

ALL = Limits(
    requests_per_minute=100,
    images_per_minute=100,
    concurrent_requests=100,
    images_per_day=100,
    spend_per_month=100,
)
RATES = Limits(requests_per_minute=100)


class Flaky(MemoryStore):
    """A store that can be away, with or without having done what it was asked."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.is_away = False
        self.away_for: set[str] = set()
        """Tenants on a node that is away."""
        self.swallows = False
        """Does what it is asked and does not answer."""
        self.share = Share()

    async def take(self, ask: TakeRequest) -> Verdict:
        self._meet(ask.tenant)
        verdict = await super().take(ask)
        self._answer()
        return verdict

    async def renew(self, tenant: str, reservations: Sequence[Reservation], lease_ms: int) -> None:
        self._meet(tenant)
        await super().renew(tenant, reservations, lease_ms)

    async def release(self, settlement: Settlement) -> Verdict:
        self._meet(settlement.tenant)
        verdict = await super().release(settlement)
        self._answer()
        return verdict

    async def usage(self, tenant: str, limits: Limits) -> Usage:
        self._meet(tenant)
        return await super().usage(tenant, limits)

    async def heartbeat(self, worker: str, ttl_ms: int) -> Share:
        self._meet()
        return self.share

    def _meet(self, tenant: str = "") -> None:
        if self.is_away or tenant in self.away_for:
            raise StoreUnavailable("gone")

    def _answer(self) -> None:
        if self.swallows:
            raise StoreUnavailable("silent", in_doubt=True)


class Place:
    """A limiter with its parts."""

    def __init__(self, on_loss: OnLoss, share: Share, lease_s: float) -> None:
        self.clock = Clock()
        self.store = Flaky(self.clock)
        self.store.share = share
        self.limiter = Limiter(
            self.store,
            worker="w1",
            fallback=MemoryStore(self.clock),
            on_loss=on_loss,
            share=share,
            lease_s=lease_s,
        )

    async def admit(
        self, number: object, limits: Limits, images: int = 1, cost: int = 1
    ) -> Verdict:
        reservation = Reservation(f"r{number}", "qwen-image", images, cost)
        return await self.limiter.admit("acme", limits, reservation)

    async def admitted(self, limits: Limits, of: int, name: str = "") -> int:
        return sum([(await self.admit(f"{name}{n}", limits)).allowed for n in range(of)])

    async def settle(
        self, number: object, images: int = 1, cost: int = 1, limits: Limits = Limits()
    ) -> Verdict | None:
        settlement = Settlement("acme", f"r{number}", "qwen-image", images, cost, limits)
        return await self.limiter.settle(settlement)

    async def left(self) -> list[int | None]:
        return remaining((await MemoryStore.usage(self.store, "acme", ALL)).levels)


def place(on_loss: OnLoss = OnLoss(), share: Share = Share(), lease_s: float = 30.0) -> Place:
    return Place(on_loss, share, lease_s)


# --- with the store


async def test_what_is_admitted_is_settled() -> None:
    there = place()
    verdict = await there.admit(1, ALL, images=10, cost=10)
    assert remaining(verdict) == [99, 90, 99, 90, 90]
    await there.settle(1, images=2, cost=2)
    assert await there.left() == [99, 98, 100, 98, 98]
    usage = await there.store.usage("acme", ALL)
    assert usage.today["qwen-image"].images == 2
    assert not there.limiter.degraded


async def test_a_settlement_tells_where_the_limits_stand_after_it() -> None:
    there = place()
    await there.admit(1, ALL, images=10, cost=10)
    verdict = await there.settle(1, images=2, cost=2, limits=ALL)
    assert verdict is not None
    assert remaining(verdict) == await there.left() == [99, 98, 100, 98, 98]


async def test_without_the_store_a_settlement_tells_of_this_worker_s_share() -> None:
    there = place(OnLoss(budgets=Loss.LOCAL), Share(0, 2))
    await there.admit(1, ALL, images=10, cost=10)
    there.store.is_away = True
    verdict = await there.settle(1, images=2, cost=2, limits=ALL)
    assert verdict is not None
    assert remaining(verdict) == [49, 48, 50, 48, 48]


async def test_without_the_store_nobody_knows_a_budget_that_is_not_shared() -> None:
    there = place()
    await there.admit(1, ALL)
    there.store.is_away = True
    assert await there.settle(1, limits=ALL) is None


@pytest.mark.parametrize(
    ("on_loss", "told"),
    [
        (OnLoss(), [50, 50, 50, None, None]),
        (OnLoss(budgets=Loss.ALLOW), [50, 50, 50, None, None]),
        (OnLoss(rates=Loss.REFUSE), None),
        (OnLoss(rates=Loss.ALLOW), None),
    ],
)
async def test_without_the_store_levels_are_those_of_the_shares_that_are_enforced(
    on_loss: OnLoss, told: list[int | None] | None
) -> None:
    """Where a budget is refused for want of the store, a refusal tells them, too."""
    there = place(on_loss, Share(0, 2))
    levels = await there.limiter.levels("acme", ALL)
    assert levels is not None
    assert remaining(levels) == [100, 100, 100, 100, 100]
    there.store.is_away = True
    levels = await there.limiter.levels("acme", ALL)
    assert (None if levels is None else remaining(levels)) == told
    refused = await there.admit(1, ALL)
    if refused.reason is Reason.STORE_UNAVAILABLE:
        assert remaining(refused) == (told or [None] * 5)
        assert not refused.by_store


async def test_of_a_cluster_a_node_that_is_away_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And not by every tenant in turn."""
    there = place(lease_s=3)
    there.limiter.start()
    there.store.away_for = {"acme"}
    for number in range(20):
        of_the_lost = await there.admit(number, RATES)
        other = Reservation(f"o{number}", "qwen-image", 1, 1)
        assert (await there.limiter.admit("other", RATES, other)).by_store
        assert (of_the_lost.allowed, of_the_lost.by_store) == (True, False)
    await asyncio.sleep(1.2)
    assert (there.limiter.degraded, len(caplog.records)) == (True, 1)
    there.store.away_for = set()
    await asyncio.sleep(1.2)
    assert (there.limiter.degraded, len(caplog.records)) == (False, 2)
    await there.limiter.aclose()


async def test_leases_of_live_requests_are_renewed() -> None:
    """And only theirs: a settled request is no longer renewed."""
    there = place(lease_s=0.3)
    await there.admit("long", ALL)
    await there.admit("done", ALL)
    await there.settle("done")
    there.limiter.start()
    for _ in range(10):
        await asyncio.sleep(0.1)
        there.clock.advance(0.1)
    assert (await there.left())[2] == 99
    await there.settle("long")
    assert await there.left() == [98, 98, 100, 98, 98]
    await there.limiter.aclose()


async def test_a_dead_worker_gives_back_within_its_lease() -> None:
    """Nobody renews; what its requests had reserved is free again."""
    there = place()
    for number in range(10):
        await there.admit(number, ALL)
    there.clock.advance(30)
    assert await there.left() == [90, 100, 100, 100, 100]


async def test_an_admission_that_is_cancelled_is_given_back() -> None:
    """The client hung up while the store was being asked; the answer has no reader."""
    there = place()

    async def take_and_hang(ask: TakeRequest) -> Verdict:
        await MemoryStore.take(there.store, ask)
        await asyncio.sleep(60)
        raise AssertionError

    there.store.take = take_and_hang  # type: ignore[method-assign]
    asking = asyncio.ensure_future(there.admit(1, ALL, images=10))
    await asyncio.sleep(0.01)
    assert (await there.left())[1] == 90
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert there.limiter.owed == 1
    there.limiter.start()
    await asyncio.sleep(0.02)
    assert await there.left() == [99, 100, 100, 100, 100]
    await there.limiter.aclose()


async def test_a_settlement_that_is_cancelled_is_made_later() -> None:
    there = place()
    await there.admit(1, ALL)

    async def hang(settlement: Settlement) -> Verdict:
        await asyncio.sleep(60)
        raise AssertionError

    there.store.release = hang  # type: ignore[method-assign]
    settling = asyncio.ensure_future(there.settle(1, images=0, cost=0))
    await asyncio.sleep(0.01)
    settling.cancel()
    await asyncio.gather(settling, return_exceptions=True)
    assert there.limiter.owed == 1


# --- without the store: rates


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
async def test_without_the_store_all_workers_together_admit_the_limit(workers: int) -> None:
    """Each its share; never so many times the limit as there are workers."""
    admitted = 0
    for index in range(workers):
        there = place(share=Share(index, workers))
        there.store.is_away = True
        admitted += await there.admitted(RATES, of=150)
        assert there.limiter.degraded
    assert admitted == 100


async def test_the_share_counts_what_the_store_admitted_here() -> None:
    """A worker that had its share already gets no more when the store goes."""
    there = place(share=Share(0, 2))
    assert await there.admitted(RATES, of=60) == 60
    there.store.is_away = True
    assert await there.admitted(RATES, of=60, name="more") == 0
    there.clock.advance(62)
    assert await there.admitted(RATES, of=60, name="later") == 50


async def test_the_bound_around_a_loss_is_less_than_twice_the_limit() -> None:
    """The worst case: one worker was given everything just before."""
    places = [place(share=Share(index, 4)) for index in range(4)]
    admitted = await places[0].admitted(RATES, of=150)
    for there in places:
        there.store.is_away = True
        admitted += await there.admitted(RATES, of=150, name="alone")
    assert admitted == 175


async def test_concurrency_is_shared_too_and_freed_by_settling() -> None:
    there = place(share=Share(1, 2))
    there.store.is_away = True
    limits = Limits(concurrent_requests=10)
    assert await there.admitted(limits, of=20) == 5
    await there.settle(0)
    assert await there.admitted(limits, of=20, name="next") == 1


async def test_requests_admitted_alone_hold_their_concurrency(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their leases are renewed here too, for as long as the store is away."""
    there = place(lease_s=0.3)
    there.store.is_away = True
    limits = Limits(concurrent_requests=1)
    assert (await there.admit("long", limits)).allowed
    there.limiter.start()
    for _ in range(8):
        await asyncio.sleep(0.1)
        there.clock.advance(0.1)
    assert not (await there.admit("next", limits)).allowed
    await there.limiter.aclose()


async def test_a_request_larger_than_the_share_may_come_back() -> None:
    """It is not larger than the limit, so it is told to wait and not that it never fits."""
    there = place(share=Share(0, 2))
    there.store.is_away = True
    verdict = await there.admit(1, Limits(images_per_minute=10), images=8)
    assert not verdict.allowed
    assert verdict.retry_after_ms == limits_module.ALONE_RETRY_MS


@pytest.mark.parametrize(
    ("rates", "admitted"), [(Loss.LOCAL, 100), (Loss.ALLOW, 150), (Loss.REFUSE, 0)]
)
async def test_the_policy_for_rates_is_configured(rates: Loss, admitted: int) -> None:
    there = place(OnLoss(rates=rates))
    there.store.is_away = True
    assert await there.admitted(RATES, of=150) == admitted


# --- without the store: budgets


@pytest.mark.parametrize(
    ("budgets", "admitted"), [(Loss.REFUSE, 0), (Loss.LOCAL, 50), (Loss.ALLOW, 150)]
)
@pytest.mark.parametrize(
    "limits", [Limits(images_per_day=100), Limits(spend_per_month=100)], ids=["day", "month"]
)
async def test_the_policy_for_budgets_is_configured(
    budgets: Loss, admitted: int, limits: Limits
) -> None:
    there = place(OnLoss(budgets=budgets), Share(0, 2))
    there.store.is_away = True
    assert await there.admitted(limits, of=150) == admitted


async def test_a_refused_budget_names_the_store_and_says_when_to_come_back() -> None:
    """It is not spent, only unknown: 503, not 429."""
    there = place()
    there.store.is_away = True
    verdict = await there.admit(1, ALL)
    assert verdict.reason is Reason.STORE_UNAVAILABLE
    assert verdict.retry_after_ms == limits_module.ALONE_RETRY_MS


async def test_a_tenant_without_budgets_is_not_refused() -> None:
    there = place()
    there.store.is_away = True
    assert (await there.admit(1, Limits())).allowed
    assert (await there.admit(2, RATES)).allowed


# --- the store comes back


async def test_settlements_wait_for_the_store() -> None:
    there = place()
    for number in range(3):
        await there.admit(number, ALL, images=10, cost=10)
    there.store.is_away = True
    for number in range(3):
        await there.settle(number, images=1, cost=1)
    assert there.limiter.owed == 3
    there.store.is_away = False
    there.limiter.start()
    await asyncio.sleep(0.02)
    assert there.limiter.owed == 0
    assert await there.left() == [97, 97, 100, 97, 97]
    assert not there.limiter.degraded
    await there.limiter.aclose()


async def test_a_settlement_whose_answer_was_lost_counts_once() -> None:
    there = place()
    await there.admit(1, ALL, images=10, cost=10)
    there.store.swallows = True
    await there.settle(1, images=2, cost=2)
    there.store.swallows = False
    there.limiter.start()
    await asyncio.sleep(0.02)
    assert await there.left() == [99, 98, 100, 98, 98]
    await there.limiter.aclose()


async def test_running_requests_are_made_known_to_a_store_that_came_back() -> None:
    """Admitted alone, or lost with the store's data: they are counted again."""
    there = place()
    await there.admit("before", RATES)
    there.store.is_away = True
    await there.admit("alone", RATES)
    there.store = there.limiter._store = Flaky(there.clock)  # restarted, empty
    there.limiter.start()
    await asyncio.sleep(0.02)
    assert await there.left() == [98, 98, 98, 98, 98]
    await there.limiter.aclose()


async def test_a_refusal_in_doubt_is_taken_back() -> None:
    """The store did admit it, but its answer was lost and the budget's policy refused."""
    there = place()
    there.store.swallows = True
    assert not (await there.admit(1, ALL, images=10, cost=10)).allowed
    there.store.swallows = False
    there.limiter.start()
    await asyncio.sleep(0.02)
    assert await there.left() == [99, 100, 100, 100, 100]
    await there.limiter.aclose()


async def test_refusals_in_an_outage_owe_nothing() -> None:
    """Or a flood of refused requests would push the settlements out."""
    there = place()
    there.store.is_away = True
    assert await there.admitted(ALL, of=50) == 0
    assert there.limiter.owed == 0


async def test_too_many_settlements_are_lost_aloud(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits_module, "OWED_MAX", 2)
    there = place()
    there.store.is_away = True
    for number in range(3):
        await there.settle(number)
    assert there.limiter.owed == 2
    assert there.limiter.dropped == 1
    assert "settlement lost" in caplog.text


async def test_closing_hands_over_what_is_owed() -> None:
    there = place()
    await there.admit(1, ALL, images=10, cost=10)
    there.store.is_away = True
    await there.settle(1, images=1, cost=1)
    there.store.is_away = False
    await there.limiter.aclose()
    assert await there.left() == [99, 99, 100, 99, 99]


async def test_closing_without_the_store_does_not_fail() -> None:
    there = place()
    there.limiter.start()
    there.store.is_away = True
    await there.settle(1)
    await there.limiter.aclose()
    assert there.limiter.owed == 1


async def test_the_share_is_learnt_from_the_store() -> None:
    there = place()
    there.store.share = Share(2, 5)
    there.limiter.start()
    await asyncio.sleep(0.02)
    assert there.limiter.share == Share(2, 5)
    await there.limiter.aclose()


async def test_a_worker_that_joins_is_heard_of_long_before_the_next_renewal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or an outage right after a start would find shares that add up to more than the limit."""
    monkeypatch.setattr(limits_module, "BEAT_S", 0.01)
    there = place(lease_s=3600)
    there.limiter.start()
    await asyncio.sleep(0.02)
    there.store.share = Share(1, 4)
    await asyncio.sleep(0.1)
    assert there.limiter.share == Share(1, 4)
    await there.limiter.aclose()


# --- shares


@pytest.mark.parametrize("limit", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_shares_add_up(limit: int, workers: int) -> None:
    shares = [Share(index, workers).of(limit) for index in range(workers)]
    assert sum(shares) == limit
    assert max(shares) - min(shares) <= 1


Places = AsyncIterator[Place]

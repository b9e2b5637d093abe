"""Workers whose store is away, does not answer, or comes back empty."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from gateway.domain.errors import RateLimited, UpstreamAmbiguous, UpstreamFailed
from gateway.observability.context import ClientOutcome
from gateway.results import Idempotency, Ledger
from gateway.results import upkeep as upkeep_module
from gateway.results.shared_errors import decode_error
from gateway.results.writer import Backlog
from gateway.store.generations import State
from gateway.store.limits import Limits
from gateway.store.memory import MemoryStore
from tests.unit.ledgers import (
    LEAD_S,
    SCOPE,
    Doubtful,
    Following,
    Found,
    Gateway,
    How,
    Leading,
    Refusal,
    Request,
    done,
    enter,
    entry,
    follow,
    lead,
    now,
    record,
    unshared,
    waiting,
)
from tests.virtual_time import in_virtual_time


def loop_time() -> float:
    return asyncio.get_running_loop().time()


# --- without the store


@in_virtual_time
async def test_without_the_store_a_worker_shares_its_own() -> None:
    async with Gateway() as gateway:
        gateway.store.is_away = True
        leader = await lead(gateway.workers[0], entry("r1"))
        assert gateway.workers[0].degraded
        task = waiting(await follow(gateway.workers[0], entry("r2")))
        await leader.finish(record("one"), 3600)
        assert isinstance(await task, Found)
        await lead(gateway.workers[0], entry("r3"))


@in_virtual_time
async def test_without_the_store_retries_and_keys_hold_inside_the_worker() -> None:
    async with Gateway() as gateway:
        gateway.store.is_away = True
        worker = gateway.workers[0]
        leader = await lead(worker, unshared("r1"))
        await leader.progress(0, ["a"])
        await leader.fail(UpstreamFailed("no"))
        resumed = await lead(worker, unshared("r2", is_retry=True))
        assert resumed.parts == {0: ("a",)}
        await resumed.finish(record("one"))
        assert (await done(worker, unshared("r3", is_retry=True))).how is How.ADOPTED
        wanted = entry("r4", cache_key=None, idempotency=Idempotency("k", "b"))
        await (await lead(worker, wanted)).finish(record("two"))
        assert (await done(worker, replace(wanted, request="r5"))).how is How.REPLAYED
        lost = await lead(worker, replace(wanted, request="r7", idempotency=Idempotency("l", "b")))
        await lost.fail(UpstreamAmbiguous("lost"))
        again = await enter(
            worker, replace(wanted, request="r8", idempotency=Idempotency("l", "b"))
        )
        assert isinstance(again, Doubtful)
        assert isinstance(decode_error(again.payload), UpstreamAmbiguous)
        other = replace(wanted, request="r6", idempotency=Idempotency("k", "other"))
        assert await enter(worker, other) is Refusal.CONFLICT


@in_virtual_time
async def test_what_runs_when_the_store_is_lost_is_still_shared_inside_the_worker() -> None:
    async with Gateway() as gateway:
        worker = gateway.workers[0]
        leader = await lead(worker, entry("r1"))
        gateway.store.is_away = True
        task = waiting(await follow(worker, entry("r2")))
        await asyncio.sleep(60)
        await leader.finish(record("one"), 3600)
        assert isinstance(await task, Found)


@in_virtual_time
async def test_the_store_is_told_later_what_it_missed() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        task = waiting(await follow(gateway.workers[1], entry("r2")))
        gateway.store.is_away = True
        await leader.progress(0, ["a"])
        await leader.finish(record("one"), 3600)
        assert gateway.workers[0].backlog == 1
        await asyncio.sleep(60)
        gateway.store.is_away = False
        back = loop_time()
        outcome = await task
        assert isinstance(outcome, Found)
        assert loop_time() - back <= 2.5
        assert gateway.workers[0].backlog == 0
        assert not gateway.workers[0].degraded
        assert (await done(gateway.workers[1], entry("r3"))).how is How.HIT


# --- one node of a cluster away


OTHER = "tenant:other"


@in_virtual_time
async def test_a_node_that_is_lost_takes_only_its_own_tenants_away() -> None:
    """For the others, what any worker makes or has made is found, however long that lasts."""
    async with Gateway() as gateway:
        one, two = gateway.workers
        lost = await lead(one, entry("r1"))
        running = await lead(one, entry("r2", scope=OTHER))
        gateway.store.away_for = {SCOPE}
        await asyncio.sleep(5 * LEAD_S)
        assert one.degraded
        task = waiting(await follow(two, entry("r3", scope=OTHER)))
        await asyncio.sleep(5 * LEAD_S)
        await running.finish(record("two"), 3600)
        assert isinstance(await task, Found)
        assert (await done(two, entry("r4", scope=OTHER))).how is How.HIT
        await lost.finish(record("one"), 3600)
        assert one.backlog == 1
        gateway.store.away_for = set()
        await asyncio.sleep(1)
        assert (one.backlog, one.degraded) == (0, False)
        assert (await done(two, entry("r5"))).how is How.HIT


@pytest.mark.slow
@in_virtual_time
async def test_many_lost_tenants_are_brought_up_to_date_and_cost_little_till_then() -> None:
    """Also those that nobody asked for while the store was away: their leases end, too."""
    tenants = [f"tenant:{number}" for number in range(300)]
    async with Gateway() as gateway:
        one, two = gateway.workers
        leads = [await lead(one, entry(f"r{scope}", scope=scope)) for scope in tenants]
        gateway.store.is_away = True
        await asyncio.sleep(60)
        gateway.store.asked.clear()
        await asyncio.sleep(10)
        assert len(gateway.store.asked) <= 10 / upkeep_module.PROBE_S * upkeep_module.AT_ONCE * 1.1
        gateway.store.is_away = False
        await asyncio.sleep(1)
        assert not one.degraded
        tasks = [waiting(await follow(two, entry(f"s{scope}", scope=scope))) for scope in tenants]
        for leader in leads:
            await leader.finish(record("one"), 3600)
        assert {type(outcome) for outcome in await asyncio.gather(*tasks)} == {Found}


@in_virtual_time
async def test_the_longest_backlog_loses_its_oldest_end() -> None:
    async with Gateway() as gateway:
        worker = gateway.workers[0]
        worker._writer.backlog = Backlog(most=3)
        gateway.store.is_away = True
        for scope, requests in ((OTHER, 1), (SCOPE, 4)):
            for number in range(requests):
                wanted = unshared(f"r{scope}{number}", scope=scope, retry_key=f"{number}")
                await (await lead(worker, wanted)).finish(record("one"))
        assert (worker.backlog, worker.dropped) == (3, 2)
        scopes = [pending.scope for pending in worker._writer.backlog.all()]
        assert sorted(scopes) == sorted([OTHER, SCOPE, SCOPE])
        gateway.store.is_away = False
        await asyncio.sleep(1)
        assert worker.backlog == 0


# --- in doubt, and empty


@in_virtual_time
async def test_an_answer_that_was_lost_changes_nothing() -> None:
    """The store did as it was asked, and was not heard."""
    async with Gateway() as gateway:
        worker = gateway.workers[0]
        gateway.store.is_silent = True
        leader = await lead(worker, entry("r1"))
        gateway.store.is_silent = False
        await asyncio.sleep(1)
        task = waiting(await follow(gateway.workers[1], entry("r2")))
        gateway.store.is_silent = True
        await leader.finish(record("one"), 3600)
        gateway.store.is_silent = False
        assert isinstance(await task, Found)
        await asyncio.sleep(1)
        assert worker.backlog == 0


@in_virtual_time
async def test_a_store_that_comes_back_empty_is_told_what_runs() -> None:
    """Within a third of a lease; those who wait elsewhere go on waiting."""
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        await leader.progress(0, ["a"])
        task = waiting(await follow(gateway.workers[1], entry("r2")))
        await asyncio.sleep(1)
        gateway.store.lose_everything()
        await asyncio.sleep(LEAD_S / 3 + 0.1)
        assert isinstance(await enter(gateway.workers[1], entry("r3")), Following)
        await asyncio.sleep(20)
        await leader.finish(record("one"), 3600)
        assert isinstance(await task, Found)


@in_virtual_time
async def test_a_store_that_lost_a_dead_leader_s_generation_leaves_its_followers_alone() -> None:
    """Nobody puts it back, so one of them starts anew."""
    async with Gateway() as gateway:
        await lead(gateway.workers[0], entry("r1"))
        task = waiting(await follow(gateway.workers[1], entry("r2")))
        await gateway.kill(0)
        gateway.store.lose_everything()
        started = loop_time()
        assert isinstance(await task, Leading)
        assert loop_time() - started <= LEAD_S


@in_virtual_time
async def test_what_was_led_alone_is_shared_once_the_store_is_back() -> None:
    async with Gateway() as gateway:
        gateway.store.is_away = True
        leader = await lead(gateway.workers[0], entry("r1"))
        await leader.progress(0, ["a"])
        gateway.store.is_away = False
        await asyncio.sleep(1)
        task = waiting(await follow(gateway.workers[1], entry("r2")))
        await gateway.kill(0)
        outcome = await task
        assert isinstance(outcome, Leading)
        assert outcome.parts == {0: ("a",)}


@in_virtual_time
async def test_leaders_are_trusted_when_the_store_comes_back_after_their_leases() -> None:
    """Everyone's lease has ended; that does not make anyone dead."""
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        task = waiting(await follow(gateway.workers[1], entry("r2")))
        await asyncio.sleep(3)
        gateway.store.is_away = True
        await asyncio.sleep(5 * LEAD_S)
        gateway.store.is_away = False
        await asyncio.sleep(20)
        assert not task.done()
        await leader.finish(record("one"), 3600)
        assert isinstance(await task, Found)


@in_virtual_time
async def test_giving_up_while_the_store_is_away_is_told_later() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        gateway.store.is_away = True
        await leader.hand_over()
        gateway.store.is_away = False
        await asyncio.sleep(1)
        (status,) = await gateway.store.poll(SCOPE, ["r1"])
        assert status.state is State.MISSING


@in_virtual_time
async def test_only_so_many_ends_are_kept() -> None:
    async with Gateway() as gateway:
        gateway.store.is_away = True
        worker = gateway.workers[0]
        worker._writer.backlog = Backlog(most=3)
        for number in range(5):
            await (await lead(worker, entry(f"r{number}", cache_key=f"k{number}"))).finish(record())
        assert (worker.backlog, worker.dropped) == (3, 2)


@in_virtual_time
async def test_an_ending_told_late_says_how_long_it_still_lives() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        gateway.store.is_away = True
        await leader.finish(record("one", life_s=300), 3600)
        await asyncio.sleep(200)
        gateway.store.is_away = False
        await asyncio.sleep(1)
        await done(gateway.workers[1], entry("r2"))
        await asyncio.sleep(50)
        await lead(gateway.workers[1], entry("r3"))


@in_virtual_time
async def test_a_store_in_the_process_needs_no_fallback() -> None:
    ledger = Ledger(MemoryStore(now), worker="w", now=now)
    ledger.start()
    leader = await lead(ledger, entry("r1"))
    task = waiting(await follow(ledger, entry("r2")))
    await asyncio.sleep(30)
    await leader.finish(record("one"), 3600)
    assert isinstance(await task, Found)
    assert (await done(ledger, entry("r3"))).how is How.HIT
    assert not ledger.degraded
    await ledger.aclose()


@in_virtual_time
async def test_words_after_the_end_are_not_heard() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        await leader.finish(record("one"), 3600)
        await leader.progress(0, ["late"])
        await leader.fail(RateLimited("late"))
        await leader.hand_over()
        assert (await done(gateway.workers[1], entry("r2"))).result == record("one")


# --- a hit of URLs, which leaves as it enters


async def unreadable(gateway: Gateway) -> None:
    """One result in the cache, of another version."""
    leader = await lead(gateway.workers[0], entry("r1"))
    await leader.finish(record("one"), 3600)
    await leader.leave()
    (one,) = gateway.store._scopes[SCOPE]._known.values()
    one.payload = b"{}"


@in_virtual_time
async def test_who_cannot_read_its_hit_is_served_though_the_store_is_lost_then() -> None:
    """The worker's own memory has not heard that it left."""
    async with Gateway() as gateway:
        worker = gateway.workers[1]
        await unreadable(gateway)
        entering = asyncio.create_task(lead(worker, entry("r2", needs_url=True)))
        await asyncio.sleep(0.0015)  # it has its place, and tells the store to discard that
        assert gateway.store.asked[-2:] == ["enter", "discard"]
        gateway.store.is_away = True
        leader = await entering
        assert worker.degraded
        await leader.finish(record("two"), 3600)


@in_virtual_time
async def test_what_is_paid_after_an_unreadable_hit_is_mirrored() -> None:
    """It is in the worker's budgets once the store is lost."""
    budget = Limits(images_per_day=10)
    async with Gateway() as gateway:
        worker = gateway.workers[1]
        await unreadable(gateway)
        await lead(worker, entry("r2", needs_url=True), limits=budget)
        mirrored = await worker._stores.mirror(lambda store: store.levels("acme", budget))
        assert mirrored is not None
        assert mirrored.day is not None
        assert mirrored.day.remaining == 9


@in_virtual_time
async def test_a_hit_that_was_read_is_counted_in_the_mirror_too() -> None:
    rate = Limits(requests_per_minute=10)
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        await leader.finish(record("one"), 3600)
        await done(gateway.workers[1], entry("r2", needs_url=True))
        mirrored = await gateway.workers[1]._stores.mirror(lambda store: store.levels("acme", rate))
        assert mirrored is not None
        assert mirrored.requests is not None
        assert mirrored.requests.remaining == 9


@pytest.mark.parametrize("budget", [None, 0], ids=["only if cached", "no budget"])
@in_virtual_time
async def test_who_cannot_read_its_hit_and_is_refused_holds_nothing(budget: int | None) -> None:
    limits = Limits(concurrent_requests=1, images_per_day=budget)
    async with Gateway() as gateway:
        await unreadable(gateway)
        wanted = entry("r2", only_if_cached=budget is None)
        place = await enter(gateway.workers[1], wanted, limits=limits)
        assert place is (Refusal.MISSING if budget is None else None)
        levels = await gateway.store.levels("acme", limits)
        assert levels.concurrent is not None
        assert levels.concurrent.remaining == 1


# --- a miss that leaves as it ends


async def finish(leader: Leading) -> None:
    """Its answer is one of URLs."""
    request = leader.request
    request.paid = 1
    await leader.ledger.finish(
        leader.lead, request.entry, record(), 0.0, request.settlement(), leaves=True
    )


@in_virtual_time
async def test_an_end_that_a_failover_lost_does_not_overrule_its_client_s_leaving() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], unshared("r1"))
        gateway.store.drop_next_end = True
        await finish(leader)
        await leader.leave(ClientOutcome.GONE)
        gateway.store.reconnects += 1
        await asyncio.sleep(3)
        await done(gateway.workers[1], unshared("r2"))


@in_virtual_time
async def test_a_leaving_that_is_told_again_takes_nothing_from_who_was_given_it() -> None:
    """The store had heard of it the first time."""
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], unshared("r1"))
        await finish(leader)
        gateway.store.is_silent = True
        await leader.leave(ClientOutcome.GONE)
        gateway.store.is_silent = False
        second = Request(gateway.workers[1], unshared("r2"))
        assert isinstance(await second.enter(), Found)
        await second.leave(ClientOutcome.DELIVERED)
        await asyncio.sleep(3)
        assert gateway.workers[0].backlog == 0
        await lead(gateway.workers[1], unshared("r3"))


@in_virtual_time
async def test_a_store_that_came_back_empty_hears_who_was_not_given_it() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], unshared("r1"))
        await finish(leader)
        gateway.store.lose_everything()
        await leader.leave(ClientOutcome.GONE)
        gateway.store.reconnects += 1
        await asyncio.sleep(3)
        await done(gateway.workers[1], unshared("r2"))


@in_virtual_time
async def test_a_follower_s_hang_up_is_not_its_leader_s_in_the_mirror() -> None:
    """Once the store is lost, another request makes a picture of its own."""
    async with Gateway() as gateway:
        worker = gateway.workers[0]
        await lead(worker, unshared("r1"))
        follower = await follow(worker, unshared("r2", is_retry=True))
        await follower.leave(ClientOutcome.GONE)
        gateway.store.is_away = True
        await lead(worker, unshared("r3"))


@in_virtual_time
async def test_paid_parts_are_found_though_who_took_over_is_refused() -> None:
    """The store had admitted it, and was not heard; alone, the worker counts no budget."""
    budget = Limits(images_per_day=10)
    async with Gateway() as gateway:
        worker = gateway.workers[0]
        leader = await lead(worker, unshared("r1", images=2))
        await leader.progress(0, ["a"])
        await leader.fail(UpstreamFailed("no"))
        await leader.leave(ClientOutcome.ANSWERED)
        gateway.store.is_silent = True
        assert await enter(worker, unshared("r2", images=2), limits=budget) is None
        gateway.store.is_silent = False
        await asyncio.sleep(3)
        third = await lead(gateway.workers[1], unshared("r3", images=2))
        assert third.parts == {0: ("a",)}


@in_virtual_time
async def test_what_was_delivered_stays_so_in_a_store_that_came_back_empty() -> None:
    """Its leader's client had hung up, and another was given the result."""
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], unshared("r1"))
        follower = await follow(gateway.workers[0], unshared("r2", is_retry=True))
        leader.request.paid = 1
        await leader.finish(record())
        await follower.leave(ClientOutcome.DELIVERED)
        await leader.leave(ClientOutcome.GONE)
        gateway.store.lose_everything()
        gateway.store.reconnects += 1
        await asyncio.sleep(3)
        await lead(gateway.workers[1], unshared("r3"))


@in_virtual_time
async def test_recent_ends_are_repeated_before_what_waits() -> None:
    """The store went away behind an end, and came back without it."""
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], unshared("r1"))
        await finish(leader)
        gateway.store.is_away = True
        await leader.leave(ClientOutcome.GONE)
        await asyncio.sleep(20)
        gateway.store.lose_everything()
        gateway.store.is_away = False
        gateway.store.reconnects += 1
        await asyncio.sleep(3)
        await done(gateway.workers[1], unshared("r2"))

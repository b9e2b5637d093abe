"""Workers that share what they make, and what becomes of it when one of them is lost."""

from __future__ import annotations

import asyncio
import sys
import tracemalloc
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.domain.errors import GatewayError, RateLimited, UpstreamFailed, UpstreamTimeout
from gateway.observability.context import ClientOutcome
from gateway.results import Idempotency
from gateway.results.shared_errors import decode_error, encode_error, subclasses
from gateway.store.generations import Lead, Leadership
from tests.unit.ledgers import (
    LEAD_S,
    SCOPE,
    Failed,
    Following,
    Found,
    Gateway,
    How,
    Leading,
    Refusal,
    done,
    enter,
    entry,
    follow,
    lead,
    record,
    unshared,
    waiting,
)
from tests.virtual_time import in_virtual_time


def loop_time() -> float:
    return asyncio.get_running_loop().time()


# --- one generation for identical requests


@in_virtual_time
async def test_fifty_identical_requests_in_two_workers_have_one_leader() -> None:
    async with Gateway() as gateway:
        places = await asyncio.gather(
            *(enter(gateway.workers[number % 2], entry(f"r{number}")) for number in range(50))
        )
        leads = [place for place in places if isinstance(place, Leading)]
        tasks = [waiting(place) for place in places if isinstance(place, Following)]
        await asyncio.sleep(30)
        await leads[0].finish(record("one"), 3600)
        outcomes = await asyncio.gather(*tasks)
    assert len(leads) == 1
    assert [isinstance(one, Found) and one.result.urls for one in outcomes] == [
        record("one").urls for _ in range(49)
    ]


@in_virtual_time
async def test_followers_in_the_leader_s_worker_are_told_at_once_and_ask_nobody() -> None:
    async with Gateway(1) as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        task = waiting(await follow(gateway.workers[0], entry("r2")))
        await asyncio.sleep(60)
        before = loop_time()
        await leader.finish(record("one"), 3600)
        outcome = await task
        assert isinstance(outcome, Found)
        assert outcome.how is How.JOINED
        assert loop_time() - before < 0.01
        assert "poll" not in gateway.store.asked


@in_virtual_time
async def test_one_poll_serves_all_the_followers_of_a_worker() -> None:
    """Ten times a second at first, then once; and never while nothing is followed."""
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        tasks = [
            waiting(await follow(gateway.workers[1], entry(f"r{number}")))
            for number in range(2, 30)
        ]
        await asyncio.sleep(60)
        assert 55 <= gateway.store.asked.count("poll") <= 70
        await leader.finish(record("one"), 3600)
        started = loop_time()
        await asyncio.gather(*tasks)
        assert loop_time() - started <= 1.1
        polls = gateway.store.asked.count("poll")
        await asyncio.sleep(60)
        assert gateway.store.asked.count("poll") == polls
        assert gateway.workers[1].followed == 0


@in_virtual_time
async def test_the_error_is_shared_as_it_was() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        tasks = [
            waiting(await follow(worker, entry(f"f{id(worker)}"))) for worker in gateway.workers
        ]
        error = RateLimited("full", param="n", code="odd", retry_after_s=7.5)
        await leader.fail(error)
        for outcome in await asyncio.gather(*tasks):
            assert isinstance(outcome, Failed)
            assert type(outcome.error) is RateLimited
            assert outcome.error is not error
            assert vars(outcome.error) == vars(error)


@in_virtual_time
async def test_a_follower_s_own_deadline_is_kept() -> None:
    """Its retry may join again: nothing is paid for that."""
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        for worker in gateway.workers:
            place = await follow(worker, entry(f"f{id(worker)}"))
            started = loop_time()
            outcome = await waiting(place, within_s=5)
            assert isinstance(outcome, Failed)
            assert isinstance(outcome.error, UpstreamTimeout)
            assert loop_time() - started == pytest.approx(5, abs=0.2)
            await place.leave()
        await leader.hand_over()
        assert (await lead(gateway.workers[1], entry("new"))).id == "new"


@in_virtual_time
async def test_a_leader_that_steps_down_is_replaced_by_one_of_its_followers() -> None:
    """Its obstacle is its own, its limits for instance: the others need not fail for it."""
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        tasks = [
            waiting(await follow(gateway.workers[number % 2], entry(f"f{number}")))
            for number in range(10)
        ]
        await leader.hand_over()
        first, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        (successor,) = [task.result() for task in first]
        assert isinstance(successor, Leading)
        assert successor.id == "r1"
        await asyncio.sleep(30)
        await successor.finish(record("two"), 0)
        others = [await task for task in tasks if task not in first]
        assert [type(one) for one in others] == [Found] * 9


# --- lost leaders


@in_virtual_time
async def test_a_dead_leader_is_replaced_within_its_lease_by_exactly_one() -> None:
    async with Gateway(3) as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        await leader.progress(0, ["https://images/part.png"])
        tasks = [
            waiting(await follow(gateway.workers[1 + number % 2], entry(f"f{number}")))
            for number in range(20)
        ]
        await asyncio.sleep(5)
        await gateway.kill(0)
        killed = loop_time()
        first, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert loop_time() - killed <= LEAD_S + 1.5
        (successor,) = [task.result() for task in first]
        assert isinstance(successor, Leading)
        assert successor.parts == {0: ("https://images/part.png",)}
        await asyncio.sleep(60)
        await successor.finish(record("two"), 3600)
        outcomes = await asyncio.gather(*tasks)
        assert sum(isinstance(one, Leading) for one in outcomes) == 1
        assert sum(isinstance(one, Found) for one in outcomes) == 19


@in_virtual_time
async def test_the_next_request_takes_over_too() -> None:
    async with Gateway() as gateway:
        await lead(gateway.workers[0], entry("r1"))
        await gateway.kill(0)
        await asyncio.sleep(LEAD_S + 1)
        assert (await lead(gateway.workers[1], entry("r2"))).id == "r1"


@in_virtual_time
async def test_a_successor_that_dies_too_is_replaced() -> None:
    async with Gateway(3) as gateway:
        await lead(gateway.workers[0], entry("r1"))
        second = waiting(await follow(gateway.workers[1], entry("r2")))
        third = waiting(await follow(gateway.workers[2], entry("r3")))
        await gateway.kill(0)
        done_first, _ = await asyncio.wait([second, third], return_when=asyncio.FIRST_COMPLETED)
        await gateway.kill(1 if second in done_first else 2)
        last = third if second in done_first else second
        assert isinstance(await last, Leading)


@in_virtual_time
async def test_a_follower_that_was_chosen_and_hangs_up_is_replaced() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        tasks = {
            request: waiting(await follow(gateway.workers[1], entry(request)))
            for request in ("r2", "r3", "r4")
        }
        before = len(gateway.store.entered)
        await leader.hand_over()
        while len(gateway.store.entered) == before:  # noqa: ASYNC110 - the store is what is tested
            await asyncio.sleep(0.0001)
        chosen = tasks.pop(gateway.store.entered[-1])
        chosen.cancel()
        first, rest = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        assert [type(task.result()) for task in first] == [Leading]
        assert len(rest) == 1


@in_virtual_time
async def test_a_leader_that_was_taken_for_dead_keeps_its_result_for_its_own_caller() -> None:
    """What it paid for is kept as parts, and its successor's work is not undone."""
    async with Gateway() as gateway:
        old = await lead(gateway.workers[0], entry("r1"))
        gateway.workers[0]._task.cancel()  # type: ignore[union-attr]
        await asyncio.sleep(LEAD_S + 1)
        new = await lead(gateway.workers[1], entry("r2"))
        await old.progress(0, record("old").urls)
        await old.finish(record("old"), 3600)
        await new.fail(RateLimited("no"))
        again = await lead(gateway.workers[1], entry("r3"))
        assert again.parts == {0: record("old").urls}


@in_virtual_time
async def test_a_generation_that_nobody_ends_is_given_up() -> None:
    async with Gateway(longest_s=60.0) as gateway:
        await lead(gateway.workers[0], entry("r1"))
        task = waiting(await follow(gateway.workers[0], entry("r2")))
        await asyncio.sleep(90)
        assert isinstance(task.result(), Leading)


@in_virtual_time
async def test_a_worker_that_ends_hands_over_at_once() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        await leader.progress(0, ["a"])
        task = waiting(await follow(gateway.workers[1], entry("r2")))
        await asyncio.sleep(5)
        started = loop_time()
        await gateway.workers[0].aclose()
        outcome = await task
        assert isinstance(outcome, Leading)
        assert outcome.parts == {0: ("a",)}
        assert loop_time() - started <= 1.5


# --- clients that hang up


@in_virtual_time
async def test_a_leader_whose_client_hung_up_early_gives_up() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        await leader.hand_over()
        assert gateway.workers[0].leading == 0
        assert (await lead(gateway.workers[1], entry("r2"))).id == "r2"


@pytest.mark.parametrize("where", [0, 1])
@in_virtual_time
async def test_unless_somebody_follows_and_takes_over(where: int) -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        task = waiting(await follow(gateway.workers[where], entry("r2")))
        await asyncio.sleep(1)
        await leader.hand_over()
        successor = await task
        assert isinstance(successor, Leading)
        assert successor.id == "r1"


@in_virtual_time
async def test_a_follower_that_hangs_up_is_no_longer_counted() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        followers = [await follow(worker, entry(f"{id(worker)}")) for worker in gateway.workers]
        tasks = [waiting(one) for one in followers]
        await asyncio.sleep(1)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for one in followers:
            await one.leave()
        assert gateway.workers[1].followed == 0
        await leader.hand_over()
        assert (await lead(gateway.workers[1], entry("new"))).id == "new"


@pytest.mark.parametrize("steps", range(8))
@in_virtual_time
async def test_a_request_cancelled_while_it_enters_leads_nothing(steps: int) -> None:
    """Whether the store was asked already or not."""
    async with Gateway() as gateway:
        task = asyncio.create_task(enter(gateway.workers[0], entry("r1")))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(1)
        if task.cancelled():
            assert (await lead(gateway.workers[1], entry("r2"))).id == "r2"


# --- retries


@in_virtual_time
async def test_a_retry_in_another_worker_is_given_what_its_client_let_go() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], unshared("r1"))
        await leader.leave(ClientOutcome.GONE)
        retry = await follow(gateway.workers[1], unshared("r2", is_retry=True))
        task = waiting(retry)
        await leader.finish(record("one"))
        outcome = await task
        assert isinstance(outcome, Found)
        await retry.leave(ClientOutcome.DELIVERED)
        again = await done(gateway.workers[0], unshared("r3", is_retry=True))
        assert again.how is How.ADOPTED
        await asyncio.sleep(61)
        await lead(gateway.workers[0], unshared("r4", is_retry=True))


@in_virtual_time
async def test_a_retry_pays_only_for_what_is_missing() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], unshared("r1", images=10))
        await leader.progress(0, ["a", "b"])
        await leader.fail(UpstreamFailed("no"))
        assert (await lead(gateway.workers[1], unshared("r2", images=10))).parts == {0: ("a", "b")}


@in_virtual_time
async def test_an_idempotency_key_replays_and_refuses_another_body() -> None:
    async with Gateway() as gateway:
        wanted = unshared("r1", idempotency=Idempotency("k", "b"))
        leader = await lead(gateway.workers[0], wanted)
        await leader.finish(record("one"))
        repeat = await done(gateway.workers[1], replace(wanted, request="r2"))
        assert (repeat.how, repeat.result) == (How.REPLAYED, record("one"))
        other = replace(wanted, request="r3", idempotency=Idempotency("k", "other"))
        assert await enter(gateway.workers[1], other) is Refusal.CONFLICT


@in_virtual_time
async def test_only_if_cached_is_answered_at_once() -> None:
    async with Gateway() as gateway:
        assert await enter(gateway.workers[0], entry("r1", only_if_cached=True)) is Refusal.MISSING


# --- results that are no use


@pytest.mark.parametrize("kept", [b"", b"garbage", b"\x81\xa1v\x02"], ids=str)
@in_virtual_time
async def test_a_corrupt_result_is_a_miss(kept: bytes) -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        await leader.finish(record(), 3600)
        gateway.store._scopes[SCOPE]._known["r1"].payload = kept
        await lead(gateway.workers[1], entry("r2"))


@in_virtual_time
async def test_a_result_with_another_number_of_images_is_a_miss() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1", images=2))
        await leader.finish(record(images=2), 3600)
        await lead(gateway.workers[1], entry("r2"))


@in_virtual_time
async def test_a_result_may_be_discarded_by_who_cannot_use_it() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        await leader.finish(record(life_s=61), 3600)
        await gateway.workers[0].pin_images(SCOPE, leader.id, 3600)
        await asyncio.sleep(600)
        found = await done(gateway.workers[1], entry("r2"))
        await gateway.workers[1].discard(SCOPE, found.id)
        await lead(gateway.workers[1], entry("r3"))


# --- errors, memory


@pytest.mark.parametrize("kind", list(subclasses(GatewayError)), ids=lambda kind: kind.__name__)
def test_every_error_travels_whole(kind: type[GatewayError]) -> None:
    error = kind.__new__(kind)
    GatewayError.__init__(error, "message", param="n", code="c", retry_after_s=1.5)
    error.should_retry = None
    travelled = decode_error(encode_error(error))
    assert type(travelled) is kind
    assert (vars(travelled), travelled.args) == (vars(error), error.args)


@pytest.mark.parametrize("shared", [b"", b"garbage", b"\x96"])
def test_an_error_that_cannot_be_read_is_the_gateway_s_own(shared: bytes) -> None:
    assert decode_error(shared).status == 500


@pytest.mark.slow
@in_virtual_time
async def test_a_follower_costs_little_memory() -> None:
    """Its reservation, the fallback's mirror of it, and what this test itself holds included."""
    many = 2000
    tracing = sys.gettrace()
    sys.settrace(None)  # what follows lines for coverage costs memory in every frame
    async with Gateway() as gateway:
        await lead(gateway.workers[0], entry("r1"))
        wanted = [entry(f"f{number}") for number in range(many)]
        tracemalloc.start()
        idlers: list[asyncio.Task[Any]] = [asyncio.create_task(idle()) for _ in wanted]
        await asyncio.sleep(2)
        alone = tracemalloc.get_traced_memory()[0]
        followers = [waiting(await follow(gateway.workers[1], one)) for one in wanted]
        await asyncio.sleep(2)
        used = tracemalloc.get_traced_memory()[0] - alone
        tracemalloc.stop()
        for task in (*idlers, *followers):
            task.cancel()
        await asyncio.wait([*idlers, *followers])
    sys.settrace(tracing)
    assert (used - alone) / many < 4096


async def idle() -> None:
    await asyncio.get_running_loop().create_future()


@in_virtual_time
async def test_a_leadership_of_another_worker_is_left_alone() -> None:
    async with Gateway() as gateway:
        leader = await lead(gateway.workers[0], entry("r1"))
        other = Lead(Leadership(SCOPE, "r1", "r9"), {})
        await gateway.workers[1].progress(other, 0, ["x"], leader.request.settlement())
        await leader.hand_over()
        assert (await lead(gateway.workers[1], entry("r2"))).parts == {}

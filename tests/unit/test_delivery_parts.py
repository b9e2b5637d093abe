"""What a delivery is made of: the JSON around the images, base64 in pieces, and the budget."""

from __future__ import annotations

import asyncio
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.delivery import in_one_answer
from gateway.delivery.base64_json import Base64Writer
from gateway.delivery.budget import BlockBuffer, ByteBudget
from gateway.protocol.openai import ImagesResponse


def test_an_answer_that_holds_the_placeholder_elsewhere() -> None:
    """It would be split in the wrong place."""
    with pytest.raises(ValueError, match="placeholder"):
        in_one_answer(lambda images, _: ImagesResponse(created=0, data=images, size="1|2"))([None])


@given(st.lists(st.binary(max_size=50)))
def test_base64_in_pieces(blocks: list[bytes]) -> None:
    """Wherever the blocks end."""
    writer = Base64Writer()
    pieces = [writer.add(block) for block in blocks]

    assert b"".join([*pieces, writer.end()]) == b64encode(b"".join(blocks))


async def waiting(budget: ByteBudget, count: int) -> asyncio.Task[None]:
    task = asyncio.create_task(budget.acquire(count))
    await asyncio.sleep(0)
    return task


async def test_first_come_first_served() -> None:
    """A small wish does not overtake a large one, or the large one might wait for ever."""
    budget = ByteBudget(10)
    await budget.acquire(6)
    large, small = await waiting(budget, 8), await waiting(budget, 1)
    assert not budget.try_acquire(1)

    budget.release(3)
    await asyncio.sleep(0)
    assert not large.done()
    assert not small.done()

    budget.release(3)
    await asyncio.gather(large, small)
    assert budget.free == 1


async def test_who_stops_waiting_lets_the_next_go() -> None:
    budget = ByteBudget(10)
    await budget.acquire(6)
    large, small = await waiting(budget, 8), await waiting(budget, 2)

    large.cancel()

    await small
    assert budget.free == 2


async def test_a_grant_to_somebody_who_is_leaving_comes_back() -> None:
    budget = ByteBudget(10)
    await budget.acquire(10)
    late = await waiting(budget, 10)
    budget.release(10)
    late.cancel()
    await asyncio.wait([late])

    assert late.cancelled()
    assert budget.free == 10


@given(st.lists(st.tuples(st.integers(1, 10), st.integers(0, 5)), max_size=30))
def test_it_is_never_exceeded_and_never_lost(wishes: list[tuple[int, int]]) -> None:
    """Any wishes, held for any time, some of them given up."""
    budget = ByteBudget(10)

    async def hold(count: int, turns: int) -> None:
        await budget.acquire(count)
        assert 0 <= budget.free <= 10 - count
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
        finally:
            budget.release(count)

    async def all_of_them() -> None:
        tasks = [asyncio.create_task(hold(*options)) for options in wishes]
        for index, task in enumerate(tasks):
            await asyncio.sleep(0)
            if index % 3 == 0:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(all_of_them())
    assert budget.free == 10


async def test_a_pile_counts_what_it_holds() -> None:
    budget = ByteBudget(10)
    buffer = BlockBuffer(budget)
    await buffer.add(b"1234")
    await buffer.add(b"567")
    assert (budget.free, buffer.held) == (3, 7)

    assert buffer.pop() == b"1234"
    assert (budget.free, buffer.held) == (7, 3)
    buffer.clear()
    assert (budget.free, buffer.held, buffer.pop()) == (10, 0, b"")

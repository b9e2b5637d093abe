"""However many requests arrive in one moment, the loop comes round soon."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from gateway.api.start_limiter import StartLimiter


async def test_one_request_passes_at_once() -> None:
    """Without giving the turn to anybody else."""
    gate = StartLimiter()
    others: list[str] = []
    asyncio.get_running_loop().call_soon(others.append, "somebody")
    await gate.enter()
    assert others == []


async def test_a_few_pass_in_each_turn_in_their_order() -> None:
    gate = StartLimiter(at_once=8)
    passed: list[int] = []

    async def request(number: int) -> None:
        await gate.enter()
        passed.append(number)

    tasks = [asyncio.create_task(request(number)) for number in range(100)]
    turns = [0]
    while len(passed) < len(tasks):
        await asyncio.sleep(0)
        turns.append(len(passed))
    assert passed == list(range(100))
    assert max(after - before for before, after in pairwise(turns)) == 8


async def test_it_is_open_again_when_the_crowd_has_passed() -> None:
    gate = StartLimiter(at_once=2)
    await asyncio.gather(*(gate.enter() for _ in range(7)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    async with asyncio.timeout(0):
        await gate.enter()


async def test_whoever_leaves_is_not_waited_for() -> None:
    gate = StartLimiter(at_once=1)
    first, leaving, last = (asyncio.create_task(gate.enter()) for _ in range(3))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait_for(asyncio.gather(first, last), 1)
    with pytest.raises(asyncio.CancelledError):
        await leaving

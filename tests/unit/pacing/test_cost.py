"""What waiting costs: memory of each call, and the processor's time while thousands wait."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gateway.pacing import Pacer
from gateway.pacing.scheduler import REFRESH_S
from tests.unit.pacing.callers import MODEL, faulty_store, memory_store, now, pacer_over, take
from tests.virtual_time import in_virtual_time

RATE = 0.001
"""So slow that no slot comes while a test waits."""
LONG_S = 1e7
"""And yet each of some thousand calls has its slot in time."""


async def wait(pacer: Pacer, number: int) -> None:
    await pacer.slot(MODEL, f"t{number % 50}", accounts=("intl",), deadline=now() + LONG_S)


@pytest.mark.slow
@in_virtual_time
async def test_a_waiting_call_takes_less_than_a_kibibyte() -> None:
    """Beyond the task and the frame of its caller."""
    pacer = pacer_over(memory_store(), rate=RATE)
    await take(pacer)
    event = asyncio.Event()

    async def idle(_: int) -> None:
        await event.wait()

    per_waiter = await memory_per_task(lambda number: wait(pacer, number))
    per_waiter -= await memory_per_task(idle)
    # Tracing the lines for coverage costs memory in every waiting frame.
    assert per_waiter < (1024 if sys.gettrace() is None else 2048)


async def memory_per_task(start: Callable[[int], Coroutine[Any, Any, None]]) -> float:
    """Bytes that each of some thousand suspended tasks takes."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tasks = [asyncio.create_task(start(number)) for number in range(2000)]
    await asyncio.sleep(0.1)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return (after - before) / len(tasks)


@in_virtual_time
async def test_five_thousand_wait_for_one_claim_each_five_seconds() -> None:
    """Each of which takes less than 10 ms of the processor: together less than 0.2 % of it."""
    store = faulty_store()
    pacer = pacer_over(store, rate=RATE)
    await take(pacer)
    tasks = [asyncio.create_task(wait(pacer, number)) for number in range(5000)]
    await asyncio.sleep(0.1)
    assert pacer.waiting() == {MODEL: 5000}
    claims, used_s = store.asked["claim"], time.process_time()
    await asyncio.sleep(100 * REFRESH_S)
    used_s = time.process_time() - used_s
    assert store.asked["claim"] == claims + 100
    assert used_s < 1.0
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

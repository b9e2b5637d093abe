"""Ledgers of several workers over a real Redis that hangs, dies and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.results import Entry, Ledger
from gateway.results.cache_policy import Record
from gateway.results.holdings import LeaseTimes
from gateway.store.memory import MemoryStore
from gateway.store.redis import RedisStore
from tests.contract.stores import PATIENT
from tests.redis_server import RedisServer
from tests.unit.ledgers import Following, Found, How, Leading, enter, waiting

WORKERS = 4
LEAD_S = 1.5


def entry(request: str) -> Entry:
    return Entry(scope="tenant:acme", request=request, plan_hash="p", images=1, cache_key="key")


def record() -> Record:
    now = int(time.time())
    return Record(urls=("https://host/a.png",), created=now, expires_at=now + 3600, model="m")


@pytest.fixture
async def workers(own_redis_server: RedisServer) -> AsyncIterator[list[Ledger]]:
    stores = [RedisStore(own_redis_server.url, timeouts=PATIENT) for _ in range(WORKERS)]
    workers = [
        Ledger(
            store,
            worker=f"w{number}",
            fallback=MemoryStore(),
            times=LeaseTimes(lead_s=LEAD_S),
        )
        for number, store in enumerate(stores)
    ]
    for worker in workers:
        worker.start()
    yield workers
    for worker, store in zip(workers, stores, strict=True):
        await worker.aclose()
        await store.aclose()


async def lead(worker: Ledger, request: str) -> Leading:
    place = await enter(worker, entry(request))
    assert isinstance(place, Leading)
    return place


async def follow(worker: Ledger, request: str) -> asyncio.Task[Any]:
    place = await enter(worker, entry(request))
    assert isinstance(place, Following)
    return waiting(place, within_s=30)


@pytest.mark.slow
async def test_many_identical_requests_in_four_workers_have_one_leader(
    workers: list[Ledger],
) -> None:
    places = await asyncio.gather(
        *(enter(workers[number % WORKERS], entry(f"r{number}")) for number in range(50))
    )
    (leader,) = [place for place in places if isinstance(place, Leading)]
    waits = [waiting(place, within_s=30) for place in places if isinstance(place, Following)]
    await asyncio.sleep(2 * LEAD_S)
    await leader.finish(record(), 3600)
    outcomes = await asyncio.gather(*waits)
    assert [isinstance(one, Found) and one.result.urls for one in outcomes] == [record().urls] * 49
    again = await enter(workers[3], entry("r99"))
    assert isinstance(again, Found)
    assert again.how is How.HIT


async def test_a_server_that_dies_and_comes_back_empty_is_told_what_runs(
    workers: list[Ledger], own_redis_server: RedisServer
) -> None:
    leader = await lead(workers[0], "r1")
    await leader.progress(0, ["a"])
    waiting = await follow(workers[1], "r2")
    own_redis_server.kill()
    await leader.progress(1, ["b"])
    assert isinstance(await enter(workers[0], entry("r3")), Following)
    own_redis_server.restart()
    async with asyncio.timeout(10):
        while any(worker.degraded for worker in workers[:2]):  # noqa: ASYNC110 - a real server
            await asyncio.sleep(0.05)
    assert isinstance(await enter(workers[2], entry("r4")), Following)
    await leader.finish(record(), 3600)
    assert isinstance(await waiting, Found)


async def test_a_result_finished_while_the_server_is_dead_is_not_lost(
    workers: list[Ledger], own_redis_server: RedisServer
) -> None:
    leader = await lead(workers[0], "r1")
    waiting = await follow(workers[1], "r2")
    own_redis_server.kill()
    await leader.finish(record(), 3600)
    assert workers[0].backlog == 1
    own_redis_server.restart()
    assert isinstance(await waiting, Found)
    assert isinstance(await enter(workers[2], entry("r3")), Found)
    assert workers[0].backlog == 0

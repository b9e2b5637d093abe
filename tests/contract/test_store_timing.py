"""How long Redis takes is told by operation, of the calls that reached it."""

from __future__ import annotations

import time

import pytest

from gateway.store.availability import StoreUnavailable
from gateway.store.images import ImagePlace
from gateway.store.limits import Limits
from gateway.store.redis import RedisStore, Timeouts
from gateway.store.redis.images import RedisImages
from tests.contract.stores import PATIENT, ask, release, take, used
from tests.redis_server import RedisServer

LIMITS = Limits(requests_per_minute=100)


class Told:
    """What a store said."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []

    def __call__(self, operation: str, seconds: float) -> None:
        self.calls.append((operation, seconds))


async def test_every_call_is_told_with_its_own_time(own_redis_server: RedisServer) -> None:
    told = Told()
    store = RedisStore(own_redis_server.url, timeouts=PATIENT, took=told)
    images = RedisImages(own_redis_server.url, timeouts=PATIENT, took=told)
    started = time.perf_counter()
    await take(store, ask(1, LIMITS))
    await release(store, used(1))
    await store.heartbeat("worker", 1000)
    place = ImagePlace("tenant:acme", "r1", 0)
    await images.put_image(place, b"png", 1000, 1000)
    await images.get_image(place)
    whole = time.perf_counter() - started
    await store.aclose()
    await images.aclose()

    assert [operation for operation, _ in told.calls] == [
        *("enter", "leave", "heartbeat"),
        *("setrange", "pexpire", "images_keep", "images_size", "getrange"),
    ]
    assert all(seconds > 0 for _, seconds in told.calls)
    assert sum(seconds for _, seconds in told.calls) < whole


@pytest.mark.slow
async def test_silence_is_told_and_a_call_that_never_left_is_not(
    own_redis_server: RedisServer,
) -> None:
    """Else the time-outs of an outage would drown in what was refused at once."""
    told = Told()
    store = RedisStore(own_redis_server.url, timeouts=Timeouts(1.0, 0.2), took=told)
    await take(store, ask(1, LIMITS))
    own_redis_server.stop()
    for number in range(2, 10):
        with pytest.raises(StoreUnavailable):
            await take(store, ask(number, LIMITS))
    own_redis_server.cont()
    await store.aclose()

    assert len(told.calls) == 2
    assert told.calls[1][1] >= 0.2

"""Image bytes: whole or not at all, within a budget, the same in memory and on Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from gateway.store.images import ImagePlace, ImageStats, ImageStore
from gateway.store.memory.images import MemoryImages
from gateway.store.redis.images import BLOCK_BYTES, RedisImages
from tests.contract.stores import KINDS, PATIENT, Clock, clock, server_of

__all__ = ["clock"]

HOUR_MS = 3_600_000
BUDGET = 1_000_000
LARGE = bytes(range(256)) * (BLOCK_BYTES * 3 // 256) + b"end"
REDIS = [kind for kind in KINDS if kind != "memory"]


def place(number: int = 0, index: int = 0, scope: str = "tenant:acme") -> ImagePlace:
    return ImagePlace(scope, f"r{number}", index)


@pytest.fixture(params=KINDS)
async def images(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[ImageStore]:
    images = open_images(request.param, clock)
    yield images
    await images.aclose()


def open_images(kind: str, clock: Clock) -> ImageStore:
    if kind == "memory":
        return MemoryImages(clock)
    server = server_of(kind)
    server.flush()
    return RedisImages(server.url, timeouts=PATIENT, clock_us=clock.microseconds)


async def put(images: ImageStore, at: ImagePlace, image: bytes = b"png", **how: int) -> bool:
    return await images.put_image(
        at, memoryview(image), how.get("ttl_ms", HOUR_MS), how.get("budget", BUDGET)
    )


@pytest.mark.parametrize("image", [b"\x89PNG\r\n\0", LARGE], ids=["small", "large"])
async def test_an_image_comes_back_as_it_was(images: ImageStore, image: bytes) -> None:
    assert await put(images, place(), image, budget=2 * len(LARGE))
    assert await images.get_image(place()) == image


async def test_an_image_is_found_only_in_its_place(images: ImageStore) -> None:
    await put(images, place())
    for other in (place(1), place(0, 1), place(scope="tenant:other")):
        assert await images.get_image(other) is None


async def test_an_image_ends(images: ImageStore, clock: Clock) -> None:
    await put(images, place(), ttl_ms=60_000)
    clock.advance(59)
    assert await images.get_image(place())
    clock.advance(2)
    assert await images.get_image(place()) is None
    assert await images.image_stats("tenant:acme") == ImageStats(0, 0)


async def test_those_that_end_first_make_room(images: ImageStore, clock: Clock) -> None:
    for number in range(4):
        assert await put(images, place(number), b"x" * 300_000)
        clock.advance(1)
    held = [bool(await images.get_image(place(number))) for number in range(4)]
    assert held == [False, True, True, True]
    assert await images.image_stats("tenant:acme") == ImageStats(3, 900_000)


async def test_an_image_larger_than_the_budget_displaces_nothing(images: ImageStore) -> None:
    await put(images, place())
    assert not await put(images, place(1), b"x" * 11, budget=10)
    assert await images.get_image(place())


async def test_an_image_that_is_put_again_counts_once(images: ImageStore) -> None:
    for _ in range(3):
        await put(images, place(), b"x" * 400_000)
    assert await images.image_stats("tenant:acme") == ImageStats(1, 400_000)


async def test_the_budget_is_each_scope_s_own(images: ImageStore) -> None:
    await put(images, place(), b"x" * 900_000)
    await put(images, place(scope="tenant:other"), b"x" * 900_000)
    assert await images.get_image(place())


async def test_a_purge_removes_a_scope_s_images(images: ImageStore) -> None:
    await put(images, place())
    await put(images, place(0, 1))
    await put(images, place(scope="tenant:other"))
    assert await images.purge_images("tenant:acme") == 2
    assert await images.get_image(place()) is None
    assert await images.get_image(place(scope="tenant:other"))


# --- Redis alone


@pytest.fixture(params=REDIS)
async def on_redis(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Any]:
    images = open_images(request.param, clock)
    url = server_of(request.param).url
    with redis.Redis.from_url(url) as client:
        yield images, client
    await images.aclose()


async def test_an_image_that_the_server_evicted_is_not_there(on_redis: Any) -> None:
    images, client = on_redis
    await put(images, place())
    client.delete("gateway:{b:tenant:acme}:b:r0:0")
    assert await images.get_image(place()) is None
    assert await images.image_stats("tenant:acme") == ImageStats(0, 0)


async def test_an_image_that_is_cut_short_is_not_there(on_redis: Any) -> None:
    images, client = on_redis
    await put(images, place(), b"x" * 100)
    client.set("gateway:{b:tenant:acme}:b:r0:0", b"x" * 50)
    assert await images.get_image(place()) is None


async def test_everything_has_a_time_to_live(on_redis: Any) -> None:
    images, client = on_redis
    await put(images, place(), LARGE)
    keys = client.keys("*")
    assert len(keys) == 3
    assert all(client.pttl(key) > 0 for key in keys)
    assert len({key_slot(key) for key in keys}) == 1

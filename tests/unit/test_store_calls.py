"""How often a request asks the store, as docs/architecture.md has it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from gateway.config import Cache, Config, Images, Key, Limits, Tenant, with_catalogue
from gateway.domain.catalogue import Rate
from gateway.tenants.keys import hash_key
from tests.running import account, captured_logs, config_for, key_of
from tests.virtual_gateway import Call, Line, Site, Vendor, made, now
from tests.virtual_time import in_virtual_time

OF_REQUESTS = {"enter", "progress", "end", "leave", "client_gone", "levels"}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with captured_logs():
        yield


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Operations of the requests, by name."""
    calls = Counter[str]()
    operation_of = Line.__getattr__

    def counted(line: Line, name: str) -> Callable[..., Awaitable[Any]]:
        if name in OF_REQUESTS:
            calls[name] += 1
        return operation_of(line, name)

    monkeypatch.setattr(Line, "__getattr__", counted)
    return calls


def site_of() -> Site:
    tenant = Tenant(
        name="acme",
        keys=(Key(hash=hash_key(key_of("acme"))),),
        cache=Cache(mode="seeded"),
        limits=Limits(requests_per_minute=6),
    )
    vendor = account("http://127.0.0.1:9/api/v1", rates={"*": Rate(None)})
    images = Images(allowed_hosts=(".aliyuncs.com",))
    config: Config = with_catalogue(config_for(vendor, tenants=(tenant,), images=images))
    return Site(config, Vendor(after_a_second))


async def after_a_second(call: Call) -> httpx.Response:
    return await made(call, 1.0)


@pytest.mark.parametrize("images", [1, 2, 5])
@in_virtual_time
async def test_a_miss_enters_keeps_all_parts_but_the_last_and_ends(
    images: int, asked: Counter[str]
) -> None:
    async with site_of() as site:
        await asyncio.sleep(2)
        asked.clear()  # what the start needed
        visit = site.ask(prompt="a fox", seed=7, n=images, model="qwen-image-plus")
        await visit
        assert len(visit.urls) == images
        assert asked == +Counter({"enter": 1, "progress": images - 1, "end": 1})


@in_virtual_time
async def test_a_hit_and_a_refusal_enter(asked: Counter[str]) -> None:
    async with site_of() as site:
        await asyncio.sleep(2)
        asked.clear()  # what the start needed
        statuses = []
        for _ in range(8):
            visit = site.ask(prompt="a fox", seed=7)
            await visit
            statuses.append(visit.status)
        assert statuses == [200] * 6 + [429] * 2
        assert asked == {"enter": 8, "end": 1}


@in_virtual_time
async def test_a_follower_leaves_behind_its_answer(asked: Counter[str]) -> None:
    async with site_of() as site:
        await asyncio.sleep(2)
        asked.clear()  # what the start needed
        began = now()
        leader, follower = (site.ask(prompt="a fox", seed=7) for _ in range(2))
        await leader
        await follower
        assert now() - began < 2
        assert asked == {"enter": 2, "end": 1, "leave": 1}

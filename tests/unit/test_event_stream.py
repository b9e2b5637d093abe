"""A stream that takes minutes: its comments, its end, and its client, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest

from gateway.api.image_request import silence_s
from gateway.config import Cache, Config, Images, Key, Limits, Tenant, with_catalogue
from gateway.delivery import Converter
from gateway.delivery.conversion import Original
from gateway.domain.catalogue import Rate, Size
from gateway.store import limits
from gateway.tenants.keys import hash_key
from gateway.upstream.images import ImageFetcher
from tests import virtual_gateway
from tests.image_events import COMMENT
from tests.image_host import png
from tests.openai_shapes import check_event
from tests.running import account, captured_logs, config_for, key_of
from tests.virtual_gateway import Call, Site, Vendor, Visit, broken_off, made, refused
from tests.virtual_time import in_virtual_time

SPLIT = "qwen-image-plus"
"""Makes one image with each call."""
MADE = "image_generation.completed"
MARKED = [("x-stainless-retry-count", "1")]
BUDGET = 1000
PLACES = 10
STEPS_MAX = 600
LEASE_S = 31.0

Json = dict[str, Any]


class Picture:
    """The download of an image that is named by its URL."""

    def __init__(self, url: str) -> None:
        self._rest = png(300, seed=int(url.rpartition("/")[2].partition("-")[0]))
        self.length = len(self._rest)
        self.size = Size(1024, 1024)

    @property
    def is_whole(self) -> bool:
        return not self._rest

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        block, self._rest = self._rest[:200], self._rest[200:]
        return block

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def pictures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Image hosts that answer at once; no log on the screen."""

    async def download(_: ImageFetcher, url: str, **__: Any) -> Picture:
        await asyncio.sleep(0)
        return Picture(url)

    monkeypatch.setattr(ImageFetcher, "open", download)
    with captured_logs():
        yield


def config_of(rate: float | None = None, deadline_s: float | None = None) -> Config:
    tenant = Tenant(
        name="acme",
        keys=(Key(hash=hash_key(key_of("acme"))),),
        cache=Cache(mode="seeded"),
        deadline_s=deadline_s,
        limits=Limits(images_per_day=BUDGET, concurrent_requests=PLACES),
    )
    vendor = account("http://127.0.0.1:9/api/v1", rates={"*": Rate(rate)})
    images = Images(allowed_hosts=(".aliyuncs.com",))
    return with_catalogue(config_for(vendor, tenants=(tenant,), images=images))


def ask(site: Site, **more: Any) -> Visit:
    return site.ask(**{"prompt": "a fox", "response_format": "b64_json", "stream": True, **more})


def blocks(visit: Visit) -> list[str]:
    *whole, rest = visit.content.decode().split("\n\n")
    assert rest == ""
    return whole


def events(visit: Visit) -> list[Json]:
    return [check_event(block) for block in blocks(visit) if block != COMMENT]


async def in_100_s(call: Call) -> httpx.Response:
    return await made(call, 100)


async def refused_after_100_s(_: Call) -> httpx.Response:
    return await refused(100, 400, "DataInspectionFailed")


async def refused_after_10_s(_: Call) -> httpx.Response:
    return await refused(10, 400, "DataInspectionFailed")


async def one_by_one(call: Call) -> httpx.Response:
    return await made(call, 10 * (1 + call.number))


@in_virtual_time
async def test_a_comment_every_15_seconds_until_the_image_comes() -> None:
    """The head goes out with the first, so that no proxy waits for 60 s."""
    async with Site(config_of(), Vendor(in_100_s)) as site:
        visit = ask(site)
        await asyncio.sleep(14)
        assert (visit.status, visit.content) == (0, b"")
        for elapsed in range(15, 100, 15):
            await asyncio.sleep(15 if elapsed > 15 else 1.1)
            assert visit.status == 200
            assert blocks(visit) == [COMMENT] * (elapsed // 15)
        await visit

    assert [event["type"] for event in events(visit)] == [MADE]
    assert "x-image-expires-in" not in visit.headers


@pytest.mark.slow
@in_virtual_time
async def test_comments_while_an_image_becomes_another_format(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where many do, that waits; between events there is room for comments."""

    async def slowly(_: Converter, png: Original, *__: Any, **___: Any) -> AsyncGenerator[bytes]:
        async for _block in png.blocks:
            pass
        await asyncio.sleep(40)
        yield b"an image"

    monkeypatch.setattr(Converter, "convert", slowly)
    async with Site(config_of(), Vendor(one_by_one)) as site:
        visit = ask(site, output_format="webp")
        await visit

    *comments, event = blocks(visit)
    assert comments == [COMMENT] * 3
    assert check_event(event)["output_format"] == "webp"


@in_virtual_time
async def test_no_comment_soon_after_an_image() -> None:
    async with Site(config_of(), Vendor(one_by_one)) as site:
        visit = ask(site, model=SPLIT, n=3)
        await visit

    assert [event["type"] for event in events(visit)] == [MADE] * 3
    assert COMMENT not in blocks(visit)
    assert visit.headers["x-cache"] == "bypass"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 15.0),
        ({b"x-stainless-read-timeout": b"600"}, 15.0),
        ({b"x-stainless-read-timeout": b"10"}, 5.0),
        ({b"x-stainless-timeout": b"8"}, 4.0),
        ({b"x-stainless-read-timeout": b"None"}, 15.0),
        ({b"x-stainless-read-timeout": b"0"}, 15.0),
    ],
)
def test_an_sdk_that_waits_for_less_hears_of_it_sooner(
    headers: dict[bytes, bytes], seconds: float
) -> None:
    assert silence_s(headers) == seconds


@in_virtual_time
async def test_an_sdk_whose_time_counts_from_byte_to_byte_gets_its_image() -> None:
    """Without streaming it is told of a time-out before its own, and asks again."""
    patience = [("x-stainless-read-timeout", "10")]
    async with Site(config_of(), Vendor(in_100_s)) as site:
        visit = ask(site, headers=patience)
        await visit

    assert [event["type"] for event in events(visit)] == [MADE]
    assert blocks(visit).count(COMMENT) >= 19


@in_virtual_time
async def test_a_failure_before_the_first_comment_has_its_own_status() -> None:
    async with Site(config_of(), Vendor(refused_after_10_s)) as site:
        visit = ask(site)
        await visit

    assert (visit.status, visit.error["code"]) == (400, "moderation_blocked")
    assert visit.headers["content-type"] == "application/json"


@in_virtual_time
async def test_a_failure_after_the_first_comment_is_an_event() -> None:
    async with Site(config_of(), Vendor(refused_after_100_s)) as site:
        visit = ask(site)
        await visit

    assert visit.status == 200
    [failed] = events(visit)
    assert failed["error"]["code"] == "moderation_blocked"


@in_virtual_time
async def test_the_deadline_of_a_generation_is_an_event() -> None:
    async with Site(config_of(deadline_s=60), Vendor(in_100_s)) as site:
        visit = ask(site)
        await visit

    [failed] = events(visit)
    assert failed["error"]["code"] == "upstream_timeout"


@in_virtual_time
async def test_a_client_whose_time_is_over_is_told_by_an_event_while_the_work_goes_on() -> None:
    """A store that is slow at the end: the same request again is given what is kept then."""

    async def reply(call: Call) -> httpx.Response:
        virtual_gateway.LINE_S = 5.0
        return await made(call, 59)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(virtual_gateway, "LINE_S", virtual_gateway.LINE_S)
        async with Site(config_of(deadline_s=60), Vendor(reply)) as site:
            visit = ask(site)
            await visit.until_answered()
            assert visit.answered is not None
            assert visit.answered - visit.began == pytest.approx(61, abs=0.1)
            [failed] = events(visit)
            assert "still being made" in failed["error"]["message"]
            await visit
            again = ask(site)
            await again
            assert [event["type"] for event in events(again)] == [MADE]
            assert site.vendor.paid == 1
            await check_nothing_is_left(site)


@in_virtual_time
async def test_the_deadline_of_a_stream_that_has_not_begun_is_a_504() -> None:
    config = config_of(deadline_s=8)
    async with Site(config, Vendor(in_100_s)) as site:
        visit = ask(site)
        await visit

    assert (visit.status, visit.error["code"]) == (504, "upstream_timeout")


@in_virtual_time
async def test_a_follower_of_another_worker_hears_comments_and_has_the_images() -> None:
    async with Site(config_of(), Vendor(in_100_s), workers=2) as site:
        leader = ask(site, seed=1)
        await asyncio.sleep(1)
        follower = ask(site, seed=1, worker=1)
        await leader
        await follower

    assert [event["type"] for event in events(follower)] == [MADE]
    assert blocks(follower).count(COMMENT) == 6
    assert site.vendor.paid == 1


async def check_nothing_is_left(site: Site) -> None:
    """No place of concurrency, and what was paid is booked, once."""
    await asyncio.sleep(LEASE_S)
    everything = limits.Limits(images_per_day=BUDGET, concurrent_requests=PLACES)
    levels = await site.store.inner.levels("acme", everything)
    assert levels.concurrent is not None
    assert levels.day is not None
    assert levels.concurrent.remaining == PLACES, "a place of concurrency is held"
    booked = BUDGET - levels.day.remaining
    assert booked == site.recorded() + site.recorded(doubtful=True)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "n", "after_s"), [("qwen-image-2.0", 2, 2.0), (SPLIT, 2, 20.0)])
@in_virtual_time
async def test_the_client_may_leave_at_every_await(model: str, n: int, after_s: float) -> None:
    """Its retry is given what was made, pays for the rest alone, and nothing is left behind."""

    async def reply(call: Call) -> httpx.Response:
        return await made(call, after_s)

    async with Site(config_of(rate=1), Vendor(reply)) as site:
        for step in range(1, STEPS_MAX):
            assert step < STEPS_MAX - 1, "it was never served"
            asked: Json = {"prompt": f"fox {step}", "seed": 7, "model": model, "n": n}
            paid = site.vendor.paid
            visit = ask(site, **asked)
            visit.leaves_at = step
            await visit
            await asyncio.sleep(after_s + 5)
            if visit.hung_up is None:
                assert [event["type"] for event in events(visit)] == [MADE] * n
                break
            retry = ask(site, headers=MARKED, **asked)
            await retry
            assert [event["type"] for event in events(retry)] == [MADE] * n
            assert site.vendor.paid == paid + n
            await asyncio.sleep(5)
        await check_nothing_is_left(site)


@in_virtual_time
async def test_the_client_may_leave_at_every_await_of_a_stream_that_fails() -> None:
    """The same request again pays for what is missing alone."""

    async def reply(call: Call) -> httpx.Response:
        return await (refused(20, 500, "InternalError") if call.attempt == 1 else made(call, 2))

    async with Site(config_of(), Vendor(reply)) as site:
        for step in range(1, STEPS_MAX):
            assert step < STEPS_MAX - 1, "it was never answered"
            asked: Json = {"prompt": f"fox {step}", "model": SPLIT, "n": 2}
            paid = site.vendor.paid
            visit = ask(site, **asked)
            visit.leaves_at = step
            await visit
            await asyncio.sleep(25)
            if visit.hung_up is None:
                assert [event["type"] for event in events(visit)] == [MADE, "error"]
                break
            retry = ask(site, headers=MARKED, **asked)
            await retry
            assert site.vendor.paid <= paid + 2
        await check_nothing_is_left(site)


@in_virtual_time
async def test_an_unknown_outcome_after_an_image_is_told_and_not_paid_again() -> None:
    async def reply(call: Call) -> httpx.Response:
        return await (made(call, 2) if call.number == 0 else broken_off(call, 20))

    async with Site(config_of(), Vendor(reply)) as site:
        visit = ask(site, model=SPLIT, n=2)
        await visit
        again = ask(site, model=SPLIT, n=2, headers=MARKED)
        await again

    first, failed = events(visit)
    assert first["type"] == MADE
    assert failed["error"]["code"] == "upstream_outcome_unknown"
    assert site.vendor.paid == 2
    assert again.error["code"] == "upstream_outcome_unknown"

"""What one client sees of the cache: keys, repeats, retries, hang-ups, and what it asks for."""

from __future__ import annotations

import hashlib
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from gateway.config import Cache, with_catalogue
from tests.figures import Figure
from tests.paying.shop import MODEL, Fleet, Vendor
from tests.redis_server import RedisServer
from tests.running import (
    ACME,
    OTHER_ACME,
    STRICT,
    Client,
    HeldClock,
    RunningGateway,
    account,
    config_for,
    until,
)

KEY = {"idempotency-key": "order-4711"}
RETRY = {"x-stainless-retry-count": "1"}
DAY_S = 86_400
LATENCY_S = 0.4

pytestmark = pytest.mark.usefixtures("logs")


@pytest.fixture
def shop(
    running_gateway: RunningGateway, http: httpx.Client, clock: HeldClock, vendor: Vendor
) -> Iterator[Client]:
    """A gateway of one worker; URLs live for a day, cached results for half of it."""
    config = config_for(account(vendor.base_url))
    tenants = tuple(replace(one, cache=Cache(ttl_s=DAY_S / 2)) for one in config.tenants)
    config = with_catalogue(replace(config, tenants=tenants))
    running_gateway.use(config, clock.clock())
    yield Client(http, running_gateway.url)
    running_gateway.rest()


def seeded(shop: Client, **more: Any) -> httpx.Response:
    return shop.generate(**{"model": MODEL, "seed": 7, "response_format": "url", **more})


def unseeded(shop: Client, **more: Any) -> httpx.Response:
    return shop.generate(**{"model": MODEL, "response_format": "url", **more})


def urls(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [image["url"] for image in answer.json()["data"]]


def cache(answer: httpx.Response) -> str:
    return answer.headers["x-cache"]


@contextmanager
def meanwhile(call: Any) -> Iterator[list[httpx.Response]]:
    """The call runs in a thread; its answer is there after the block."""
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    try:
        yield answers
    finally:
        thread.join(20)


def hang_up(shop: Client, *, after_s: float, key: str = ACME, **fields: Any) -> None:
    """Ask, and close the connection before there is an answer."""
    with httpx.Client(trust_env=False, timeout=after_s) as http, pytest.raises(httpx.ReadTimeout):
        http.post(
            f"{shop.url}/v1/images/generations",
            headers={"authorization": f"Bearer {key}"},
            json={"prompt": "a fox", "model": MODEL, "response_format": "url", **fields},
        )


# --- Idempotency-Key


def test_a_repeat_is_given_the_stored_answer(shop: Client, vendor: Vendor, figure: Figure) -> None:
    """Seeded or not; the order of the body's keys makes no difference."""
    body = {"prompt": "a fox", "model": MODEL, "response_format": "url"}
    first = shop.post(body, headers=KEY)
    again = shop.post(dict(reversed(body.items())), headers=KEY)

    figure(f"{vendor.calls} call, x-cache {cache(first)}, {cache(again)}")
    assert (cache(first), cache(again)) == ("bypass", "replayed")
    assert again.json() == first.json()
    assert vendor.calls == vendor.paid == 1


def test_a_repeat_joins_the_one_still_running(shop: Client, vendor: Vendor) -> None:
    vendor.configure(latency_s=LATENCY_S)
    with meanwhile(lambda: unseeded(shop, headers=KEY)) as first:
        until(lambda: vendor.calls)
        again = unseeded(shop, headers=KEY)

    assert urls(again) == urls(first[0])
    assert cache(again) == "joined"
    assert vendor.calls == 1


def test_another_body_under_the_same_key_is_422(shop: Client, vendor: Vendor) -> None:
    unseeded(shop, headers=KEY)
    other = unseeded(shop, headers=KEY, prompt="an owl")

    assert other.status_code == 422
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert other.headers["x-should-retry"] == "false"
    assert vendor.calls == 1


def test_a_key_is_the_tenant_s_own(shop: Client, vendor: Vendor) -> None:
    """Two keys of one tenant share it, two tenants do not."""
    first = unseeded(shop, headers=KEY)
    same_tenant = unseeded(shop, headers=KEY, key=OTHER_ACME)
    other_tenant = unseeded(shop, headers=KEY, key=STRICT, size="1024x1024")

    assert urls(same_tenant) == urls(first)
    assert urls(other_tenant) != urls(first)
    assert vendor.calls == 2


def test_a_key_lasts_a_day_and_no_longer_than_the_url(
    shop: Client, vendor: Vendor, clock: HeldClock
) -> None:
    first = unseeded(shop, headers=KEY)
    clock.now += DAY_S - 120
    replayed = unseeded(shop, headers=KEY)
    clock.now += 90
    anew = unseeded(shop, headers=KEY)

    assert urls(replayed) == urls(first)
    assert urls(anew) != urls(first)
    assert vendor.calls == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
def test_a_key_that_is_none_is_refused(shop: Client, key: str, vendor: Vendor) -> None:
    answer = unseeded(shop, headers={"idempotency-key": key})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_idempotency_key"
    assert vendor.calls == 0


# --- retries, hang-ups, resume


@pytest.mark.slow
def test_a_hang_up_keeps_the_result_for_the_retry(
    shop: Client, vendor: Vendor, figure: Figure
) -> None:
    vendor.configure(latency_s=LATENCY_S)
    hang_up(shop, after_s=LATENCY_S / 2)
    until(lambda: "\ngateway_images_total{" in shop.http.get(f"{shop.url}/metrics").text)
    retry = unseeded(shop, headers=RETRY)
    anew = unseeded(shop)

    figure(f"{vendor.calls} calls for two pictures, x-cache of the retry {cache(retry)}")
    assert cache(retry) == "replayed"
    assert urls(anew) != urls(retry)
    assert vendor.calls == vendor.paid == 2


@pytest.mark.slow
def test_a_retry_while_it_runs_joins_it(shop: Client, vendor: Vendor) -> None:
    vendor.configure(latency_s=2 * LATENCY_S)
    hang_up(shop, after_s=LATENCY_S / 2)
    retry = unseeded(shop, headers=RETRY)

    assert cache(retry) == "joined"
    assert vendor.calls == vendor.paid == 1


@pytest.mark.slow
def test_a_retry_of_another_key_or_body_pays_for_itself(shop: Client, vendor: Vendor) -> None:
    vendor.configure(latency_s=LATENCY_S)
    hang_up(shop, after_s=LATENCY_S / 2)
    others = [
        unseeded(shop, headers=RETRY, key=OTHER_ACME),
        unseeded(shop, headers=RETRY, prompt="an owl"),
    ]

    assert [cache(answer) for answer in others] == ["bypass", "bypass"]
    assert vendor.calls == 3


@pytest.mark.slow
def test_a_follower_that_runs_out_of_time_is_told_to_come_back(
    shop: Client, vendor: Vendor
) -> None:
    """The images that it waits for are being made, so its retry is given them."""
    vendor.configure(latency_s=2.0)
    impatient = {**RETRY, "x-stainless-read-timeout": "0.5"}
    hang_up(shop, after_s=0.3)
    late = unseeded(shop, headers=impatient)
    last = unseeded(shop, headers={"x-stainless-retry-count": "2"})

    assert urls(last)
    assert vendor.calls == 1
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "upstream_timeout"
    assert late.headers["x-should-retry"] == "true"


def test_ten_images_of_which_one_failed_are_resumed(
    shop: Client, vendor: Vendor, figure: Figure
) -> None:
    """Two calls, of six and of four: the second one is refused for good."""
    vendor.configure(latency_s=0.2)
    vendor.fault("InternalError", after_s=0.4)
    ten: dict[str, Any] = {"model": MODEL, "n": 10, "response_format": "url"}
    failed = shop.generate(**ten)
    paid_before = vendor.paid
    retry = shop.generate(**ten, headers=RETRY)

    figure(f"{paid_before} paid before, {vendor.paid} after the retry, {vendor.calls} calls")
    assert failed.status_code == 502
    assert failed.json()["error"]["code"] == "upstream_error"
    assert failed.json()["error"]["message"]
    assert 0 < paid_before < 10
    assert len(set(urls(retry))) == 10
    assert vendor.paid == 10
    assert vendor.calls == 3


def test_an_idempotent_request_is_resumed_too(shop: Client, vendor: Vendor) -> None:
    """Without being marked as a retry."""
    vendor.configure(latency_s=0.2)
    vendor.fault("InternalError", after_s=0.4)
    ten: dict[str, Any] = {
        "model": MODEL,
        "n": 10,
        "response_format": "url",
        "headers": KEY,
    }
    failed = shop.generate(**ten)
    repeat = shop.generate(**ten)

    assert failed.status_code == 502
    assert len(set(urls(repeat))) == 10
    assert vendor.paid == 10


# --- Cache-Control


def control(directive: str) -> dict[str, str]:
    return {"cache-control": directive}


def test_no_cache_makes_a_new_image_and_keeps_it(shop: Client, vendor: Vendor) -> None:
    first = seeded(shop)
    fresh = seeded(shop, headers=control("no-cache"))
    later = seeded(shop)

    assert [cache(one) for one in (first, fresh, later)] == ["miss", "miss", "hit"]
    assert urls(first) != urls(fresh) == urls(later)
    assert vendor.calls == 2


def test_no_store_neither_takes_nor_leaves_anything(shop: Client, vendor: Vendor) -> None:
    first = seeded(shop, headers=control("no-store"))
    second = seeded(shop)
    third = seeded(shop, headers=control("no-store"))

    assert [cache(one) for one in (first, second, third)] == ["bypass", "miss", "bypass"]
    assert vendor.calls == 3


def test_max_age_is_obeyed(shop: Client, vendor: Vendor, clock: HeldClock) -> None:
    seeded(shop)
    clock.now += 100
    young = seeded(shop, headers=control("max-age=101"))
    old = seeded(shop, headers=control("max-age=99"))

    assert (cache(young), cache(old)) == ("hit", "miss")
    assert vendor.calls == 2


def test_only_if_cached_never_pays(shop: Client, vendor: Vendor) -> None:
    """504 in OpenAI's envelope, which no SDK sends again."""
    refused = seeded(shop, headers=control("only-if-cached"))
    seeded(shop)
    found = seeded(shop, headers=control("only-if-cached"))

    assert refused.status_code == 504
    assert refused.json()["error"]["code"] == "not_cached"
    assert refused.headers["x-should-retry"] == "false"
    assert cache(found) == "hit"
    assert vendor.calls == 1


# --- what a hit is


def test_both_formats_share_one_payment(shop: Client, vendor: Vendor, figure: Figure) -> None:
    by_url = seeded(shop)
    by_bytes = seeded(shop, response_format="b64_json")

    image = b64decode(by_bytes.json()["data"][0]["b64_json"], validate=True)
    served = httpx.get(urls(by_url)[0], trust_env=False).content
    figure(f"{vendor.calls} call, x-cache {cache(by_bytes)}")
    assert hashlib.sha256(image).digest() == hashlib.sha256(served).digest()
    assert cache(by_bytes) == "hit"
    assert vendor.calls == vendor.paid == 1


def test_age_and_remaining_life_are_told(shop: Client, clock: HeldClock) -> None:
    first = seeded(shop)
    clock.now += 1000
    hit = seeded(shop)

    assert "age" not in first.headers
    assert int(first.headers["x-image-expires-in"]) == pytest.approx(DAY_S, abs=2)
    assert int(hit.headers["age"]) == pytest.approx(1000, abs=2)
    assert int(hit.headers["x-image-expires-in"]) == pytest.approx(DAY_S - 1000, abs=2)


def test_a_hit_ends_with_the_policy_and_with_the_url(
    shop: Client, vendor: Vendor, clock: HeldClock
) -> None:
    """Whichever is first: half a day here, or a minute before the URL dies."""
    seeded(shop)
    clock.now += DAY_S / 2 + 1
    by_policy = seeded(shop)
    vendor.configure(url_life_s=600.0)
    short = seeded(shop, prompt="an owl")
    clock.now += 530
    alive = seeded(shop, prompt="an owl")
    clock.now += 20
    by_url = seeded(shop, prompt="an owl")

    assert [cache(one) for one in (by_policy, short, alive, by_url)] == [
        "miss",
        "miss",
        "hit",
        "miss",
    ]


def test_an_error_is_not_cached(shop: Client, vendor: Vendor) -> None:
    vendor.fault("InternalError")
    assert seeded(shop).status_code == 502
    assert cache(seeded(shop)) == "miss"


def test_without_a_seed_every_picture_is_new(shop: Client, vendor: Vendor) -> None:
    answers = [unseeded(shop) for _ in range(3)]

    assert [cache(one) for one in answers] == ["bypass"] * 3
    assert vendor.calls == 3


def test_two_tenants_share_nothing(shop: Client, vendor: Vendor) -> None:
    mine, theirs = seeded(shop, size="1024x1024"), seeded(shop, size="1024x1024", key=STRICT)

    assert (cache(mine), cache(theirs)) == ("miss", "miss")
    assert urls(mine) != urls(theirs)


# --- the same over two processes


@pytest.mark.slow
def test_another_gateway_gives_the_same_answers(
    vendor: Vendor, own_redis_server: RedisServer, http: httpx.Client, figure: Figure
) -> None:
    """Repeat, join, retry and hit, each asked of the gateway that did not make the image."""
    vendor.time = time.time
    vendor.configure(latency_s=1.0)
    with Fleet(vendor, own_redis_server.url, gateways=2, workers=1) as fleet:
        one, two = (Client(http, url) for url in fleet.urls)
        with meanwhile(lambda: unseeded(one, headers=KEY)) as first:
            until(lambda: vendor.calls)
            joined = unseeded(two, headers=KEY)
        replayed = unseeded(two, headers=KEY)
        conflict = unseeded(two, headers=KEY, prompt="an owl")
        hang_up(one, after_s=0.5, prompt="a cat")
        adopted = unseeded(two, headers=RETRY, prompt="a cat")
        seeded(one)
        hit = seeded(two)

    told = [cache(answer) for answer in (joined, replayed, adopted, hit)]
    figure(f"{vendor.calls} calls, x-cache {told}, conflict {conflict.status_code}")
    assert urls(joined) == urls(replayed) == urls(first[0])
    assert conflict.status_code == 422
    assert told[1:] == ["replayed", "joined", "hit"]
    assert vendor.calls == vendor.paid == 3

"""`output_format`, `output_compression`, `quality` and `background` through the whole gateway."""

from __future__ import annotations

import time
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from PIL import Image

from gateway.config import Cache, ImageCache, Images, Key, Tenant
from gateway.domain.catalogue import Alias
from gateway.tenants.keys import hash_key
from tests.image_events import events_of
from tests.running import ACME, Client, HeldClock, account, config_for
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

MODEL = "qwen-image-2.0"
FORMATS = pytest.mark.parametrize("wanted", ["jpeg", "webp"])
DAY_S = 86_400.0


@pytest.fixture(autouse=True)
def vendor_and_gateway_agree(clock: HeldClock) -> None:
    """On when an address dies."""
    clock.now = time.time()


def ask(gateway: Client, output_format: str | None, **more: Any) -> httpx.Response:
    fields = {"model": MODEL, "size": "1024x1024", "seed": 7, "response_format": "b64_json"}
    return gateway.generate(**{**fields, "output_format": output_format, **more})


def pictures(answer: httpx.Response) -> list[Image.Image]:
    """What an answer holds; whole, or Pillow would say so."""
    assert answer.status_code == 200, answer.text
    found: list[Image.Image] = [
        Image.open(BytesIO(b64decode(each["b64_json"]))) for each in answer.json()["data"]
    ]
    for each in found:
        each.load()
    return found


def calls(simulator: SimulatedDashScope) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = simulator.state()["log"]
    return found


@FORMATS
def test_images_come_in_the_format_asked_for(
    wanted: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    answer = ask(gateway, wanted, n=3)

    assert [(each.format, each.size) for each in pictures(answer)] == [
        (wanted.upper(), (1024, 1024))
    ] * 3
    body = answer.json()
    assert (body["output_format"], body["background"], body["size"]) == (
        wanted, "opaque", "1024x1024"
    )  # fmt: skip
    assert "x-gateway-ignored" not in answer.headers
    assert answer.headers["transfer-encoding"] == "chunked"


@pytest.mark.parametrize("fields", [{}, {"output_format": "png"}, {"output_compression": 100}])
def test_png_is_sent_as_it_is(fields: dict[str, Any], gateway: Client) -> None:
    answer = ask(gateway, fields.pop("output_format", None), **fields)

    assert [each.format for each in pictures(answer)] == ["PNG"]
    assert answer.json()["output_format"] == "png"
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_without_a_word_on_it_other_formats_come_as_base64(gateway: Client) -> None:
    """As from OpenAI's models, whatever the alias or the tenant would have for a PNG."""
    answer = gateway.generate(model="dall-e-3", output_format="jpeg")

    assert [each.format for each in pictures(answer)] == ["JPEG"]


@FORMATS
def test_compression_is_the_quality(
    wanted: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    simulator.configure(render="text")
    sizes = [len(ask(gateway, wanted, output_compression=q).content) for q in (0, 60, 100)]

    assert sizes == sorted(set(sizes))
    assert len(ask(gateway, wanted).content) == sizes[-1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"output_format": "jpeg", "response_format": "url"}, "output_format"),
        ({"output_format": "gif", "response_format": "b64_json"}, "output_format"),
        ({"output_compression": 50}, "output_compression"),
        ({"output_format": "png", "output_compression": 99}, "output_compression"),
        ({"background": "transparent", "output_format": "webp"}, "background"),
    ],
)
def test_what_cannot_be_had_is_refused_before_it_is_paid_for(
    fields: dict[str, Any], param: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    answer = gateway.generate(model=MODEL, **fields)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_value", param)
    assert "end '" in error["message"]
    assert calls(simulator) == []


def test_an_image_too_large_to_be_converted_is_refused_before_it_is_paid_for(
    start: Start, simulator: SimulatedDashScope
) -> None:
    images = Images(
        allowed_hosts=("127.0.0.1",), allow_http=True, conversion_bytes=64 * 1024 * 1024
    )
    gateway = start(config_for(account(simulator.base_url), images=images))

    answer = ask(gateway, "webp", size="2048x2048")

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "output_format")
    assert "2048x2048" in error["message"]
    assert calls(simulator) == []
    assert ask(gateway, "png", size="2048x2048").status_code == 200


def test_another_format_of_the_same_images_is_a_hit(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """How images are handed over is no part of what is paid for."""
    answers = [ask(gateway, wanted, n=2) for wanted in (None, "jpeg", "webp", "jpeg")]

    assert [each.headers["x-cache"] for each in answers] == ["miss", "hit", "hit", "hit"]
    assert answers[1].content == answers[3].content
    assert len(calls(simulator)) == 1


def test_several_formats_at_once_are_paid_once(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    simulator.configure(latency_s=0.2)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda w: ask(gateway, w), ["jpeg", "webp", "png"] * 2))

    assert {pictures(each)[0].format for each in answers} == {"JPEG", "WEBP", "PNG"}
    assert len(calls(simulator)) == 1


def test_the_cache_of_bytes_holds_what_was_made_not_what_was_sent(
    start: Start, simulator: SimulatedDashScope, clock: HeldClock
) -> None:
    """So that each format is there after the addresses have died."""
    tenant = Tenant(name="acme", keys=(Key(hash=hash_key(ACME)),), cache=Cache(ttl_s=7 * DAY_S))
    gateway = start(
        config_for(account(simulator.base_url), tenants=(tenant,), image_cache=ImageCache())
    )
    made = ask(gateway, "jpeg", n=2)

    clock.now += 2 * DAY_S
    again, other, original = (ask(gateway, wanted, n=2) for wanted in ("jpeg", "webp", "png"))

    assert [each.headers["x-cache"] for each in (again, other, original)] == ["hit"] * 3
    assert again.json()["data"] == made.json()["data"]
    assert [each.format for each in pictures(other)] == ["WEBP"] * 2
    assert [each.format for each in pictures(original)] == ["PNG"] * 2
    assert len(calls(simulator)) == 1


def test_quality_leads_to_a_model_where_the_alias_says_so(
    start: Start, simulator: SimulatedDashScope
) -> None:
    alias = Alias(
        "qwen-image-2.0-pro", "b64_json", None, {"low": MODEL, "hd": "qwen-image-2.0-pro"}
    )
    config = config_for(account(simulator.base_url), aliases={"gpt-image-1": alias})
    gateway = start(config)

    def led(quality: str | None) -> tuple[str, str | None, str | None]:
        answer = gateway.generate(model="gpt-image-1", quality=quality, size="1024x1024")
        headers = answer.headers
        shown = answer.json().get("quality")
        return headers["x-gateway-model"], shown, headers.get("x-gateway-ignored")

    assert led("low") == (MODEL, "low", None)
    assert led("hd") == ("qwen-image-2.0-pro", None, None)  # a word that answers do not know
    assert led("high") == ("qwen-image-2.0-pro", None, "quality")
    assert led("auto") == ("qwen-image-2.0-pro", None, "quality")
    assert led(None) == ("qwen-image-2.0-pro", None, None)


def test_a_quality_that_means_the_same_model_means_the_same_images(
    start: Start, simulator: SimulatedDashScope
) -> None:
    alias = Alias("qwen-image-2.0-pro", "b64_json", None, {"low": MODEL})
    gateway = start(config_for(account(simulator.base_url), aliases={"painter": alias}))

    first = gateway.generate(model=MODEL, seed=1)
    second = gateway.generate(model="painter", quality="low", seed=1)

    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit")
    assert second.json()["quality"] == "low"


def test_a_tenant_s_rights_hold_for_the_model_that_quality_leads_to(
    start: Start, simulator: SimulatedDashScope
) -> None:
    config = config_for(account(simulator.base_url))
    [acme, *_] = config.tenants
    pro_alone = replace(acme, models=("qwen-image-2.0-pro",), default_model=None)
    alias = Alias("qwen-image-2.0-pro", None, None, {"low": MODEL})
    gateway = start(
        config_for(account(simulator.base_url), tenants=(pro_alone,), aliases={"painter": alias})
    )

    assert gateway.generate(model="painter").status_code == 200
    assert gateway.generate(model="painter", quality="low").status_code == 403


def test_conversions_are_measured(gateway: Client) -> None:
    pictures(ask(gateway, "webp", n=2))

    text = gateway.http.get(f"{gateway.url}/metrics").text
    assert 'gateway_conversion_seconds_count{format="webp"} 2.0' in text


@FORMATS
def test_events_hold_that_format_too(
    wanted: str, start: Start, simulator: SimulatedDashScope
) -> None:
    alias = Alias("qwen-image-2.0-pro", None, None, {"low": "qwen-image-plus"})
    gateway = start(config_for(account(simulator.base_url), aliases={"painter": alias}))

    answer = gateway.generate(
        model="painter", quality="low", n=2, stream=True, output_format=wanted
    )

    events = events_of(answer)
    assert [each["type"] for each in events] == ["image_generation.completed"] * 2
    assert {(each["output_format"], each["quality"]) for each in events} == {(wanted, "low")}
    for each in events:
        assert Image.open(BytesIO(b64decode(each["b64_json"]))).format == wanted.upper()

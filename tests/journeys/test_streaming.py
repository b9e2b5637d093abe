"""`stream: true`: each image as an event, as soon as the call that made it has ended."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from gateway.api import answers
from gateway.config import Cache, Config, ImageCache, Key, Limits, Tenant
from gateway.domain.catalogue import Rate
from gateway.tenants.keys import hash_key
from tests.image_events import EventReader, events_of
from tests.running import ACME, Client, HeldClock, Logs, account, config_for, until
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.usefixtures("quick_retries")

MADE = "image_generation.completed"
SINGLE = "qwen-image-2.0"
"""Makes several images with one call."""
SPLIT = "qwen-image-plus"
"""Makes one image with each call."""
ATTEMPTS = 5
"""After which a download is given up."""
MIB = 1024 * 1024
RETRY = {"x-stainless-retry-count": "1"}

Json = dict[str, Any]


@pytest.fixture(autouse=True)
def vendor_and_gateway_agree(clock: HeldClock) -> None:
    """On when a URL dies."""
    clock.now = float(int(time.time()))


@contextmanager
def streaming(gateway: Client, **fields: Any) -> Iterator[EventReader]:
    """An answer that is read event by event."""
    with gateway.http.stream(
        "POST",
        f"{gateway.url}/v1/images/generations",
        headers={"authorization": f"Bearer {ACME}"},
        json={"prompt": "a fox", "stream": True, **fields},
    ) as answer:
        yield EventReader(answer)


def paid(simulator: SimulatedDashScope) -> int:
    return sum(simulator.state()["paid"].values())


def pictures(answer: httpx.Response) -> list[str]:
    """In base64, however they were sent."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        return [event["b64_json"] for event in events_of(answer)]
    return [image["b64_json"] for image in answer.json()["data"]]


def of_one_tenant(simulator: SimulatedDashScope, rate: Rate | None = None, **more: Any) -> Config:
    tenant = Tenant(name="acme", keys=(Key(hash=hash_key(ACME)),), **more)
    return config_for(
        account(simulator.base_url, rates={"*": rate or Rate(None)}), tenants=(tenant,)
    )


@pytest.mark.parametrize("model", [SINGLE, SPLIT])
def test_the_events_hold_the_images_of_the_plain_answer(model: str, gateway: Client) -> None:
    asked: Json = {"model": model, "n": 3, "seed": 1, "size": "1024x1024"}
    plain = gateway.generate(response_format="b64_json", **asked)
    streamed = gateway.generate(stream=True, headers={"cache-control": "no-cache"}, **asked)

    events = events_of(streamed)
    assert [event["type"] for event in events] == [MADE] * 3
    assert sorted(pictures(streamed)) == sorted(pictures(plain))
    assert streamed.headers["x-cache"] == "miss"
    assert streamed.headers["x-gateway-model"] == model
    assert streamed.headers["cache-control"] == "no-cache"
    assert streamed.headers["x-accel-buffering"] == "no"
    for event in events:
        assert base64.b64decode(event["b64_json"], validate=True).startswith(b"\x89PNG")
        if model == SINGLE:
            assert event["size"] == "1024x1024"


def test_an_image_is_sent_while_the_next_call_waits(
    start: Start, simulator: SimulatedDashScope, clock: HeldClock
) -> None:
    """The second slot comes only when the test's clock goes on."""
    gateway = start(of_one_tenant(simulator, Rate(10)))

    with streaming(gateway, model=SPLIT, n=2, seed=1) as answer:
        first = answer.event()
        assert len(simulator.state()["log"]) == 1
        clock.now += 2
        second = answer.event()
        assert answer.rest() == []

    assert first["type"] == second["type"] == MADE
    assert first["b64_json"] != second["b64_json"]
    assert paid(simulator) == 2


def test_a_format_that_streams(gateway: Client) -> None:
    """OpenAI's events hold base64: also for an alias whose users expect URLs."""
    assert len(events_of(gateway.generate(model="dall-e-3", stream=True))) == 1

    refused = gateway.generate(model=SINGLE, stream=True, response_format="url")

    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "response_format"


@pytest.mark.parametrize(("asked", "ignored"), [(0, None), (3, "partial_images")])
def test_there_are_no_partial_images(asked: int, ignored: str | None, gateway: Client) -> None:
    answer = gateway.generate(model=SINGLE, stream=True, partial_images=asked)

    assert [event["type"] for event in events_of(answer)] == [MADE]
    assert answer.headers.get("x-gateway-ignored") == ignored


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (400, {"size": "x"}),
        (400, {"partial_images": 4}),
        (400, {"prompt": "[simulate:DataInspectionFailed]"}),
        (401, {"key": "sk-wrong"}),
        (502, {"prompt": "[simulate:truncated_json]"}),
    ],
)
def test_what_fails_before_the_first_event_is_an_ordinary_error(
    status: int, fields: Json, gateway: Client
) -> None:
    answer = gateway.generate(model=SINGLE, stream=True, **fields)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"


def test_a_defect_is_logged_and_told_as_one(
    gateway: Client, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise LookupError

    monkeypatch.setattr(answers, "to_event", broken)
    answer = gateway.generate(model=SINGLE, stream=True)

    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert len(logs.named("defect")) == 1


def test_a_limit_refuses_a_stream_with_its_status(
    start: Start, simulator: SimulatedDashScope
) -> None:
    gateway = start(of_one_tenant(simulator, limits=Limits(images_per_minute=2)))

    assert gateway.generate(model=SINGLE, n=3, stream=True).status_code == 429
    assert paid(simulator) == 0


def test_a_failure_between_events_is_the_last_event(
    gateway: Client, simulator: SimulatedDashScope, logs: Logs
) -> None:
    """What was made is sent; a retry pays only for what is missing, and has all of it."""
    simulator.fault("InternalError", model=SPLIT)
    asked: Json = {"model": SPLIT, "n": 3, "seed": 1, "stream": True}

    *made, failed = events_of(gateway.generate(**asked))

    assert [event["type"] for event in made] == [MADE] * 2
    assert failed["error"]["code"] == "upstream_error"
    [line] = logs.named("answered")
    assert (line["status"], line["outcome"]) == (200, "upstream_failed")
    metrics = gateway.http.get(f"{gateway.url}/metrics").text
    assert 'outcome="upstream_failed",tenant="acme"} 1.0' in metrics
    again = events_of(gateway.generate(headers=RETRY, **asked))
    assert [event["type"] for event in again] == [MADE] * 3
    assert {event["b64_json"] for event in made} < {event["b64_json"] for event in again}
    assert paid(simulator) == 3


def test_an_image_that_cannot_be_had_is_told_after_the_others(
    start: Start, simulator: SimulatedDashScope, clock: HeldClock, logs: Logs
) -> None:
    """The same request again, by whoever sends it, is given what is kept."""
    gateway = start(of_one_tenant(simulator, Rate(10)))
    asked: Json = {"model": SPLIT, "n": 2}
    with streaming(gateway, **asked) as answer:
        assert answer.event()["type"] == MADE
        simulator.fault("image_500", count=ATTEMPTS)
        clock.now += 2
        assert answer.event()["error"]["code"] == "image_unavailable"
        assert answer.rest() == []

    [line] = logs.named("answered")
    assert (line["status"], line["outcome"]) == (200, "image_unavailable")
    assert len(events_of(gateway.generate(stream=True, **asked))) == 2
    assert paid(simulator) == 2


def test_an_image_that_breaks_off_is_never_half_an_event(
    start: Start, simulator: SimulatedDashScope, clock: HeldClock, logs: Logs
) -> None:
    """The connection ends instead, as it does without streaming."""
    simulator.configure(image_bytes=MIB)
    gateway = start(of_one_tenant(simulator, Rate(10)))
    with streaming(gateway, model=SPLIT, n=2) as answer:
        assert answer.event()["type"] == MADE
        simulator.fault("image_truncated", count=1, at_byte=MIB // 2)
        simulator.fault("image_500", count=ATTEMPTS)
        clock.now += 2
        with pytest.raises(httpx.RemoteProtocolError):
            answer.event()

    until(lambda: logs.named("answered"))
    [line] = logs.named("answered")
    assert (line["status"], line["outcome"]) == (200, "image_unavailable")
    assert logs.named("delivery_broken_off")
    assert paid(simulator) == 2


@pytest.mark.parametrize("stream_first", [True, False])
def test_a_stream_and_a_plain_answer_share_a_result(
    stream_first: bool, gateway: Client, simulator: SimulatedDashScope
) -> None:
    asked: Json = {"model": SPLIT, "n": 2, "seed": 1, "response_format": "b64_json"}

    first = gateway.generate(stream=stream_first, **asked)
    second = gateway.generate(stream=not stream_first, **asked)

    assert sorted(pictures(first)) == sorted(pictures(second))
    assert second.headers["x-cache"] == "hit"
    assert second.headers["age"] == "0"
    assert paid(simulator) == 2


def test_an_idempotency_key_gives_a_stream_again(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    key = {"idempotency-key": "once"}
    first = gateway.generate(model=SPLIT, n=2, stream=True, headers=key)
    second = gateway.generate(model=SPLIT, n=2, stream=True, headers=key)

    assert sorted(pictures(first)) == sorted(pictures(second))
    assert second.headers["x-cache"] == "replayed"
    assert paid(simulator) == 2


def test_followers_stream_too(gateway: Client, simulator: SimulatedDashScope) -> None:
    simulator.configure(latency_s=0.3)
    with ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(gateway.generate, model=SPLIT, n=2, seed=1, stream=True) for _ in range(3)
        ]
        found = [one.result() for one in asked]

    assert len({tuple(sorted(pictures(answer))) for answer in found}) == 1
    assert paid(simulator) == 2


def test_who_leaves_between_events_is_given_the_rest_on_return(
    start: Start, simulator: SimulatedDashScope, clock: HeldClock, logs: Logs
) -> None:
    """What waits for a slot is not begun for nobody; what was made is not made again."""
    gateway = start(of_one_tenant(simulator, Rate(10)))
    asked: Json = {"model": SPLIT, "n": 2, "seed": 1}
    with streaming(gateway, **asked) as answer:
        first = answer.event()
    until(lambda: logs.named("answered"))
    assert logs.named("answered")[0]["outcome"] == "client_gone"
    assert paid(simulator) == 1

    clock.now += 2
    again = events_of(gateway.generate(stream=True, **asked))

    assert first["b64_json"] in {event["b64_json"] for event in again}
    assert len(again) == paid(simulator) == 2


def test_a_place_of_concurrency_is_held_until_the_last_event(
    start: Start, simulator: SimulatedDashScope, clock: HeldClock
) -> None:
    gateway = start(of_one_tenant(simulator, Rate(10), limits=Limits(concurrent_requests=1)))
    with streaming(gateway, model=SPLIT, n=2) as answer:
        answer.event()
        assert gateway.generate(model=SINGLE).status_code == 429
        clock.now += 2
        answer.event()
        answer.rest()

    until(lambda: gateway.generate(model=SINGLE).status_code == 200)


def test_images_sent_in_parts_are_kept_in_their_order(
    start: Start, simulator: SimulatedDashScope, clock: HeldClock
) -> None:
    """For hits after their URLs have died."""
    cache = Cache(ttl_s=7 * 86_400)
    config = of_one_tenant(simulator, cache=cache)
    gateway = start(replace(config, image_cache=ImageCache()))
    asked: Json = {"model": SPLIT, "n": 3, "seed": 1, "size": "1328x1328"}
    streamed = gateway.generate(stream=True, **asked)
    plain = gateway.generate(response_format="b64_json", **asked)

    clock.now += 2 * 86_400
    found = gateway.generate(response_format="b64_json", **asked)

    assert found.headers["x-cache"] == "hit"
    assert pictures(found) == pictures(plain)
    assert sorted(pictures(streamed)) == sorted(pictures(plain))
    assert paid(simulator) == 3

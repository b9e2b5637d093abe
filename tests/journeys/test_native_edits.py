"""Pictures to edit in the messages of the vendor's own SDK, through the gateway."""

from __future__ import annotations

import time
from typing import Any, Final

import dashscope
import httpx
import pytest
from dashscope import MultiModalConversation

from gateway.config import Uploads
from tests.pictures import data_url, noise, opened, picture
from tests.running import ACME, Client, HeldClock, Logs, account, config_for
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

PATH: Final = "/api/v1/services/aigc/multimodal-generation/generation"
MODEL: Final = "qwen-image-2.0"
ADDRESS: Final = "https://example.com/cat.png"
TEXT: Final = {"text": "a hat"}


def body(*images: str, text_first: bool = False, **more: Any) -> dict[str, Any]:
    pictures = [{"image": image} for image in images]
    content = [TEXT, *pictures] if text_first else [*pictures, TEXT]
    return {"model": MODEL, "input": {"messages": [{"role": "user", "content": content}]}, **more}


def post(gateway: Client, sent: object, **headers: str) -> httpx.Response:
    named = {"authorization": f"Bearer {ACME}", **headers}
    return gateway.http.post(gateway.url + PATH, json=sent, headers=named)


def content(simulator: SimulatedDashScope) -> list[dict[str, str]]:
    [call] = simulator.state()["log"]
    found: list[dict[str, str]] = call["body"]["input"]["messages"][0]["content"]
    return found


def paid(simulator: SimulatedDashScope) -> int:
    return sum(simulator.state(log=0)["paid"].values())


def test_the_sdk_sends_an_address_and_a_data_url(
    gateway: Client, simulator: SimulatedDashScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address is passed on and not fetched; the picture arrives byte for byte."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{gateway.url}/api/v1")
    image = picture()
    asked: Any = [{"image": ADDRESS}, {"image": data_url(image)}, TEXT]

    answer: Any = MultiModalConversation.call(
        model="qwen-image-edit-plus",
        messages=[{"role": "user", "content": asked}],
        api_key=ACME,
        n=2,
        watermark=False,
    )

    assert answer.status_code == 200, answer
    assert len(answer.output.choices[0].message.content) == 2
    assert answer.usage["image_count"] == 2
    assert "width" not in answer.usage  # the model makes what the last picture is like
    first, second, text = content(simulator)
    assert first == {"image": ADDRESS}
    assert opened(second["image"])[::2] == ("image/png", image)
    assert text == TEXT


def test_the_text_may_come_first(gateway: Client, simulator: SimulatedDashScope) -> None:
    """What is numbered is the pictures among themselves."""
    images = [picture(seed=1), picture(seed=2)]

    answer = post(gateway, body(*map(data_url, images), text_first=True))

    assert answer.status_code == 200
    *found, text = content(simulator)
    assert [opened(each["image"])[2] for each in found] == images
    assert text == TEXT


def test_pictures_do_not_count_against_the_bound_of_the_rest(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """A body of megabytes, where 128 KiB are taken without its pictures."""
    image = noise(size=(1200, 800))
    assert len(image) > 2_000_000

    assert post(gateway, body(data_url(image))).status_code == 200
    long = post(gateway, body(data_url(image), padding="x" * 200_000))
    assert (long.status_code, long.json()["code"]) == (413, "BadRequest.TooLarge")
    assert paid(simulator) == 1


def test_one_cache_and_one_price_for_both_paths(
    gateway: Client, simulator: SimulatedDashScope, clock: HeldClock, logs: Logs
) -> None:
    clock.now = time.time()  # the vendor's, so that its URLs live
    image = data_url(picture())
    fields = {"model": "qwen-image-3.0", "prompt": "a hat", "seed": 7, "size": "1024x1024"}

    native = body(image, parameters={"seed": 7, "size": "1024*1024"}) | {"model": "qwen-image-3.0"}
    made = post(gateway, native)
    found = gateway.ask(
        "POST", "/v1/images/edits", json={"images": [{"image_url": image}], **fields}
    )

    assert made.status_code == 200
    assert found.headers["x-cache"] == "hit"
    assert paid(simulator) == 1
    # An image, and the picture that came with it.
    assert logs.named("answered")[0]["cost"] == "0.272483"


def test_a_repeat_is_told_by_its_pictures(
    gateway: Client, simulator: SimulatedDashScope, clock: HeldClock
) -> None:
    clock.now = time.time()
    one, other = (body(data_url(picture(seed=seed))) for seed in (1, 2))
    key = {"idempotency-key": "k1"}

    first, again, different = (post(gateway, each, **key) for each in (one, one, other))

    assert first.json()["output"] == again.json()["output"]
    assert again.headers["x-cache"] == "replayed"
    assert (different.status_code, different.json()["code"]) == (422, "InvalidParameter")
    assert paid(simulator) == 1


IMAGE: Final = data_url(picture())
REFUSED: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "no text": (
        {"model": MODEL, "input": {"messages": [{"role": "user", "content": [{"image": IMAGE}]}]}},
        "exactly one text",
    ),
    "text and picture in one": (
        {
            "model": MODEL,
            "input": {"messages": [{"role": "user", "content": [{"image": IMAGE, **TEXT}]}]},
        },
        "either a text or an image",
    ),
    "a damaged picture": (body(data_url(picture()[:60])), "cut short"),
    "no picture": (body(data_url(b"hello")), "is no PNG, JPEG or WebP image"),
    "no base64": (body("data:image/png;base64,====x"), "is no base64"),
    "an upload of the vendor's": (body("oss://bucket/cat.png"), "http(s) URL of an image"),
    "a file": (body("/etc/hostname"), "http(s) URL of an image"),
    "four pictures": (body(*[IMAGE] * 4), "takes up to 3 images, not 4"),
    "a model that edits none": (body(IMAGE) | {"model": "qwen-image-plus"}, "cannot edit images"),
    "a model that only edits": (body() | {"model": "qwen-image-edit"}, "only edits images"),
    "a picture as the text": (
        {"model": MODEL, "input": {"messages": [{"role": "user", "content": [{"text": IMAGE}]}]}},
        "stands where none is expected",
    ),
    "a prompt by an agent": (
        body(IMAGE, parameters={"prompt_extend_mode": "agent"}) | {"model": "qwen-image-3.0"},
        "cannot have 'prompt_extend_mode' agent",
    ),
    "a size that is not made": (
        body(IMAGE, parameters={"size": "100*100"}),
        "makes no images of 100*100",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_before_anything_is_paid(
    what: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    wrong, words = REFUSED[what]

    answer = post(gateway, wrong)

    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
    assert words in answer.json()["message"]
    assert sum(simulator.state(log=0)["calls"].values()) == 0


def test_the_bound_of_a_picture(start: Start, simulator: SimulatedDashScope) -> None:
    uploads = Uploads(max_image_bytes=1000)
    gateway = start(config_for(account(simulator.base_url), uploads=uploads))

    answer = post(gateway, body(data_url(noise())))

    assert answer.status_code == 400
    assert "is larger than" in answer.json()["message"]


def test_only_json_is_read(gateway: Client) -> None:
    answer = gateway.http.post(
        gateway.url + PATH,
        files=[("image", picture())],
        headers={"authorization": f"Bearer {ACME}"},
    )

    assert (answer.status_code, answer.json()["code"]) == (415, "InvalidParameter")

"""POST /v1/images/edits: what is sent in, what the vendor is sent, and what that costs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest
from msgspec.structs import replace
from PIL import Image

from gateway.config import Limits
from gateway.domain.catalogue import Alias
from gateway.domain.prices import Money
from tests.pictures import claiming, data_url, noise, opened, picture, several, turned
from tests.running import (
    ACME,
    STRICT,
    Client,
    HeldClock,
    Logs,
    account,
    config_for,
    tenants,
    until,
)
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

EDITS: Final = "/v1/images/edits"
MODEL: Final = "qwen-image-2.0"

File = tuple[str, Any]


def edit(
    gateway: Client,
    *pictures: bytes | tuple[Any, ...] | File,
    path: str = EDITS,
    key: str = ACME,
    headers: Any = None,
    **fields: Any,
) -> httpx.Response:
    """A form; a picture alone is a part `image[]` as the SDKs send it."""
    files = [
        each
        if isinstance(each, tuple)
        else ("image[]", ("upload", each, "application/octet-stream"))
        for each in pictures
    ]
    more = {"timeout": fields.pop("timeout")} if "timeout" in fields else {}
    data = {"prompt": "a hat", "model": MODEL, **fields}
    return gateway.ask("POST", path, key=key, files=files, data=data, headers=headers, **more)


def edit_json(gateway: Client, *urls: str, **fields: Any) -> httpx.Response:
    images = [{"image_url": url} for url in urls]
    body = {"prompt": "a hat", "model": MODEL, "images": images, **fields}
    return gateway.ask("POST", EDITS, json=body)


def sent(simulator: SimulatedDashScope) -> list[dict[str, Any]]:
    """The bodies of the vendor's calls."""
    return [call["body"] for call in simulator.state()["log"]]


def content(simulator: SimulatedDashScope) -> list[dict[str, str]]:
    """What the one call consists of."""
    [body] = sent(simulator)
    found: list[dict[str, str]] = body["input"]["messages"][0]["content"]
    return found


def inputs(simulator: SimulatedDashScope) -> list[tuple[str, str]]:
    """Type and SHA-256 of the pictures that came with the one call, of any size."""
    [call] = simulator.state()["log"]
    return [(each["type"], each["sha256"]) for each in call["inputs"]]


def sha256(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


def refused(answer: httpx.Response, param: str | None, code: str) -> str:
    """The words of a 400."""
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code), error
    message: str = error["message"]
    return message


def test_a_picture_arrives_byte_for_byte_before_the_text(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    image = picture()

    answer = edit(gateway, image, n="2", seed="7", negative_prompt="dogs")

    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 2
    first, text = content(simulator)
    mime, _, data = opened(first["image"])
    assert (mime, data) == ("image/png", image)
    assert text == {"text": "a hat"}
    [body] = sent(simulator)
    assert body["parameters"] == {
        "n": 2,
        "negative_prompt": "dogs",
        "prompt_extend": True,
        "watermark": False,
        "seed": 7,
    }


@pytest.mark.parametrize(
    "names",
    [
        ("image",),
        ("image[]",),
        ("image", "image"),
        ("image[]", "image[]", "image[]"),
        ("image[0]", "image[1]"),
        ("images", "images"),
    ],
)
def test_every_name_of_a_picture(
    names: tuple[str, ...], gateway: Client, simulator: SimulatedDashScope
) -> None:
    images = [picture(seed=index) for index in range(len(names))]
    parts = [(name, ("blob", image)) for name, image in zip(names, images, strict=True)]

    assert edit(gateway, *parts).status_code == 200
    *found, _ = content(simulator)
    assert [opened(each["image"])[2] for each in found] == images


def test_numbered_pictures_are_in_the_order_of_their_numbers(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    first, second = picture(seed=1), picture(seed=2)

    edit(gateway, ("image[1]", ("b", second)), ("image[0]", ("a", first)))

    *found, _ = content(simulator)
    assert [opened(each["image"])[2] for each in found] == [first, second]


TEXT_TYPE: Final = "Content-Type: text/plain; charset=UTF-8"
BOUNDARY: Final = "----WebKitFormBoundary7MA4YWxkTrZu0gW"


def form(*parts: tuple[str, bytes]) -> bytes:
    """A body by hand: a part's own header lines, and its content."""
    found = b"".join(
        f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + body + b"\r\n" for head, body in parts
    )
    return found + f"--{BOUNDARY}--\r\n".encode()


def test_files_before_fields_whole_paths_text_with_a_type_and_chunks(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """As Spring, n8n and others write it, and without a length."""
    image = noise(size=(300, 300))
    body = form(
        ('Content-Disposition: form-data; name="image"; filename="C:\\fotos\\a.png"', image),
        (
            f'Content-Disposition: form-data; name="prompt"\r\n{TEXT_TYPE}\r\nContent-Length: 4',
            "Hüt".encode(),
        ),
        ('content-disposition: form-data; name="n"\r\nContent-Type: application/json', b"2"),
        ('Content-Disposition: form-data; name="stream"', b"false"),
        ('Content-Disposition: form-data; name="size"', b"auto"),
        ('Content-Disposition: form-data; name="quality"', b"auto"),
        ('Content-Disposition: form-data; name="user"', b""),
        ('Content-Disposition: form-data; name="input_fidelity"', b"high"),
    )
    chunks = (body[at : at + 1000] for at in range(0, len(body), 1000))

    answer = gateway.ask(
        "POST",
        EDITS,
        content=chunks,
        headers={"content-type": f"multipart/form-data; boundary={BOUNDARY}"},
    )

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-gateway-ignored"] == "quality, input_fidelity"
    assert inputs(simulator) == [("image/png", sha256(image))]
    assert len(answer.json()["data"]) == 2


@pytest.mark.parametrize("escape", [{}, {"/": "\\/"}, {"+": "\\u002B"}, {"=": "\\u003d"}])
def test_data_urls_in_json(
    escape: dict[str, str], gateway: Client, simulator: SimulatedDashScope
) -> None:
    """However the writer escapes them; PHP does so to each slash, .NET to each plus."""
    images = [noise("JPEG", size=(200, 200)), picture("WEBP")]
    urls = [data_url(images[0], "image/jpeg"), data_url(images[1], "image/whatever")]
    body = json.dumps({"images": [{"image_url": url} for url in urls], "prompt": "a hat"})
    for plain, escaped in escape.items():
        body = body.replace(plain, escaped)

    answer = gateway.ask(
        "POST", EDITS, content=body.encode(), headers={"content-type": "application/json"}
    )

    assert answer.status_code == 200, answer.text
    assert inputs(simulator) == [
        ("image/jpeg", sha256(images[0])),
        ("image/webp", sha256(images[1])),
    ]


def test_an_address_is_passed_on_and_not_fetched(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    url = "https://images.example.com/a.png?sig=a%2Fb&x=1"

    assert edit_json(gateway, url, data_url(picture())).status_code == 200

    first, second, _ = content(simulator)
    assert first == {"image": url}
    assert second["image"].startswith("data:image/png;base64,")


def test_what_stands_at_an_address_may_change(
    gateway: Client, simulator: SimulatedDashScope, clock: HeldClock
) -> None:
    """So its edits are no cache's; one that is too long is refused in words that say so."""
    clock.now = time.time()
    camera = "https://camera.example.com/latest.jpg"

    answers = [edit_json(gateway, camera, seed=7) for _ in range(2)]

    assert [each.headers["x-cache"] for each in answers] == ["bypass", "bypass"]
    assert len(sent(simulator)) == 2
    assert edit_json(gateway, f"{camera}?{'a' * 4096}").status_code == 200
    long = edit_json(gateway, f"{camera}?{'a' * 8192}")
    refused(long, "images[0].image_url", "string_above_max_length")


@pytest.mark.parametrize(
    "path",
    [
        "/images/edits",
        "/openai/images/edits?api-version=2025-04-01-preview",
        "/openai/v1/images/edits",
        "/openai/deployments/gpt-image-1/images/edits?api-version=2025-04-01-preview",
    ],
)
def test_every_path(path: str, gateway: Client, simulator: SimulatedDashScope) -> None:
    """Azure names the model in the path, or nowhere."""
    form_ = {"prompt": "a hat"}
    answer = gateway.ask("POST", path, files=[("image", ("a.png", picture()))], data=form_)

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-gateway-model"] == "qwen-image-2.0-pro"
    assert ("b64_json" in answer.json()["data"][0]) == ("deployments" in path)


def test_a_picture_is_turned_upright(gateway: Client, simulator: SimulatedDashScope) -> None:
    edit(gateway, turned())

    mime, found, _ = opened(content(simulator)[0]["image"])
    assert (mime, found.size) == ("image/jpeg", (48, 64))
    assert found.getexif().get(0x0112, 1) == 1


def test_of_several_pictures_in_a_file_the_first_is_meant(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    edit(gateway, several("MPO"))

    mime, found, _ = opened(content(simulator)[0]["image"])
    assert (mime, found.format) == ("image/jpeg", "JPEG")
    red, _, blue = found.convert("RGB").resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    assert red > blue


@pytest.mark.slow
def test_a_picture_too_large_for_a_data_uri_is_written_smaller(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """The vendor takes 10 MiB of base64, and callers may send 10 MiB of picture."""
    image = noise(size=(1850, 1850))
    assert 9 < len(image) / 1024**2 <= 10

    assert edit(gateway, image).status_code == 200
    [call] = simulator.state()["log"]
    assert call["outcome"] == "generated"
    assert int(call["headers"]["content-length"]) < 10 * 1024**2


def saved(kind: str, mode: str = "RGB") -> bytes:
    return picture(kind, mode=mode)


WRONG: Final[dict[str, tuple[bytes, str]]] = {
    "text": (b"<html>no</html>", "no PNG, JPEG or WebP"),
    "a GIF": (saved("GIF", "P"), "no PNG, JPEG or WebP"),
    "a PNG cut in the middle": (noise()[:5000], "cut short"),
    "a PNG without its end": (noise()[:-12], "cut short"),
    "a JPEG cut in the middle": (noise("JPEG")[:1500], "cut short"),
    "a WebP cut in the middle": (noise("WEBP")[:900], "cut short"),
    "the head of a PNG": (picture()[:33], "damaged"),
    "an animated PNG": (several("PNG"), "animated"),
    "an animated WebP": (several("WEBP"), "animated"),
    "CMYK": (saved("JPEG", "CMYK"), "CMYK"),
    "a bomb": (claiming(60_000, 60_000), "pixels"),
    "a little too many pixels": (claiming(4_097, 4_096), "4097x4096 pixels"),
    "nothing": (b"", "empty"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_no_model_could_read_is_refused_before_anything_is_paid(
    kind: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    image, words = WRONG[kind]

    message = refused(edit(gateway, picture(), ("image[]", ("a.png", image, "image/png"))),
                      "image[]", "invalid_image_file")  # fmt: skip

    assert words in message
    assert sent(simulator) == []


def test_a_picture_that_is_too_large_is_refused(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    image = picture() + bytes(10 * 1024 * 1024)

    message = refused(edit(gateway, ("image", ("a", image))), "image", "image_too_large")
    assert "10 MiB" in message
    assert sent(simulator) == []


def test_a_mask_that_was_not_chosen_is_none(gateway: Client) -> None:
    """A page's form sends it without a name and without bytes."""
    mask = ("mask", ("", b"", "application/octet-stream"))

    assert edit(gateway, picture(), mask).status_code == 200


@pytest.mark.parametrize("name", ["mask", "markup"])
def test_what_the_vendor_has_not_is_named(
    name: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    answers = [
        edit(gateway, picture(), (name, ("m.png", picture(), "image/png"))),
        edit_json(gateway, data_url(picture()), **{name: {"image_url": data_url(picture())}}),
        edit_json(gateway, data_url(picture()), **{name: {"file_id": "file-1"}}),
    ]
    for answer in answers[::2]:
        refused(answer, name, "unsupported_value")
    refused(answers[1], "images", "invalid_value")
    assert sent(simulator) == []


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": "qwen-image-max"}, "model", "unsupported_model"),
        ({"prompt": " "}, "prompt", "invalid_value"),
        ({"n": "11"}, "n", "invalid_value"),
        ({"n": "two"}, "n", "invalid_type"),
        ({"steps": "20"}, "steps", "unknown_parameter"),
        ({"stream": "perhaps"}, "stream", "invalid_type"),
        ({"background": "transparent"}, "background", "unsupported_value"),
    ],
)
def test_a_field_at_fault_is_named(
    fields: dict[str, str], param: str, code: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    refused(edit(gateway, picture(), **fields), param, code)
    assert sent(simulator) == []


def test_too_few_and_too_many(gateway: Client, simulator: SimulatedDashScope) -> None:
    refused(edit(gateway, ("x", (None, b"1"))), "image", "missing_required_parameter")
    refused(edit_json(gateway), "images", "invalid_value")
    four = [picture(seed=index) for index in range(4)]
    assert "up to 3" in refused(edit(gateway, *four), "image", "too_many_images")
    refused(edit(gateway, *(four * 5)), "image[]", "too_many_images")
    assert sent(simulator) == []


@pytest.mark.parametrize(
    ("image", "param", "code"),
    [
        ({"file_id": "file-1"}, "images[0].file_id", "unsupported_parameter"),
        ({}, "images[0]", "missing_required_parameter"),
        ({"image_url": "ftp://example.com/a.png"}, "images[0].image_url", "invalid_value"),
        ({"image_url": "file:///etc/passwd"}, "images[0].image_url", "invalid_value"),
        ({"image_url": "\0007"}, "images[0].image_url", "invalid_value"),
        ({"image_url": "sha256:" + "0" * 64}, "images[0].image_url", "invalid_value"),
        ({"image_url": "data:image/png;base64,@@@@"}, "images[0]", "invalid_image_file"),
        ({"image_url": "data:image/png;base64,AA==AAAA"}, "images[0]", "invalid_image_file"),
        ({"image_url": "data:image/png,AAAA"}, "images[0].image_url", "invalid_value"),
    ],
)
def test_a_reference_that_leads_nowhere(
    image: dict[str, str], param: str, code: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    body = {"prompt": "a hat", "images": [image]}
    refused(gateway.ask("POST", EDITS, json=body), param, code)
    assert sent(simulator) == []


def test_a_picture_in_the_prompt_is_none(gateway: Client, simulator: SimulatedDashScope) -> None:
    url = data_url(picture())
    refused(edit_json(gateway, url, prompt=url), "images", "invalid_value")
    assert sent(simulator) == []


@pytest.mark.parametrize(
    ("model", "asked", "sent_size", "ignored"),
    [
        ("qwen-image-2.0-pro", None, None, None),
        ("gpt-image-1", "1536x1024", "1536*1024", None),
        ("dall-e-2", None, None, None),
        ("qwen-image-3.0", "100x100", "512*512", None),
        ("qwen-image-edit", "1024x1024", None, "size"),
        ("qwen-image-edit-plus", "4096x2048", "2048*1024", None),
        ("qwen-image-edit-plus-2025-12-15", "auto", None, None),
        ("qwen-image-edit-max", "1024x1024", "1024*1024", None),
        ("wan2.7-image", None, None, None),
    ],
)
def test_every_model_that_edits_takes_what_is_sent(
    model: str,
    asked: str | None,
    sent_size: str | None,
    ignored: str | None,
    gateway: Client,
    simulator: SimulatedDashScope,
) -> None:
    simulator.configure(strict_parameters=True)

    answer = edit(gateway, picture(), model=model, n="2", **({"size": asked} if asked else {}))

    assert answer.status_code == 200, answer.text
    assert {body["parameters"].get("size") for body in sent(simulator)} == {sent_size}
    assert answer.headers.get("x-gateway-ignored") == ignored
    assert sum(body["parameters"]["n"] for body in sent(simulator)) == 2


def test_a_strict_tenant_is_told_that_the_size_cannot_be_had(gateway: Client) -> None:
    answer = edit(gateway, picture(), key=STRICT, model="qwen-image-edit", size="1024x1024")
    refused(answer, "size", "invalid_value")


def test_a_model_that_only_edits_says_so(gateway: Client) -> None:
    message = refused(gateway.generate(model="qwen-image-edit"), "model", "unsupported_model")
    assert "/v1/images/edits" in message


def test_a_slow_upload_is_the_client_s_time(gateway: Client, logs: Logs) -> None:
    """And not the gateway's own, of which there is a metric, and an alert."""
    body = form(
        ('Content-Disposition: form-data; name="image"', picture()),
        ('Content-Disposition: form-data; name="prompt"', b"a hat"),
    )

    def slowly() -> Iterator[bytes]:
        yield body[:100]
        time.sleep(0.5)
        yield body[100:]

    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    assert gateway.ask("POST", EDITS, content=slowly(), headers=headers).status_code == 200

    [line] = logs.named("answered")
    assert line["upload_ms"] >= 490
    assert line["overhead_ms"] <= line["ms"] - 490


def test_who_leaves_an_edit_finds_it_made(
    gateway: Client, simulator: SimulatedDashScope, clock: HeldClock
) -> None:
    """The pictures stay until all calls are sent, whether somebody waits or not."""
    clock.now = time.time()
    simulator.configure(latency_s=0.5)
    with pytest.raises(httpx.ReadTimeout):
        edit(gateway, picture(), n="8", timeout=0.2)
    until(lambda: sum(simulator.state()["paid"].values()) == 8)

    again = edit(gateway, picture(), n="8", headers={"x-stainless-retry-count": "1"})

    assert (again.status_code, again.headers["x-cache"]) == (200, "replayed")
    assert len(sent(simulator)) == 2


def test_an_edit_may_be_streamed(gateway: Client, simulator: SimulatedDashScope) -> None:
    """The pictures are there until all calls are sent, which is after the handler's end."""
    simulator.configure(latency_s=0.2)

    answer = edit(gateway, picture(), n="8", stream="true")

    events = [line for line in answer.text.splitlines() if line.startswith("event: ")]
    assert events == ["event: image_edit.completed"] * 8
    assert len(sent(simulator)) == 2


def test_an_alias_may_lead_edits_to_another_model(
    start: Start, simulator: SimulatedDashScope
) -> None:
    alias = Alias("qwen-image-max", edits="qwen-image-edit-plus")
    gateway = start(config_for(account(simulator.base_url), aliases={"house": alias}))

    made, edited = gateway.generate(model="house"), edit(gateway, picture(), model="house")

    assert made.headers["x-gateway-model"] == "qwen-image-max"
    assert edited.headers["x-gateway-model"] == "qwen-image-edit-plus"


def test_the_same_pictures_are_paid_for_once(
    gateway: Client, simulator: SimulatedDashScope, clock: HeldClock
) -> None:
    """As a form or as JSON, whatever the files are called; another order is another request."""
    clock.now = time.time()  # the vendor's, by which its URLs live
    first, second = picture(seed=1), picture(seed=2)
    one = edit(gateway, first, second, seed="7")
    again = [
        edit(gateway, ("image[0]", ("x.png", first)), ("image[1]", ("y", second)), seed="7"),
        edit_json(gateway, data_url(first), data_url(second, "image/jpeg"), seed=7),
    ]
    other = [edit(gateway, second, first, seed="7"), edit(gateway, first, seed="7")]

    assert one.headers["x-cache"] == "miss"
    assert [each.headers["x-cache"] for each in again] == ["hit", "hit"]
    assert [each.json()["data"] for each in again] == [one.json()["data"]] * 2
    assert [each.headers["x-cache"] for each in other] == ["miss", "miss"]
    assert len(sent(simulator)) == 3


def test_an_idempotency_key_holds_for_the_pictures(
    gateway: Client, simulator: SimulatedDashScope, clock: HeldClock
) -> None:
    clock.now = time.time()
    key = {"idempotency-key": "one"}

    answers = [edit(gateway, picture(seed=index), headers=key).status_code for index in (1, 1, 2)]

    assert answers == [200, 200, 422]
    assert len(sent(simulator)) == 1


def test_eight_images_of_a_picture_are_split_over_calls(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    image = picture()

    answer = edit(gateway, image, n="8", seed="1")

    assert len(answer.json()["data"]) == 8
    calls = sent(simulator)
    assert sorted(call["parameters"]["n"] for call in calls) == [4, 4]
    for call in calls:
        assert opened(call["input"]["messages"][0]["content"][0]["image"])[2] == image


def test_a_refused_call_is_sent_again_with_its_pictures(
    gateway: Client, simulator: SimulatedDashScope, quick_retries: None
) -> None:
    simulator.configure(throttle="off")
    answer = edit(gateway, picture(), prompt="[simulate:Throttling.RateQuota] a hat")

    assert answer.status_code == 429
    bodies = sent(simulator)
    assert len(bodies) > 1
    assert len({json.dumps(body, sort_keys=True) for body in bodies}) == 1


def test_input_pictures_have_their_price(start: Start, simulator: SimulatedDashScope) -> None:
    acme, *_ = tenants()
    poor = replace(acme, limits=Limits(spend_per_month=Money.parse("0.53")))
    gateway = start(config_for(account(simulator.base_url), tenants=(poor,)))

    two = edit(gateway, picture(), picture(seed=1), model="qwen-image-3.0")
    one = edit(gateway, picture(), model="qwen-image-3.0")

    assert (two.status_code, one.status_code) == (429, 200)


def test_a_lenient_tenant_sends_what_it_likes(start: Start, simulator: SimulatedDashScope) -> None:
    acme, *_ = tenants()
    lenient = replace(acme, unknown_parameters="ignore")
    gateway = start(config_for(account(simulator.base_url), tenants=(lenient,)))

    answer = edit(gateway, picture(), ("extra", ("a", bytes(300_000))), batch_size="2", steps="9")

    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 2
    assert answer.headers["x-gateway-ignored"] == "steps, extra"


def test_other_bodies(gateway: Client) -> None:
    def post(body: bytes, kind: str) -> httpx.Response:
        return gateway.ask("POST", EDITS, content=body, headers={"content-type": kind})

    assert post(b"a=1", "application/x-www-form-urlencoded").status_code == 415
    assert post(b"x", "multipart/form-data").json()["error"]["code"] == "invalid_form"
    assert post(b"", "application/json").json()["error"]["code"] == "invalid_json"
    long = form(('Content-Disposition: form-data; name="prompt"', b"x" * 200_000))
    assert post(long, f"multipart/form-data; boundary={BOUNDARY}").status_code == 413
    assert post(b'{"prompt":"' + b"x" * 200_000 + b'"}', "application/json").status_code == 413


def test_an_image_that_the_document_allows_is_found_in_it(gateway: Client) -> None:
    document = gateway.ask("GET", "/openapi.json", key=None).json()

    body = document["paths"][EDITS]["post"]["requestBody"]["content"]
    schemas = document["components"]["schemas"]
    assert set(body) == {"multipart/form-data", "application/json"}
    assert schemas["ImageEditForm"]["required"] == ["prompt", "image"]
    assert schemas["ImageEditRequest"]["required"] == ["prompt", "images"]
    assert schemas["ImageEditRequest"]["properties"]["mask"]["enum"] == [None]
    assert Image.MAX_IMAGE_PIXELS  # nobody has switched Pillow's own guard off

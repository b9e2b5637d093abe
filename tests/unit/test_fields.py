"""The table of fates, row by row, against what OpenAI's SDK and specification let a client send."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest

from gateway.api.body import to_request
from gateway.domain.errors import InvalidRequest
from gateway.protocol.openai import ImageRequest
from gateway.translate.fields import FIELDS, KNOWN, ignored, refuse_unsupported
from gateway.translate.request import to_dashscope
from tests.openai_shapes import SCHEMAS, specification
from tests.running import shipped_catalogue

OWN: Final = {
    *("negative_prompt", "prompt_extend", "prompt_extend_mode", "enable_thinking"),
    *("watermark", "seed"),
}
ROWS: Final = {row.name: row for row in FIELDS}

# A value of each field that OpenAI documents and that is not the default.
VALUES: Final[dict[str, Any]] = {
    "prompt": "a fox",
    "model": "qwen-image-2.0",
    "n": 2,
    "size": "1024x1024",
    "response_format": "b64_json",
    "negative_prompt": "dogs",
    "prompt_extend": False,
    "prompt_extend_mode": "agent",
    "enable_thinking": False,
    "watermark": True,
    "seed": 7,
    "output_format": "webp",
    "background": "transparent",
    "stream": True,
    "partial_images": 2,
    "frame_count": 4,
    "frame_duration_ms": 100,
    "svg": {"model": "x"},
    "quality": "hd",
    "style": "vivid",
    "moderation": "low",
    "complexity": "high",
    "output_compression": 50,
    "user": "jane",
    "safety_identifier": "jane",
}


def of_fate(fate: str) -> list[str]:
    return [row.name for row in FIELDS if row.fate == fate]


def request(**fields: Any) -> ImageRequest:
    return to_request({"prompt": "a fox", **fields}, ImageRequest)


def sent(**fields: Any) -> dict[str, Any]:
    """The one upstream call that a request becomes."""
    catalogue = shipped_catalogue()
    asked = request(**fields)
    choice = catalogue.find(asked.model or "qwen-image-2.0")
    assert choice is not None
    [call] = to_dashscope(asked, choice, "nearest").calls
    found: dict[str, Any] = msgspec.to_builtins(call)
    return found


def test_every_field_of_the_specification_has_a_row() -> None:
    documented = specification()["components"]["schemas"]["CreateImageRequest"]["properties"]

    assert set(documented) <= KNOWN


def test_every_field_of_the_sdk_has_a_row() -> None:
    text = (SCHEMAS / "openai-images-sdk-schemas.json").read_text()
    schema = json.loads(text)["schemas"]["ImageGenerateParamsNonStreaming"]

    assert set(schema["properties"]) | OWN == KNOWN


def test_rows_and_request_have_the_same_fields() -> None:
    assert [row.name for row in FIELDS] == list(dict.fromkeys(row.name for row in FIELDS))
    assert set(ImageRequest.__struct_fields__) == set(KNOWN) == set(VALUES)


def test_every_refusal_says_what_to_do() -> None:
    for row in FIELDS:
        limited = row.fate == "refused" or (row.fate == "honoured" and bool(row.taken))
        assert bool(row.refusal) is limited
        assert row.refusal == "" or "out." in row.refusal or f"Send '{row.name}'" in row.refusal


def test_every_row_says_what_happens() -> None:
    assert all(row.what for row in FIELDS)
    assert {row.fate for row in FIELDS} == {"honoured", "mapped", "accepted", "refused"}


@pytest.mark.parametrize("name", of_fate("refused"))
def test_a_refused_field_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        refuse_unsupported(request(**{name: VALUES[name]}))

    assert caught.value.param == name
    assert caught.value.code == "unsupported_value"
    assert name in caught.value.message


@pytest.mark.parametrize("name", of_fate("refused"))
def test_a_refused_field_may_say_what_is_so_anyway(name: str) -> None:
    """`output_format: png`: SDK wrappers send defaults."""
    for value in (None, *ROWS[name].taken):
        refuse_unsupported(request(**{name: value}))
        assert ignored(request(**{name: value}), quality_counts=False) == ()


@pytest.mark.parametrize("wanted", ["gif", "svg"])
def test_formats_that_cannot_be_made(wanted: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        refuse_unsupported(request(output_format=wanted))

    assert (caught.value.param, caught.value.code) == ("output_format", "unsupported_value")


@pytest.mark.parametrize("name", [*of_fate("accepted"), "quality"])
def test_an_accepted_field_is_named_and_not_sent(name: str) -> None:
    assert ignored(request(**{name: VALUES[name]}), quality_counts=False) == (name,)
    assert sent(**{name: VALUES[name]}) == sent()


@pytest.mark.parametrize("name", of_fate("accepted"))
def test_an_accepted_field_that_is_null_is_not_named(name: str) -> None:
    assert ignored(request(**{name: None}), quality_counts=False) == ()


SENT: Final[dict[str, Any]] = {
    "n": ("n", 2),
    "size": ("size", "1024*1024"),
    "negative_prompt": ("negative_prompt", "dogs"),
    "prompt_extend": ("prompt_extend", False),
    "prompt_extend_mode": ("prompt_extend_mode", "agent"),
    "enable_thinking": ("enable_thinking", False),
    "watermark": ("watermark", True),
    "seed": ("seed", 7),
}


@pytest.mark.parametrize("name", SENT)
def test_an_honoured_parameter_reaches_the_vendor(name: str) -> None:
    key, value = SENT[name]

    of_all = {"model": "qwen-image-3.0"}  # the family that has every parameter
    assert sent(**of_all, **{name: VALUES[name]})["parameters"][key] == value
    assert sent(**of_all)["parameters"].get(key) != value


def test_the_rest_of_the_honoured_and_mapped_fields() -> None:
    """What goes to the vendor, and what is the gateway's own business."""
    assert {*of_fate("honoured"), *of_fate("mapped")} == {
        *SENT, "prompt", "model", "quality", "stream",
        "response_format", "output_format", "output_compression",
    }  # fmt: skip
    body = sent(prompt="a hen", model="gpt-image-1")
    assert body["input"]["messages"][0]["content"] == ({"text": "a hen"},)
    assert body["model"] == "qwen-image-2.0-pro"
    choice = shipped_catalogue().find("qwen-image")
    assert choice is not None
    plan = to_dashscope(request(response_format="b64_json"), choice, "nearest")
    assert plan.response_format == "b64_json"


def test_what_streams_is_base64() -> None:
    """Also where the alias, or the tenant, would have URLs."""
    choice = shipped_catalogue().find("dall-e-3")
    assert choice is not None
    assert to_dashscope(request(), choice, "nearest").response_format == "url"
    assert to_dashscope(request(stream=True), choice, "nearest").response_format == "b64_json"
    with pytest.raises(InvalidRequest) as caught:
        to_dashscope(request(stream=True, response_format="url"), choice, "nearest")
    assert caught.value.param == "response_format"


def test_no_partial_images_are_none_ignored() -> None:
    assert ignored(request(stream=True, partial_images=0), quality_counts=False) == ()


@pytest.mark.parametrize("name", [name for name in VALUES if name != "prompt"])
def test_null_is_the_same_as_absent(name: str) -> None:
    assert request(**{name: None}) == request()

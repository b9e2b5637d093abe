"""The vendor's answer becomes OpenAI's."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.catalogue import Size
from gateway.domain.png import png_size
from gateway.protocol.dashscope import GenerationReply
from gateway.protocol.openai import Image
from gateway.translate.response import image_urls, to_openai

START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def reply(*choices: list[Any]) -> GenerationReply:
    body = {"output": {"choices": [{"message": {"content": content}} for content in choices]}}
    return msgspec.json.decode(msgspec.json.encode(body), type=GenerationReply)


def image(name: str) -> dict[str, str]:
    return {"image": f"https://x/{name}.png"}


@pytest.mark.parametrize(
    "found",
    [
        reply([image("a"), image("b"), image("c")]),
        reply([image("a")], [image("b")], [image("c")]),
        reply([image("a"), image("b")], [image("c")]),
        reply(
            [{"text": "Here:"}, image("a")],
            [],
            [image("b"), {"reasoning_content": "…"}, image("c")],
        ),
        reply([{"type": "image", **image("a")}, image("b")], [image("c")]),
    ],
)
def test_images_are_found_in_order_however_they_are_spread(found: GenerationReply) -> None:
    """Documents show one choice of N items and N choices of one."""
    assert image_urls(found) == [f"https://x/{name}.png" for name in "abc"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"output": None},
        {"output": {}},
        {"output": {"choices": None}},
        {"output": {"choices": []}},
        {"output": {"choices": [{}]}},
        {"output": {"choices": [{"message": None}]}},
        {"output": {"choices": [{"message": {"content": None}}]}},
        {"output": {"choices": [{"message": {"content": []}}]}},
        {"output": {"choices": [{"message": {"content": [{"image": None}]}}]}},
        {"output": {"choices": [{"message": {"content": [{"image": ""}]}}]}},
        {"output": {"choices": [{"message": {"content": [{"text": "no"}]}}]}},
    ],
)
def test_an_answer_without_images_has_none(body: Any) -> None:
    assert image_urls(msgspec.convert(body, GenerationReply)) == []


@given(width=st.integers(0, 2**32 - 1), height=st.integers(0, 2**32 - 1))
def test_the_size_is_the_picture_s_own(width: int, height: int) -> None:
    """Not what `usage` says, which the vendor's own examples get wrong."""
    assert png_size(START + struct.pack(">II", width, height) + b"rest") == Size(width, height)


@pytest.mark.parametrize(
    "start",
    [b"", START, START + b"\0" * 7, b"GIF89a" + b"\0" * 40, b"<html>" + b" " * 40, START[:8] * 4,
     b"\xff\xd8\xff" + b"\0" * 40],
)  # fmt: skip
def test_what_is_no_png_has_no_size(start: bytes) -> None:
    assert png_size(start) is None


@pytest.mark.parametrize("text", ["1024x1024", "1024x1536", "1536x1024"])
def test_a_published_size_is_told(text: str) -> None:
    answer = to_openai([Image(url="u")], created=7, size=Size.parse(text))

    assert msgspec.to_builtins(answer) == {
        "created": 7,
        "data": [{"url": "u"}],
        "background": "opaque",
        "output_format": "png",
        "size": text,
    }


@pytest.mark.parametrize("size", [None, Size(1328, 1328), Size(2048, 2048)])
def test_another_size_is_left_out(size: Size | None) -> None:
    """A strict client of the published schema would reject the whole answer for it."""
    answer = to_openai([Image(b64_json="aGk=")], created=7, size=size)

    assert "size" not in msgspec.to_builtins(answer)
    assert b"null" not in msgspec.json.encode(answer)

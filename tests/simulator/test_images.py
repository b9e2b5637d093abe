from __future__ import annotations

import struct
import time
from io import BytesIO

import pytest
from msgspec.structs import replace
from PIL import Image

from gateway.simulator.images import PADDING_CHUNK, Picture, fit, paint, paint_plain, printable

PICTURE = Picture(
    model="qwen-image-2.0-pro",
    prompt="A cat reading a newspaper in the garden",
    negative_prompt="",
    seed=7,
    index=0,
    width=640,
    height=480,
)
PAINTERS = [paint, paint_plain]


def opened(png: bytes) -> Image.Image:
    """Decoded to the last byte, so that a broken chunk is noticed."""
    Image.open(BytesIO(png)).verify()
    image = Image.open(BytesIO(png))
    image.load()
    return image


@pytest.mark.parametrize("painter", PAINTERS)
@pytest.mark.parametrize("size", [(512, 512), (1664, 928), (928, 1664), (1033, 1032), (4096, 512)])
def test_an_image_has_exactly_the_size_asked(painter: object, size: tuple[int, int]) -> None:
    """By Pillow and by its first bytes alike."""
    assert callable(painter)
    png = painter(replace(PICTURE, width=size[0], height=size[1]))
    assert opened(png).size == size
    assert struct.unpack(">II", png[16:24]) == size


@pytest.mark.parametrize("painter", PAINTERS)
@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"index": 1},
        {"prompt": "a dog"},
        {"model": "qwen-image-max"},
        {"negative_prompt": "dogs"},
        {"inputs": "ab12"},
        {"width": 641},
    ],
)
def test_whatever_differs_in_the_request_differs_in_the_image(
    painter: object, change: dict[str, object]
) -> None:
    """And nothing else does: the same request gives the same bytes."""
    assert callable(painter)
    assert painter(PICTURE) == painter(replace(PICTURE))
    other = painter(replace(PICTURE, **change))
    assert opened(other).convert("RGB").tobytes() != opened(painter(PICTURE)).convert("RGB")
    assert other != painter(PICTURE)


def test_the_prompt_is_written_on_the_image() -> None:
    """There is ink where an image without a prompt has none."""
    ink = (20, 20, 30)
    upper = (0, 0, 640, 360)
    written = opened(paint(PICTURE)).convert("RGB").crop(upper)
    blank = opened(paint(replace(PICTURE, prompt=" "))).convert("RGB").crop(upper)
    counts = [sum(n for n, c in i.getcolors(1 << 20) or [] if c == ink) for i in (written, blank)]
    assert counts[0] > 1000
    assert counts[1] == 0


def test_a_watermark_shows() -> None:
    """In the bottom right corner."""
    corner = (480, 400, 640, 480)
    plain = opened(paint(PICTURE)).convert("RGB").crop(corner)
    marked = opened(paint(replace(PICTURE, watermark=True))).convert("RGB").crop(corner)
    assert plain.tobytes() != marked.tobytes()


@pytest.mark.parametrize(
    "prompt",
    [
        "一只戴着红围巾的小猫",
        "👩‍👩‍👧 🏳️‍🌈 \N{COMBINING ACUTE ACCENT}" * 50,
        "مرحبا بالعالم",
        "\x00\x07\x1b[31m\u202e\ufeff",
        "\ud800 lone",
        "a" * 10_000,
        "line\nline\r\n\ttab",
        " ",
    ],
)
@pytest.mark.parametrize("painter", PAINTERS)
def test_any_text_can_be_painted(painter: object, prompt: str) -> None:
    """Boxes for what the font lacks, but never a crash."""
    assert callable(painter)
    assert opened(painter(replace(PICTURE, prompt=prompt))).size == (640, 480)


@pytest.mark.parametrize("painter", PAINTERS)
def test_the_request_can_be_read_back_from_the_file(painter: object) -> None:
    """In text chunks, whole and in any script."""
    assert callable(painter)
    image = opened(painter(replace(PICTURE, prompt="一只猫")))
    assert image.info["prompt"] == "一只猫"
    assert image.info["model"] == "qwen-image-2.0-pro"
    assert (image.info["seed"], image.info["index"]) == ("7", "0")


@pytest.mark.parametrize("painter", PAINTERS)
def test_an_image_can_be_padded_to_a_weight(painter: object) -> None:
    """With noise in a private chunk, so that it is still a PNG and does not compress away."""
    assert callable(painter)
    png = painter(PICTURE, 1_000_000)
    assert len(png) == 1_000_000
    assert PADDING_CHUNK in png
    assert opened(png).size == (640, 480)


def test_a_large_image_is_painted_quickly() -> None:
    """A 2048x2048 in under 120 ms of processor time, the best of three on a busy machine."""
    large = replace(PICTURE, width=2048, height=2048)
    paint(large)
    took = []
    for seed in range(3):
        started = time.thread_time()
        paint(replace(large, seed=seed))
        took.append(time.thread_time() - started)
    assert min(took) < 0.12


def test_long_text_gets_a_smaller_font() -> None:
    """Until it fits, or is as small as can be read."""
    assert fit("a cat", 600, 400)[0] > fit("a cat " * 40, 600, 400)[0] > 12
    assert fit("a cat " * 4000, 600, 400)[0] == 12


def test_text_is_made_drawable() -> None:
    """White space becomes one space, control characters boxes."""
    assert printable("a\n\tb\x00c") == "a b\N{WHITE SQUARE}c"

from __future__ import annotations

import pytest

from tests.simulator.reading import PIXEL, TEXT, content_of, picture, read, refusal


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (
            "qwen-image-plus",
            "1024*1024",
            (
                "The size does not match the allowed size"
                " 1664*928,1472*1104,1328*1328,1104*1472,928*1664."
            ),
        ),
        (
            "qwen-image-2.0-pro",
            "256*256",
            (
                "Image area must be between 262144 and 4194304 pixels."
                " Got area=65536 (width=256, height=256)."
            ),
        ),
        (
            "qwen-image-max",
            "2048*2049",
            (
                "Image area must be between 262144 and 4194304 pixels."
                " Got area=4196352 (width=2048, height=2049)."
            ),
        ),
        (
            "qwen-image-3.0",
            "4608*512",
            "Image aspect ratio must be between 1:8 and 8:1. Got width=4608, height=512.",
        ),
        (
            "qwen-image-3.0",
            "1K",
            "size must be in the format of width*height, got 1K",
        ),
        (
            "qwen-image-2.0",
            "1024x1024",
            "size must be in the format of width*height, got 1024x1024",
        ),
        (
            "qwen-image-2.0",
            "0*1024",
            "size must be in the format of width*height, got 0*1024",
        ),
        (
            "wan2.6-t2i",
            "1024*1024",
            (
                "Image area must be between 1638400 and 2073600 pixels."
                " Got area=1048576 (width=1024, height=1024)."
            ),
        ),
    ],
)
def test_a_size_the_model_does_not_make_is_refused(model: str, size: str, message: str) -> None:
    """With the numbers, as the vendor does."""
    call = {"model": model, "parameters": {"size": size}}
    assert refusal(**call) == (400, "InvalidParameter", message)


def test_edit_plus_limits_each_side() -> None:
    """512 to 2048, which an area rule would not say."""
    call = {
        "model": "qwen-image-edit-plus",
        "given": content_of(PIXEL, TEXT),
        "parameters": {"size": "4096*512"},
    }
    message = "width and height must be between 512 and 2048. Got width=4096, height=512."
    assert refusal(**call)[2] == message


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("qwen-image-3.0-pro", (2048, 2048)),
        ("qwen-image-2.0-pro-2026-06-22", (2048, 2048)),
        ("qwen-image-max-2025-12-30", (1664, 928)),
        ("qwen-image-plus-2026-01-09", (1664, 928)),
        ("qwen-image", (1664, 928)),
        ("z-image-turbo", (1024, 1536)),
        ("wan2.6-t2i", (1280, 1280)),
        ("wan2.7-image-pro", (2048, 2048)),
    ],
)
def test_each_model_has_its_default_size(model: str, size: tuple[int, int]) -> None:
    """Used when the call names none."""
    generation = read(model)
    assert (generation.width, generation.height) == size


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("qwen-image-2.0", (900, 600)),
        ("qwen-image-edit", (900, 600)),
        ("qwen-image-edit-plus", (1248, 832)),
    ],
)
def test_an_edit_follows_the_shape_of_the_last_image(model: str, size: tuple[int, int]) -> None:
    """Exactly, or at about a megapixel in multiples of 16, by model."""
    images = [{"image": picture(64, 64)}, {"image": picture(900, 600)}]
    generation = read(model, content_of(*images, TEXT))
    assert (generation.width, generation.height) == size


def test_qwen_image_edit_keeps_the_size_of_its_input_whatever_is_asked() -> None:
    """It does not support `size`."""
    given = content_of({"image": picture(900, 600)}, TEXT)
    generation = read("qwen-image-edit", given, {"size": "1024*1024"})
    assert (generation.width, generation.height) == (900, 600)


def test_size_keywords_are_known_to_wan_alone() -> None:
    """4K to the pro model only."""
    assert read("wan2.7-image-pro", parameters={"size": "4K"}).width == 4096
    assert refusal(model="wan2.7-image", parameters={"size": "4K"})[2].endswith("got 4K")

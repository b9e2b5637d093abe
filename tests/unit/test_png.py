"""Finding the end of a PNG that passes by in blocks."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.catalogue import Size
from gateway.domain.png import PNG_END, PngEnd, is_whole_png, largest_png
from tests.image_host import png

IMAGE = png(500)


def blocks(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


@given(cuts=st.lists(st.integers(0, 700)), more=st.binary(max_size=100))
def test_the_end_is_found_wherever_the_blocks_end(cuts: list[int], more: bytes) -> None:
    """What stands behind it makes no difference."""
    end = PngEnd()
    for block in blocks(IMAGE + more, cuts):
        end.feed(block)
    assert end.is_reached


@pytest.mark.slow
@given(length=st.integers(0, len(IMAGE) - 1), cuts=st.lists(st.integers(0, 500)))
def test_a_part_has_no_end(length: int, cuts: list[int]) -> None:
    end = PngEnd()
    for block in blocks(IMAGE[:length], cuts):
        end.feed(block)
    assert not end.is_reached


@pytest.mark.parametrize(
    "data",
    [
        IMAGE[:-1] + b"x",
        IMAGE[: -len(PNG_END)] + b"\0\0\0\1IENDx\0\0\0\0",
        IMAGE[:33] + b"\0\0\1\0tEXt" + PNG_END,  # inside a chunk it is data
        b"x" * 200 + PNG_END,
    ],
)
def test_what_only_looks_like_an_end(data: bytes) -> None:
    assert not is_whole_png(data)


def test_the_largest_png_of_a_size() -> None:
    """A picture of noise, with alpha, in chunks as small as encoders write them."""
    raw = 1024 * (1024 * 4 + 1)
    assert raw + raw // 8192 * 12 < largest_png(Size(1024, 1024)) < raw * 1.01

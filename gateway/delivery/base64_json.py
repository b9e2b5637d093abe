"""The JSON around the images, from the usual encoder with placeholders, and base64 in pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from pybase64 import b64encode

from gateway.domain.catalogue import Size
from gateway.protocol.openai import Image, ImageCompleted, ImagesResponse

PLACEHOLDER = "|"
"""In no base64, and in no other value of the answer."""

Frame = tuple[bytes, bytes]
"""What is sent before an image, and what closes it."""
Framing = Callable[[Sequence[Size | None]], list[Frame]]
"""Makes the frames of images of these sizes."""


def in_one_answer(describe: Callable[[list[Image], Size | None], ImagesResponse]) -> Framing:
    """All images in one answer, with their common size."""

    def frames(sizes: Sequence[Size | None]) -> list[Frame]:
        shared = sizes[0] if len(set(sizes)) == 1 else None
        images = [Image(b64_json=PLACEHOLDER)] * len(sizes)
        *before, last, end = split(msgspec.json.encode(describe(images, shared)), len(sizes))
        return [*((text, b"") for text in before), (last, end)]

    return frames


def in_events(describe: Callable[[str, Size | None], ImageCompleted]) -> Framing:
    """Each image in an event of its own."""

    def frame(size: Size | None) -> Frame:
        event = describe(PLACEHOLDER, size)
        before, after = split(msgspec.json.encode(event), 1)
        return b"event: %b\ndata: %b" % (event.type.encode(), before), after + b"\n\n"

    return lambda sizes: [frame(size) for size in sizes]


def split(text: bytes, images: int) -> list[bytes]:
    """The JSON before, between and after the placeholders."""
    pieces = text.split(PLACEHOLDER.encode())
    if len(pieces) != images + 1:
        raise ValueError("the answer holds the placeholder elsewhere too")
    return pieces


def base64_length(length: int) -> int:
    return (length + 2) // 3 * 4


class Base64Writer:
    """Encodes one image in pieces whose concatenation is the base64 of the whole."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, block: bytes | memoryview) -> bytes:
        """Up to two bytes wait for the next block."""
        if self._rest:
            block = self._rest + block
        end = len(block) - len(block) % 3
        view = memoryview(block)
        self._rest = bytes(view[end:])
        return b64encode(view[:end])

    def end(self) -> bytes:
        """The waiting bytes, padded."""
        return b64encode(self._rest)

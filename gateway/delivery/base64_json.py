"""The JSON around the images, and base64 in pieces.

The encoder that writes every other answer writes this one too, with a placeholder for each image:
what stands between the placeholders is sent as it is.
"""

from __future__ import annotations

import msgspec
from pybase64 import b64encode

from gateway.protocol.openai import Image, ImagesResponse

PLACEHOLDER = "|"
"""In no base64, and in no other value of the answer."""


def placeholder_images(count: int) -> list[Image]:
    """Stand-ins for the images of an answer."""
    return [Image(b64_json=PLACEHOLDER)] * count


def split_answer(answer: ImagesResponse) -> list[bytes]:
    """The JSON before, between and after the images of an answer made of `placeholder_images`."""
    text = msgspec.json.encode(answer)
    pieces = text.split(PLACEHOLDER.encode())
    if len(pieces) != len(answer.data) + 1:
        raise ValueError("the answer holds the placeholder elsewhere too")
    return pieces


def base64_length(length: int) -> int:
    """How long so many bytes become."""
    return (length + 2) // 3 * 4


class Base64Writer:
    """Encodes one image in pieces whose concatenation is the base64 of the whole."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, block: bytes | memoryview) -> bytes:
        """As much as can be encoded; up to two bytes wait for the next block."""
        if self._rest:
            block = self._rest + block
        end = len(block) - len(block) % 3
        view = memoryview(block)
        self._rest = bytes(view[end:])
        return b64encode(view[:end])

    def end(self) -> bytes:
        """What waited, padded."""
        return b64encode(self._rest)

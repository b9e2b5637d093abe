"""The body of a call, with the pictures of an edit put in while it is sent.

    {"model": "…", "input": {"messages": [{"role": "user", "content":
        [{"image": "sha256:9f86…"}, {"text": "a hat"}]}]}, …}

leaves as the same with `"image": "data:image/png;base64,…"`. No picture is ever whole in memory:
its blocks become base64 as the connection takes them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

import pybase64

from gateway.domain.pictures import Picture

REFERENCE: Final = re.compile(rb'"image":"(sha256:[0-9a-f]{64})"')
"""In JSON it can stand in no text, in which each quote would have a backslash before it."""
BLOCK: Final = 192 * 1024
"""Bytes of a picture; three of them are four of base64."""

Piece = bytes | Picture


def pieces(body: bytes, stored: Mapping[str, Picture]) -> list[Piece]:
    """What is sent, in its order."""
    found: list[Piece] = []
    at = 0
    for reference in REFERENCE.finditer(body):
        picture = stored[reference[1].decode()]
        found += [body[at : reference.start(1)] + picture.data_uri_start, picture]
        at = reference.end(1)
    return [*found, body[at:]]


def length(sent: Sequence[Piece]) -> int:
    """How many bytes that is."""
    return sum(
        len(piece) if isinstance(piece, bytes) else piece.data_uri_bytes - len(piece.data_uri_start)
        for piece in sent
    )


async def stream(sent: Sequence[Piece]) -> AsyncIterator[bytes]:
    """All of it in blocks."""
    for piece in sent:
        if isinstance(piece, bytes):
            yield piece
        else:
            async for block in piece.stored.blocks(BLOCK):
                yield pybase64.b64encode(block)

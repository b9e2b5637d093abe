"""The body of a call, with the pictures of an edit put in while it is sent.

`"image": "sha256:9f86…"` becomes `"image": "data:image/png;base64,…"`, block by block: no picture
is ever whole in memory.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

import pybase64

from gateway.domain.pictures import Picture

REFERENCE: Final = re.compile(rb'"image":"(sha256:[0-9a-f]{64})"')
"""Text cannot contain it: JSON puts a backslash before each quote."""
BLOCK: Final = 192 * 1024
"""Bytes of a picture; three of them are four of base64."""

Piece = bytes | Picture


def pieces(body: bytes, stored: Mapping[str, Picture]) -> list[Piece]:
    found: list[Piece] = []
    at = 0
    for reference in REFERENCE.finditer(body):
        picture = stored[reference[1].decode()]
        found += [body[at : reference.start(1)] + picture.data_uri_start, picture]
        at = reference.end(1)
    return [*found, body[at:]]


def length(sent: Sequence[Piece]) -> int:
    return sum(
        len(piece) if isinstance(piece, bytes) else piece.data_uri_bytes - len(piece.data_uri_start)
        for piece in sent
    )


async def stream(sent: Sequence[Piece]) -> AsyncIterator[bytes]:
    for piece in sent:
        if isinstance(piece, bytes):
            yield piece
        else:
            async for block in piece.stored.blocks(BLOCK):
                yield pybase64.b64encode(block)

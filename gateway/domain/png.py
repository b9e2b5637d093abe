"""What a PNG says of itself while it passes by: its size, and where it ends.

A chunk is length (4 bytes), type (4), data and checksum (4): PNG specification, 5.3. Bytes after
IEND are allowed: provenance marks stand there.
"""

from __future__ import annotations

import struct

from gateway.domain.catalogue import Size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_START = SIGNATURE + b"\0\0\0\rIHDR"
PNG_HEADER_BYTES = len(PNG_START) + 8
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
SMALLEST_PNG = PNG_HEADER_BYTES + len(PNG_END)
END_HEAD = PNG_END[:8]
CHUNK_HEAD = 8
CHECKSUM = 4
MOST_PIXEL_BYTES = 4
"""Red, green, blue and alpha, of eight bits each: what image models make."""


def png_size(start: bytes) -> Size | None:
    """From the first 24 bytes, None if not a PNG's; the vendor's `usage` may be wrong."""
    if len(start) < PNG_HEADER_BYTES or not start.startswith(PNG_START):
        return None
    return Size(*struct.unpack_from(">II", start, len(PNG_START)))


def largest_png(size: Size) -> int:
    """Bytes of a PNG of noise, which no encoder can make smaller, and half a percent for chunks."""
    raw = size.height * (1 + size.width * MOST_PIXEL_BYTES)
    return raw + raw // 200 + SMALLEST_PNG


class PngEnd:
    """Follows a PNG from its first byte, chunk by chunk; `is_reached` says whether it ended."""

    __slots__ = ("_head", "_skip", "is_reached")

    def __init__(self) -> None:
        self._head = b""
        self._skip = len(SIGNATURE)
        self.is_reached = False

    def feed(self, block: bytes | memoryview) -> None:
        at, length = 0, len(block)
        while not self.is_reached:
            if self._skip >= length - at:
                self._skip -= length - at
                return
            at += self._skip
            self._skip = 0
            at = self._read_head(block, at)

    def _read_head(self, block: bytes | memoryview, at: int) -> int:
        """Collect the start of a chunk; returns how far it came."""
        wanted = len(PNG_END) if self._head.startswith(END_HEAD) else CHUNK_HEAD
        part = bytes(block[at : at + wanted - len(self._head)])
        self._head += part
        if len(self._head) == len(PNG_END):
            self.is_reached = self._head == PNG_END
            self._head = b""
        elif len(self._head) == CHUNK_HEAD and self._head != END_HEAD:
            self._skip = int.from_bytes(self._head[:4], "big") + CHECKSUM
            self._head = b""
        return at + len(part)


def is_whole_png(image: bytes) -> bool:
    end = PngEnd()
    end.feed(image)
    return png_size(image[:PNG_HEADER_BYTES]) is not None and end.is_reached

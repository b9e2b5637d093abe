"""The pictures themselves: real PNGs of exactly the size asked, painted from the request.

A picture depends on its `Picture` value alone, so the same seed gives the same bytes.
"""

from __future__ import annotations

import hashlib
import random
import struct
import textwrap
import zlib
from functools import lru_cache
from io import BytesIO

from msgspec import Struct
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PADDING_CHUNK = b"siMp"
"""Ancillary, private, safe to copy: what PNG lets a tool of its own put in a file."""

SHOWN_CHARS = 1200
SHADES = 254
"""Palette entries of the background; the last two are the ink and its paper."""
_PAPER, _INK = SHADES, SHADES + 1
_WATERMARK = "Qwen-Image"


class Picture(Struct, frozen=True, kw_only=True):
    """Everything a picture depends on. Sizes in pixels; `index` counts from 0 within a call."""

    model: str
    prompt: str
    negative_prompt: str
    seed: int
    index: int
    width: int
    height: int
    inputs: str = ""
    watermark: bool = False

    def fingerprint(self) -> bytes:
        """32 bytes that differ whenever anything above does."""
        parts = [repr(getattr(self, name)) for name in self.__struct_fields__]
        return hashlib.sha256("\n".join(parts).encode("utf-8", "backslashreplace")).digest()


def paint(picture: Picture, min_bytes: int = 0) -> bytes:
    """A PNG that shows the prompt, the model, the seed and the index, at least `min_bytes` long.

    Pillow's own font has Latin letters; others show as boxes, but the `prompt` text chunk has them.
    """
    image = _background(picture)
    draw = ImageDraw.Draw(image)
    draw.fontmode = "1"
    _write_prompt(draw, picture)
    _write_caption(draw, picture)
    packed = BytesIO()
    image.save(packed, "PNG", compress_level=1)
    return _with_chunks(packed.getvalue(), picture, min_bytes)


def paint_plain(picture: Picture, min_bytes: int = 0) -> bytes:
    """A PNG of one colour, some hundred times cheaper; otherwise as `paint`."""
    head = struct.pack(">IIBBBBB", picture.width, picture.height, 1, 3, 0, 0, 0)
    colour = picture.fingerprint()[:3]
    png = b"".join(
        (
            SIGNATURE,
            _chunk(b"IHDR", head),
            _chunk(b"PLTE", colour + b"\xff\xff\xff"),
            _empty_pixels(picture.width, picture.height),
            _chunk(b"IEND", b""),
        )
    )
    return _with_chunks(png, picture, min_bytes)


def _background(picture: Picture) -> Image.Image:
    light, dark = _colours(picture.fingerprint())
    size = (picture.width, picture.height)
    shades = Image.linear_gradient("L").resize(size, Image.Resampling.NEAREST)
    # Shades above the last background entry would be ink.
    image = shades.point([min(value, SHADES - 1) for value in range(256)])
    image.putpalette(_palette(light, dark))
    return image


def _colours(fingerprint: bytes) -> tuple[bytes, bytes]:
    light = bytes(176 + value % 72 for value in fingerprint[:3])
    dark = bytes(96 + value % 72 for value in fingerprint[3:6])
    return light, dark


def _palette(light: bytes, dark: bytes) -> bytes:
    ramp = (
        start + (end - start) * step // SHADES
        for step in range(SHADES)
        for start, end in zip(light, dark, strict=True)
    )
    return bytes(ramp) + b"\xff\xff\xff" + b"\x14\x14\x1e"


def _write_prompt(draw: ImageDraw.ImageDraw, picture: Picture) -> None:
    text = printable(picture.prompt)[:SHOWN_CHARS]
    margin = max(8, picture.width // 24)
    room = (picture.width - 2 * margin, picture.height * 3 // 4 - margin)
    font_size, wrapped = fit(text, *room)
    draw.multiline_text((margin, margin), wrapped, fill=_INK, font=_font(font_size), spacing=4)


def _write_caption(draw: ImageDraw.ImageDraw, picture: Picture) -> None:
    size = max(10, min(picture.width // 40, picture.height // 24))
    top = picture.height - 2 * size - 4
    draw.rectangle((0, top, picture.width, picture.height), fill=_PAPER)
    caption = f"{picture.model}  seed {picture.seed}  image {picture.index + 1}"
    draw.text((size, top + size // 2), caption, fill=_INK, font=_font(size))
    if picture.watermark:
        place = (picture.width - size, top + size // 2)
        draw.text(place, _WATERMARK, fill=_INK, font=_font(size), anchor="ra")


def printable(text: str) -> str:
    """The text on one line, with a box for what cannot be drawn."""
    spaced = " ".join(text.split())
    return "".join(c if c.isprintable() else "\N{WHITE SQUARE}" for c in spaced)


def fit(text: str, width: int, height: int) -> tuple[int, str]:
    """The largest font size in pixels at which the text, wrapped, fits; and the wrapped text.

    Widths are judged by an average letter, which is close enough for a picture of a prompt.
    """
    size = max(12, min(width // 8, height // 4))
    while True:
        lines = textwrap.wrap(text, max(1, int(width / (size * 0.62))))
        if size <= 12 or len(lines) * (size * 1.25 + 4) <= height:
            return size, "\n".join(lines)
        size = size * 7 // 8


@lru_cache(maxsize=64)
def _font(size: int) -> FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@lru_cache(maxsize=64)
def _empty_pixels(width: int, height: int) -> bytes:
    row = 1 + (width + 7) // 8
    return _chunk(b"IDAT", zlib.compress(bytes(row * height), 1))


def _with_chunks(png: bytes, picture: Picture, min_bytes: int) -> bytes:
    """Adds the text chunks, then noise up to `min_bytes`, before the final IEND chunk."""
    end = len(png) - 12
    texts = b"".join(_text_chunk(name, value) for name, value in _texts(picture))
    missing = min_bytes - len(png) - len(texts) - 12
    padding = _padding(missing) if missing > 0 else b""
    return b"".join((png[:end], texts, padding, png[end:]))


def _texts(picture: Picture) -> list[tuple[str, str]]:
    names = ("model", "prompt", "negative_prompt", "seed", "index")
    return [(name, str(getattr(picture, name))) for name in names]


def _text_chunk(name: str, value: str) -> bytes:
    text = value.encode("utf-8", "replace")
    return _chunk(b"iTXt", name.encode() + b"\0\0\0\0\0" + text)


@lru_cache(maxsize=4)
def _padding(size: int) -> bytes:
    return _chunk(PADDING_CHUNK, random.Random(size).randbytes(size))


def _chunk(name: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(name))
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

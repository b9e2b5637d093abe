"""What an uploaded picture is, by its bytes alone; and the same picture as models read it.

Nothing that a client says of a picture is believed. It is decoded once, so that what is damaged is
refused before anything is paid. Some are written anew: those that a program must turn by their EXIF
data, those of several pictures of which one is meant (MPO), and those too large for a data URI.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from io import BytesIO
from typing import Final

from msgspec import Struct
from PIL import Image, ImageOps

from gateway.domain.pictures import MAX_DATA_URI_BYTES, base64_bytes
from gateway.domain.png import is_whole_png
from gateway.uploads.spool import read

ORIENTATION: Final = 0x0112
"""EXIF's tag; 1 is upright."""
TURNED: Final = range(2, 9)
FORMATS: Final = ("PNG", "JPEG", "WEBP")
"""A file of several pictures (MPO) begins as a JPEG."""
MODES: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I", "I;16"})
"""Pillow's names of grey, of palettes and of red, green and blue."""
DEEP: Final = frozenset({"I", "I;16"})
"""Grey of 16 bits, which is sent as it is or not at all."""
WORKING_PIXELS: Final = 16_777_216
"""A JPEG that must be written anew is read at half its size, or less, until it has no more."""
MODELS_PIXELS: Final = 2048 * 2048
"""No model of the vendor's makes larger images of an edit."""
QUALITY: Final = 95
ROOM_FOR_TYPE: Final = 64
MOST_BYTES: Final = (MAX_DATA_URI_BYTES - ROOM_FOR_TYPE) // 4 * 3
SIGNATURES: Final[tuple[tuple[str, Callable[[bytes], bool]], ...]] = (
    ("image/png", lambda start: start.startswith(b"\x89PNG\r\n\x1a\n")),
    ("image/jpeg", lambda start: start.startswith(b"\xff\xd8\xff")),
    ("image/webp", lambda start: start[:4] == b"RIFF" and start[8:12] == b"WEBP"),
)


class Unfit(Exception):
    """A picture that is refused: what it is, or has."""


class Examined(Struct, frozen=True):
    """`rewritten` takes the place of what came."""

    mime: str
    rewritten: bytes | None = None


def examine(descriptor: int, size: int, offset: int, max_pixels: int) -> Examined:
    """Look at a picture in a file.

    Raises:
        Unfit: no model could read it as its sender meant it.
    """
    data = read(descriptor, size, offset)
    mime = next((mime for mime, is_one in SIGNATURES if is_one(data[:16])), None)
    if mime is None:
        raise Unfit("is no PNG, JPEG or WebP image")
    try:
        return examined(data, mime, max_pixels)
    except Unfit:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unfit(f"has more than {max_pixels} pixels") from None
    except Exception as fault:  # a decoder may raise anything
        raise Unfit("is damaged or cut short") from fault


def examined(data: bytes, mime: str, max_pixels: int) -> Examined:
    """As `examine`, of the bytes; a decoder's errors come as they are."""
    with Image.open(BytesIO(data), formats=FORMATS) as picture:
        refuse_unfit(picture, max_pixels)
        mode = picture.mode
        # Of a JPEG one pixel in 64 is enough to read all of its data.
        picture.draft(mode, (1, 1))
        picture.load()
        must_turn = picture.getexif().get(ORIENTATION) in TURNED
        is_several = picture.format == "MPO"
    if mime == "image/png" and not is_whole_png(data):
        raise Unfit("is cut short")
    if not must_turn and not is_several and len(data) <= MOST_BYTES:
        return Examined(mime)
    if mode in DEEP:
        raise Unfit("has 16 bits of grey and must be turned or made smaller. Save it with 8 bits")
    return rewritten(data)


def refuse_unfit(picture: Image.Image, max_pixels: int) -> None:
    """What its head already says.

    Raises:
        Unfit: it is too large, moves, or has colours that models do not read.
    """
    width, height = picture.size
    if width * height > max_pixels:
        raise Unfit(f"has {width}x{height} pixels, and at most {max_pixels} are taken")
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        raise Unfit("is animated. Send a still one")
    if picture.mode not in MODES:
        raise Unfit(f"has {picture.mode} colours. Save it with RGB colours")


def rewritten(data: bytes) -> Examined:
    """Upright, a single picture, and small enough to be sent; the colour profile stays."""
    with Image.open(BytesIO(data), formats=FORMATS) as picture:
        profile = picture.info.get("icc_profile")
        shrink_reading(picture)
        upright = ImageOps.exif_transpose(picture)
    has_alpha = upright.has_transparency_data
    upright = upright.convert("RGBA" if has_alpha else "RGB")
    kind, mime = ("WEBP", "image/webp") if has_alpha else ("JPEG", "image/jpeg")
    found = saved(upright, kind, profile)
    if base64_bytes(len(found)) + ROOM_FOR_TYPE > MAX_DATA_URI_BYTES:
        scale = math.sqrt(MODELS_PIXELS / (upright.width * upright.height))
        upright.thumbnail((upright.width * scale, upright.height * scale))
        found = saved(upright, kind, profile)
    return Examined(mime, found)


def shrink_reading(picture: Image.Image) -> None:
    """Have a JPEG read at half its size, or less, while it is larger than is worked on."""
    width, height = picture.size
    while width * height > WORKING_PIXELS:
        width, height = width // 2, height // 2
    picture.draft(picture.mode, (width, height))


def saved(picture: Image.Image, kind: str, profile: bytes | None) -> bytes:
    """Its bytes, without EXIF data."""
    file = BytesIO()
    picture.save(file, kind, quality=QUALITY, icc_profile=profile)
    return file.getvalue()

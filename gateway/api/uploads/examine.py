"""What an uploaded picture is, by its bytes alone; and the same picture as models read it.

Each is decoded once, so that a damaged one is refused before anything is paid. Rewritten are those
turned by EXIF, of several pictures (MPO), or too large for a data URI.
"""

from __future__ import annotations

import asyncio
import math
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Final

from msgspec import Struct
from PIL import Image, ImageOps, PngImagePlugin

from gateway.api.uploads.spool import SpooledPart, Upload, read
from gateway.domain.errors import InvalidRequest
from gateway.domain.pictures import MAX_DATA_URI_BYTES, Picture
from gateway.domain.png import is_whole_png

ORIENTATION: Final = 0x0112
"""EXIF's tag; 1 is upright."""
TURNED: Final = range(2, 9)
FORMATS: Final = ("PNG", "JPEG", "WEBP")
"""A file of several pictures (MPO) begins as a JPEG."""
MODES: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I", "I;16"})
"""Pillow's names of grey, of palettes and of red, green and blue."""
DEEP: Final = frozenset({"I", "I;16"})
"""Grey of 16 bits, which is sent as it is or not at all."""
MODELS_PIXELS: Final = 2048 * 2048
"""A picture too large to be sent is reduced to this: no model's edits are larger."""
TURNED_PIXELS: Final = 2 * MODELS_PIXELS
"""A turned picture is in memory twice."""
QUALITIES: Final = (95, 80)
"""The second for noise and transparency, which make even that too large."""
WEBP_METHOD: Final = 2
ROOM_FOR_TYPE: Final = 64
MOST_BYTES: Final = (MAX_DATA_URI_BYTES - ROOM_FOR_TYPE) // 4 * 3
SIGNATURES: Final[tuple[tuple[str, Callable[[bytes], bool]], ...]] = (
    ("image/png", lambda start: start.startswith(b"\x89PNG\r\n\x1a\n")),
    ("image/jpeg", lambda start: start.startswith(b"\xff\xd8\xff")),
    ("image/webp", lambda start: start[:4] == b"RIFF" and start[8:12] == b"WEBP"),
)


MOST_SCANS: Final = 100
"""Scans of a JPEG, each read whole: usually some ten; ten megabytes of empty ones take minutes."""
SCAN: Final = b"\xff\xda"
MOST_TEXT: Final = 4 * 1024 * 1024
"""Characters of a PNG's texts, unpacked; Pillow's own limit is 64 MiB, of up to four bytes each."""

PngImagePlugin.MAX_TEXT_MEMORY = MOST_TEXT


class Unfit(Exception):
    """A picture that is refused: what it is, or has."""


class Examined(Struct, frozen=True):
    """`rewritten` replaces what came."""

    mime: str
    rewritten: bytes | None = None


def examine(descriptor: int, size: int, offset: int, max_pixels: int) -> Examined:
    """Raises Unfit if no model could read the picture as its sender meant it."""
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
    if mime == "image/jpeg" and data.count(SCAN) > MOST_SCANS:
        raise Unfit(f"has more than {MOST_SCANS} scans. Save it as a baseline JPEG")
    with Image.open(BytesIO(data), formats=FORMATS) as picture:
        refuse_unfit(picture, max_pixels)
        if mime == "image/png" and not is_whole_png(data):
            raise Unfit("is damaged or cut short")
        is_large = len(data) > MOST_BYTES
        if not is_large and picture.format != "MPO":
            # One pixel in 64 of a JPEG is enough to read all of its data.
            picture.draft(picture.mode, (1, 1))
            picture.load()
            if not is_turned(picture):
                return Examined(mime)
        if picture.mode in DEEP:
            raise Unfit("has 16 bits of grey and would have to be converted. Save it with 8 bits")
    return rewritten(data, MODELS_PIXELS if is_large else TURNED_PIXELS)


def refuse_unfit(picture: Image.Image, max_pixels: int) -> None:
    """By its head. Raises Unfit: too large, animated, or in colours that models do not read."""
    width, height = picture.size
    most = most_pixels(picture, max_pixels)
    if width * height > most:
        raise Unfit(f"has {width}x{height} pixels, and at most {most} are taken of its kind")
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        raise Unfit("is animated. Send a still one")
    if picture.mode not in MODES:
        raise Unfit(f"has {picture.mode} colours. Save it with RGB colours")


def most_pixels(picture: Image.Image, max_pixels: int) -> int:
    """By what decoding takes: 4 bytes a pixel of a PNG, at most 6 of a progressive JPEG.

    A WebP takes 16. Another JPEG is never decoded whole.
    """
    if picture.format == "WEBP":
        return max_pixels // 2
    is_jpeg = picture.format != "PNG" and not picture.info.get("progressive")
    return max_pixels * 4 if is_jpeg else max_pixels


def is_turned(picture: Image.Image) -> bool:
    """Whether a program must turn it; unreadable EXIF data does not count."""
    try:
        return picture.getexif().get(ORIENTATION) in TURNED
    except Exception:  # noqa: BLE001 - its reader may raise anything
        return False


def read_small(picture: Image.Image, most_pixels: int) -> None:
    """Decode it, and make it as small; a JPEG is decoded at a half, or less, of its sides."""
    width, height = picture.size
    while width * height > 2 * most_pixels:
        width, height = width // 2, height // 2
    picture.draft(picture.mode, (width, height))
    picture.load()
    scale = math.sqrt(most_pixels / (picture.width * picture.height))
    if scale < 1:
        picture.thumbnail((picture.width * scale, picture.height * scale))


def rewritten(data: bytes, most_pixels: int) -> Examined:
    """Upright, a single picture, and small enough to be sent; the colour profile stays."""
    with Image.open(BytesIO(data), formats=FORMATS) as picture:
        profile = picture.info.get("icc_profile")
        read_small(picture, most_pixels)
        if is_turned(picture):
            ImageOps.exif_transpose(picture, in_place=True)
        kind, mime, mode = "JPEG", "image/jpeg", "RGB"
        if picture.has_transparency_data:
            kind, mime, mode = "WEBP", "image/webp", "RGBA"
        plain = picture if picture.mode == mode else picture.convert(mode)
        for quality in QUALITIES:
            file = BytesIO()
            plain.save(
                file, kind, quality=quality, icc_profile=profile, exif=b"", method=WEBP_METHOD
            )
            if file.tell() <= MOST_BYTES:
                return Examined(mime, file.getvalue())
    raise Unfit("is too large, even rewritten. Send a smaller one")


class Examiner:
    """Examines pictures beside the event loop, one at a time, so that memory holds one decoded."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        # Warnings quote a picture's own text, which would be logged, and kept to be said only once.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        self._thread = ThreadPoolExecutor(1, "pictures")
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By tenant: a thousand pictures of one tenant take one place in the queue."""

    async def examine(self, tenant: str, upload: Upload) -> Picture:
        """Raises InvalidRequest with the picture as `param`, or ServiceUnavailable without room."""
        part = upload.part
        try:
            async with self._turns[tenant]:
                found = await part.spool.run(
                    self._thread, examine, part.size, part.offset, self._max_pixels
                )
        except Unfit as unfit:
            message = f"The image '{upload.name}' {unfit}."
            raise InvalidRequest(message, param=upload.name, code="invalid_image_file") from None
        if found.rewritten is not None:
            offset = await part.spool.append(found.rewritten)
            part = SpooledPart(part.spool, offset, len(found.rewritten))
        return Picture(f"sha256:{upload.digest}", found.mime, part.size, part)

    def close(self) -> None:
        """Without waiting."""
        self._thread.shutdown(wait=False, cancel_futures=True)

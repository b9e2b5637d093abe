"""Images in another format than the vendor's PNG: made by Pillow, in threads (0026).

A conversion waits for its budget without a connection, so nobody waits for somebody who waits.
Pillow writes JPEG without blocking other threads only into a real file.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from io import BytesIO
from time import monotonic
from typing import Any, NamedTuple

import structlog
from msgspec import Struct
from PIL import Image, ImageCms
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from gateway.delivery.budget import ByteBudget
from gateway.domain.catalogue import Size
from gateway.domain.errors import ImageUnavailable
from gateway.protocol.openai import OutputFormat
from gateway.upstream.download import Deadline

THREADS = 2
BUDGET_BYTES = 256 * 1024 * 1024
NICE = 10
BYTES_PER_PIXEL = 20
"""A conversion's peak, beside the PNG, for any PNG and format."""
BLOCK_BYTES = 256 * 1024
FINE = 90
"""From this quality on, JPEG keeps a colour for every pixel instead of one for four."""
LARGEST_SIDE = {"jpeg": 65_535, "webp": 16_383}
NAMES = {"jpeg": JpegImageFile.format, "webp": WebPImageFile.format}
WEBP_METHOD = 2
"""Method 3 takes twice the memory and time, for a fifth fewer bytes at quality 100 alone."""
GREY = frozenset(("1", "L", "LA", "I;16", "I;16B", "I"))
SPACES = {"L": b"GRAY", "RGB": b"RGB "}
"""How a profile names its colour space."""
SIXTEEN_BITS = ("I;16", "I;16B", "I")
DEEPEST = 255

log = structlog.get_logger()


class Encoding(Struct, frozen=True):
    """How images are wanted; `quality` is from 0 to 100."""

    format: OutputFormat = "png"
    quality: int = 100


PNG = Encoding()


Spent = Callable[[float], object]
"""Called with the seconds that something took."""


class Original(NamedTuple):
    blocks: AsyncGenerator[bytes | memoryview, None]
    length: int
    size: Size
    rest: Callable[[], object]
    """Gives back what holders of room here may wait for."""


class Converter:
    """The conversions of a worker; `took` is called with the wait and the work of each."""

    def __init__(
        self,
        threads: int = THREADS,
        budget_bytes: int = BUDGET_BYTES,
        *,
        steady: Callable[[], float] = monotonic,
        took: Callable[[OutputFormat, float], object] = lambda *_: None,
    ) -> None:
        self.budget = ByteBudget(budget_bytes)
        self._steady = steady
        self._took = took
        # Linux has a priority for each thread: on a busy machine the event loop's comes first.
        self._pool = ThreadPoolExecutor(threads, "convert", os.nice, (NICE,))

    def takes(self, size: Size, wanted: OutputFormat, length: int = 0) -> bool:
        """Whether a PNG of that size and length can be converted at all."""
        fits = max(size.width, size.height) <= LARGEST_SIDE[wanted]
        return fits and room_for(size, length) <= self.budget.total

    async def convert(
        self, png: Original, spent: Spent, *, encoding: Encoding, until: Deadline
    ) -> AsyncGenerator[memoryview, None]:
        """Once it is whole and there is room. Raises ImageUnavailable: damaged, large or late."""
        if not self.takes(png.size, encoding.format, png.length):
            raise never(f"A generated image is too large to be made {encoding.format}.")
        held = room_for(png.size, png.length)
        began = self._steady()
        if not self.budget.try_acquire(held):
            png.rest()
            await self._take(held, until)
        waited_s = self._steady() - began
        try:
            whole = BytesIO()
            async with aclosing(png.blocks) as blocks:
                async for block in blocks:
                    whole.write(block)
            began = self._steady()
            made = await self._in_a_thread(whole, png.size, encoding)
            del whole
            took_s = self._steady() - began
            self._took(encoding.format, waited_s + took_s)
            spent(waited_s + took_s)
            used = min(len(made), held)
            self.budget.release(held - used)
            held = used
            for start in range(0, len(made), BLOCK_BYTES):
                yield memoryview(made)[start : start + BLOCK_BYTES]
        finally:
            self.budget.release(held)

    def close(self) -> None:
        """Begin no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _take(self, count: int, until: Deadline) -> None:
        try:
            async with asyncio.timeout(until.left_s()):
                await self.budget.acquire(count)
        except TimeoutError as cause:
            message = "A generated image could not be converted in time; too many others are."
            raise ImageUnavailable(message) from cause

    async def _in_a_thread(self, png: BytesIO, size: Size, encoding: Encoding) -> bytes:
        job = self._pool.submit(converted, png, size, encoding)
        ended = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            if not job.cancel():  # a thread goes on to its end, and so long it needs its memory
                await asyncio.wait([ended])
            raise


def room_for(size: Size, length: int) -> int:
    """Bytes that a conversion of a PNG may take at its peak."""
    return length + size.area * BYTES_PER_PIXEL


def never(message: str) -> ImageUnavailable:
    """An error without use of a retry; the PNG is kept."""
    error = ImageUnavailable(f"{message} Send 'output_format' as png to have it as it is.")
    error.should_retry = False
    return error


def converted(png: BytesIO, size: Size, encoding: Encoding) -> bytes:
    """Pixels and colour profile, nothing else. Raises ImageUnavailable if it cannot be read."""
    try:
        picture, profile = read(png, size, encoding.format)
        return encoded(picture, profile, encoding)
    except Exception as fault:
        # Pillow raises whatever a damaged file leads to.
        log.warning("image_not_converted", cause=type(fault).__name__, format=encoding.format)
        raise never(
            f"A generated image is damaged and cannot be made {encoding.format}."
        ) from fault


def read(png: BytesIO, size: Size, wanted: OutputFormat) -> tuple[Image.Image, bytes | None]:
    """In a mode of the format, with its profile. Raises ValueError for a size unlike the head's."""
    png.seek(0)
    with PngImageFile(png) as image:
        if image.size != (size.width, size.height):
            raise ValueError("a PNG of two sizes")
        image.load()
        profile: bytes | None = image.info.get("icc_profile")
        mode = "L" if image.mode in GREY else "RGB"
        picture = flattened(in_eight_bits(image), mode)
    space = profile[16:20] if profile else b""
    if profile and mode == "L" and space == b"GRAY" and wanted == "webp":
        return in_srgb(picture, profile), None
    return picture, profile if space == SPACES[mode] else None


def in_eight_bits(image: Image.Image) -> Image.Image:
    """Pillow does this by itself for colours, but not for grey."""
    key = image.info.get("transparency")
    if image.mode in SIXTEEN_BITS:
        image = image.convert("I").point(lambda shade: shade / 257 + 0.5).convert("L")
        image.info.pop("transparency", None)
    elif isinstance(key, tuple) and max(key) > DEEPEST:  # a colour of sixteen bits
        image.info.pop("transparency")
    return image


def flattened(image: Image.Image, mode: str) -> Image.Image:
    """On white, without transparency: answers say that images are opaque."""
    if not image.has_transparency_data:
        return image.convert(mode)
    alpha = image.convert("RGBA").getchannel("A")
    flat = Image.new(mode, image.size, "white")
    flat.paste(image.convert(mode), mask=alpha)
    return flat


def in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Grey with its own profile, as sRGB."""
    try:
        own = ImageCms.ImageCmsProfile(BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        found = ImageCms.profileToProfile(image, own, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        found = None
    return found or image


def encoded(image: Image.Image, profile: bytes | None, encoding: Encoding) -> bytes:
    """The file, without anything else that the PNG contained."""
    image.info = {}
    options: dict[str, Any] = {"quality": max(1, encoding.quality), "icc_profile": profile}
    if encoding.format == "jpeg":
        options["subsampling"] = "4:4:4" if encoding.quality >= FINE else "4:2:0"
    else:
        options["method"] = WEBP_METHOD
    with os.fdopen(os.memfd_create("image"), "w+b", buffering=0) as file:
        image.save(file, NAMES[encoding.format], **options)
        file.seek(0)
        return file.read()

"""A PNG becomes a JPEG or a WebP: its colours, what is left out, and what harm it may mean."""

from __future__ import annotations

import asyncio
import os
import struct
import threading
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from io import BytesIO
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from gateway.delivery import Converter, Encoding, conversion
from gateway.delivery.conversion import Original, converted, room_for
from gateway.domain.catalogue import Size
from gateway.domain.errors import ImageUnavailable
from gateway.protocol.openai import OutputFormat
from gateway.upstream.download import Deadline

SIDE = 64
SIZE = Size(SIDE, SIDE)
MIB = 1024 * 1024
ROOM = room_for(SIZE, MIB)
FORMATS = pytest.mark.parametrize("wanted", ["jpeg", "webp"])
# Colours far apart, and one between.
COLOURS = [(255, 0, 0), (0, 128, 0), (0, 0, 255), (200, 200, 200)]


def quarters(mode: str = "RGB", side: int = SIDE) -> Image.Image:
    """Four squares, each of one colour."""
    image = Image.new("RGB", (side, side))
    half = side // 2
    for index, colour in enumerate(COLOURS):
        image.paste(colour, (index % 2 * half, index // 2 * half, side, side))
    return image.quantize(16) if mode == "P" else image.convert(mode)


def packed(image: Image.Image, **options: Any) -> bytes:
    """The PNG of a picture."""
    file = BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(depth: int, colour: int, row: bytes, size: Size = SIZE, before: bytes = b"") -> bytes:
    """A PNG whose rows are all the same."""
    head = struct.pack(">IIBBBBB", size.width, size.height, depth, colour, 0, 0, 0)
    rows = zlib.compress((b"\0" + row) * size.height)
    parts = (chunk(b"IHDR", head), before, chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def convert(png: bytes, wanted: OutputFormat, quality: int = 100, size: Size = SIZE) -> Image.Image:
    """What a client would see."""
    made = Image.open(BytesIO(converted(BytesIO(png), size, Encoding(wanted, quality))))
    assert made.format == wanted.upper()
    made.load()
    return made


def shown(image: Image.Image, at: tuple[int, int]) -> Any:
    return image.convert("RGB").getpixel(at)


def near(one: Any, other: Any, within: int = 6) -> bool:
    return all(abs(a - b) <= within for a, b in zip(one, other, strict=True))


@FORMATS
@pytest.mark.parametrize("mode", ["RGB", "P", "L", "1", "RGBA", "LA"])
def test_every_kind_of_png_keeps_its_colours(mode: str, wanted: OutputFormat) -> None:
    picture = quarters(mode)

    made = convert(packed(picture), wanted)

    assert made.size == (SIDE, SIDE)
    for at in ((10, 10), (50, 10), (10, 50), (50, 50)):
        assert near(shown(made, at), shown(picture, at)), at


@FORMATS
def test_transparency_becomes_white(wanted: OutputFormat) -> None:
    """Answers say `background: opaque`."""
    clear = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    half = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 128))
    keyed = packed(Image.new("RGB", (SIDE, SIDE), (9, 9, 9)), transparency=(9, 9, 9))
    grey = Image.new("LA", (SIDE, SIDE), (0, 0))

    for png in (packed(clear), keyed, packed(grey)):
        made = convert(png, wanted)
        assert not made.has_transparency_data
        assert near(shown(made, (9, 9)), (255, 255, 255))
    assert near(shown(convert(packed(half), wanted), (9, 9)), (127, 127, 127))


@FORMATS
@pytest.mark.parametrize(
    ("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["grey", "rgb", "la", "rgba"]
)
def test_sixteen_bits_become_eight(colour: int, channels: int, wanted: OutputFormat) -> None:
    """A shade of 0x8080 is one of 0x80, not white, as Pillow's own cut would make it."""
    opaque = [0x8080] * min(channels, 3 if channels > 2 else 1)
    row = struct.pack(f">{channels}H", *opaque, *[0xFFFF] * (channels - len(opaque))) * SIDE

    made = convert(raw_png(16, colour, row), wanted)

    assert near(shown(made, (9, 9)), (0x80, 0x80, 0x80))


def test_a_transparent_colour_of_sixteen_bits_does_no_harm() -> None:
    key = chunk(b"tRNS", struct.pack(">3H", 0x8080, 0x8080, 0x8080))
    row = struct.pack(">3H", 0x8080, 0x8080, 0x8080) * SIDE

    assert near(shown(convert(raw_png(16, 2, row, before=key), "jpeg"), (9, 9)), (0x80,) * 3)


def profile(kind: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes()  # type: ignore[arg-type]


def grey_profile(gamma: float) -> bytes:
    """The least that is one: ICC.1, 8.4."""

    def tag(kind: bytes, data: bytes) -> bytes:
        return kind + bytes(4) + data + bytes(-len(data) % 4)

    white = tag(b"XYZ ", struct.pack(">3i", 63190, 65536, 54061))
    curve = tag(b"curv", struct.pack(">IH", 1, round(gamma * 256)))
    text = tag(b"desc", struct.pack(">I", 2) + b"g\0" + bytes(78))
    tags = [(b"desc", text), (b"wtpt", white), (b"kTRC", curve)]
    start, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags:
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(
        ">I4sI4s4s4s", 128 + len(body), b"none", 0x02400000, b"mntr", b"GRAY", b"XYZ "
    )
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    return head + struct.pack(">3i", 63190, 65536, 54061) + bytes(48) + body


@FORMATS
def test_a_profile_stays(wanted: OutputFormat) -> None:
    own = profile("sRGB")

    assert convert(packed(quarters(), icc_profile=own), wanted).info["icc_profile"] == own


@FORMATS
def test_a_profile_of_other_colours_is_left_out(wanted: OutputFormat) -> None:
    """One that is for shades of grey, or none at all, beside colours."""
    for own in (grey_profile(1.0), b"no profile"):
        assert "icc_profile" not in convert(packed(quarters(), icc_profile=own), wanted).info


def test_grey_keeps_its_profile_or_becomes_what_it_means() -> None:
    """WebP has no grey: a linear half is 188 of sRGB's 255."""
    own = grey_profile(1.0)
    png = packed(Image.new("L", (SIDE, SIDE), 128), icc_profile=own)

    jpeg, webp = convert(png, "jpeg"), convert(png, "webp")

    assert (jpeg.mode, jpeg.info["icc_profile"]) == ("L", own)
    assert "icc_profile" not in webp.info
    assert near(shown(webp, (9, 9)), (188, 188, 188))


def test_a_broken_profile_of_grey_costs_nobody_the_picture() -> None:
    broken = grey_profile(1.0)[:140]
    png = packed(Image.new("L", (SIDE, SIDE), 128), icc_profile=broken)

    assert near(shown(convert(png, "webp"), (9, 9)), (128, 128, 128))


@FORMATS
def test_nothing_but_the_picture_is_handed_on(wanted: OutputFormat) -> None:
    texts = PngImagePlugin.PngInfo()
    for name in ("Comment", "comment", "prompt", "XML:com.adobe.xmp", "parameters"):
        texts.add_itxt(name, "a secret")
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    png = packed(quarters(), pnginfo=texts, exif=exif, dpi=(300, 300))

    made = converted(BytesIO(png), SIZE, Encoding(wanted))

    assert b"secret" in png
    assert b"secret" not in made
    assert not Image.open(BytesIO(made)).getexif()


@FORMATS
def test_less_quality_takes_fewer_bytes(wanted: OutputFormat) -> None:
    noise = packed(Image.effect_noise((SIDE, SIDE), 60).convert("RGB"))
    sizes = [len(converted(BytesIO(noise), SIZE, Encoding(wanted, q))) for q in (0, 25, 75, 100)]

    assert sizes == sorted(set(sizes))


DAMAGED = {
    "no picture": raw_png(8, 2, b"")[:-12] + chunk(b"IEND", b""),
    "half a picture": raw_png(8, 2, bytes(3 * SIDE))[:60] + chunk(b"IEND", b""),
    "a wrong checksum": packed(quarters()).replace(b"IDAT", b"IDAT\0", 1),
    "a colour type that is none": raw_png(8, 5, bytes(3 * SIDE)),
    "a profile that grows a thousandfold": raw_png(
        8, 2, bytes(3 * SIDE), before=chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(64 * MIB), 9))
    ),
    "two sizes": raw_png(
        8,
        2,
        bytes(3 * SIDE),
        before=chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)),
    ),
}


@FORMATS
@pytest.mark.parametrize("png", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_png_is_no_image(png: bytes, wanted: OutputFormat) -> None:
    """It stays what was paid for: asked for as PNG it is sent as it is."""
    with pytest.raises(ImageUnavailable) as caught:
        converted(BytesIO(png), SIZE, Encoding(wanted))

    assert not caught.value.for_good
    assert "output_format" in caught.value.message


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_is_damaged_ends_in_a_picture_or_in_that_error(data: st.DataObject) -> None:
    png = bytearray(packed(quarters("P")))
    for _ in range(data.draw(st.integers(1, 4))):
        png[data.draw(st.integers(24, len(png) - 1))] = data.draw(st.integers(0, 255))
    try:
        made = converted(BytesIO(bytes(png)), SIZE, Encoding("jpeg", 50))
    except ImageUnavailable:
        return
    assert Image.open(BytesIO(made)).size == (SIDE, SIDE)


class Conversions:
    """A worker's conversions, whose threads wait until the test lets them go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, threads: int, budget_bytes: int) -> None:
        self.converter = Converter(threads, budget_bytes)
        self.budget = self.converter.budget
        self.may_go_on = threading.Event()
        self.running = self.most = 0
        self.priorities = (0, os.getpriority(os.PRIO_PROCESS, 0))
        """Of a thread that converts, and of the one that does not; lower numbers come first."""
        monkeypatch.setattr(conversion, "converted", self._converted)

    def _converted(self, png: BytesIO, size: Size, encoding: Encoding) -> bytes:
        self.priorities = os.getpriority(os.PRIO_PROCESS, 0), self.priorities[1]
        self.running += 1
        self.most = max(self.most, self.running)
        assert self.may_go_on.wait(20)
        self.running -= 1
        return converted(png, size, encoding)

    async def convert(self, png: bytes, until: Deadline | None = None) -> bytes:
        async def blocks() -> AsyncGenerator[bytes | memoryview, None]:
            yield png[:100]
            yield png[100:]

        original = Original(blocks(), len(png), SIZE, lambda: None)
        until = until or Deadline(inf, lambda: 0.0)
        made = self.converter.convert(
            original, lambda _: None, encoding=Encoding("jpeg"), until=until
        )
        async with aclosing(made) as found:
            return b"".join([bytes(block) async for block in found])

    async def until_running(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.running != count:  # noqa: ASYNC110 - a thread sets no event of the loop
                await asyncio.sleep(0.001)


@pytest.fixture
async def conversions(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Conversions]:
    """Room for two at once, and four threads."""
    each = Conversions(monkeypatch, 4, 2 * ROOM)
    yield each
    each.may_go_on.set()
    each.converter.close()
    assert each.budget.free == each.budget.total


async def test_memory_bounds_how_many_are_made_at_once(conversions: Conversions) -> None:
    png = packed(quarters(), compress_level=0) + bytes(MIB - 100_000)
    tasks = [asyncio.create_task(conversions.convert(png)) for _ in range(8)]
    await conversions.until_running(2)

    conversions.may_go_on.set()
    made = await asyncio.gather(*tasks)

    assert conversions.most == 2
    assert conversions.priorities[0] > conversions.priorities[1]
    assert conversions.priorities[1] == os.getpriority(os.PRIO_PROCESS, 0)
    assert len(set(made)) == 1
    assert conversions.budget.free == conversions.budget.total


async def test_who_leaves_meanwhile_gives_the_memory_back_at_the_thread_s_end(
    conversions: Conversions,
) -> None:
    task = asyncio.create_task(conversions.convert(packed(quarters())))
    await conversions.until_running(1)
    task.cancel()
    await asyncio.sleep(0.01)
    held = conversions.budget.total - conversions.budget.free

    conversions.may_go_on.set()
    await asyncio.wait([task])

    assert held > 0
    assert task.cancelled()
    assert conversions.budget.free == conversions.budget.total


async def test_who_leaves_the_queue_was_never_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of threads, and of memory."""
    one = Conversions(monkeypatch, 1, 2 * ROOM)
    png = packed(quarters()) + bytes(MIB - 100_000)
    tasks = [asyncio.create_task(one.convert(png)) for _ in range(3)]
    await one.until_running(1)
    for task in tasks[1:]:
        task.cancel()
    await asyncio.wait(tasks[1:])

    one.may_go_on.set()

    assert await tasks[0]
    assert one.budget.free == one.budget.total
    one.converter.close()


async def test_no_room_in_time_is_said(conversions: Conversions) -> None:
    png = packed(quarters()) + bytes(MIB - 100_000)
    tasks = [asyncio.create_task(conversions.convert(png)) for _ in range(2)]
    await conversions.until_running(2)

    with pytest.raises(ImageUnavailable, match="in time"):
        await conversions.convert(png, Deadline(0.0, lambda: 0.0))

    conversions.may_go_on.set()
    await asyncio.gather(*tasks)


async def test_a_bomb_takes_no_memory() -> None:
    """60,000 x 60,000 pixels in a kilobyte: refused by what its first bytes say."""
    converter = Converter(1, 256 * MIB)
    size = Size(60_000, 60_000)

    async def never() -> AsyncGenerator[bytes | memoryview, None]:
        yield pytest.fail("it was read")

    made = converter.convert(
        Original(never(), 1000, size, lambda: None),
        lambda _: None,
        encoding=Encoding("jpeg"),
        until=Deadline(inf, lambda: 0.0),
    )
    with pytest.raises(ImageUnavailable, match="too large"):
        await anext(made)
    assert converter.budget.free == converter.budget.total
    assert converter.takes(Size(2048, 2048), "webp")
    assert not converter.takes(Size(4096, 4096), "jpeg")
    assert not converter.takes(Size(16_384, 64), "webp")
    assert converter.takes(Size(16_384, 64), "jpeg")


@FORMATS
def test_pillow_is_given_a_real_file(wanted: OutputFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into any other it encodes JPEG without letting a thread of Python run, the event loop's too.

    bench/conversion.py measures that.
    """
    files: list[int] = []
    save = Image.Image.save

    def noted(image: Image.Image, file: Any, *more: Any, **options: Any) -> None:
        files.append(file.fileno())
        save(image, file, *more, **options)

    png = packed(quarters())
    monkeypatch.setattr(Image.Image, "save", noted)
    converted(BytesIO(png), SIZE, Encoding(wanted))

    assert len(files) == 1

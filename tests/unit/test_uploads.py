"""Pictures on their way from a client to the vendor: kept, examined, sent."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
import threading
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from gateway.api.uploads import Examiner, Pictures, Spools
from gateway.api.uploads.data_urls import JsonFilter, index_of
from gateway.api.uploads.examine import Examined, Unfit, examine
from gateway.api.uploads.spool import BLOCK, Spool
from gateway.domain.errors import InvalidRequest, ServiceUnavailable
from gateway.domain.pictures import MAX_DATA_URI_BYTES, Inputs, Picture
from gateway.protocol.dashscope import (
    GenerationRequest,
    Input,
    InputImage,
    Message,
    Parameters,
    Text,
)
from gateway.upstream import call_body
from tests.pictures import claiming, noise, picture, turned

MIB = 1024 * 1024


@pytest.fixture
async def spools(tmp_path: Path) -> AsyncIterator[Spools]:
    found = Spools(str(tmp_path))
    yield found
    found.close()


async def kept(spool: Spool, *images: bytes) -> Pictures:
    """Each given in pieces."""
    pictures = Pictures(spool, 10 * MIB)
    for index, image in enumerate(images):
        pictures.begin(f"image[{index}]")
        for at in range(0, len(image), 100_000):
            await pictures.add(image[at : at + 100_000])
        await pictures.end()
    return pictures


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_what_is_kept_is_read_back_in_blocks(spools: Spools, tmp_path: Path) -> None:
    images = [os.urandom(size) for size in (1, BLOCK - 1, BLOCK, BLOCK * 2 + 7)]
    spool = spools.open()

    found = await kept(spool, *images)

    for upload, image in zip(found.uploads, images, strict=True):
        blocks = [block async for block in upload.part.blocks(192 * 1024)]
        assert b"".join(blocks) == image
        assert all(len(block) == 192 * 1024 for block in blocks[:-1])
    assert names_in(tmp_path) == []
    spool.close()


async def test_a_closed_spool_is_gone_but_not_for_who_still_reads(spools: Spools) -> None:
    """A descriptor that is used again must never show another request's pictures."""
    spool, started, closed = spools.open(), threading.Event(), threading.Event()
    await spool.append(b"mine")

    def slow(descriptor: int) -> bytes:
        started.set()
        closed.wait(5)
        return os.pread(descriptor, 4, 0)

    reading = asyncio.create_task(spool.run(spools._threads, slow))
    await asyncio.to_thread(started.wait, 5)
    spool.close()
    other = spools.open()
    await other.append(b"else")
    closed.set()

    assert await reading == b"mine"
    with pytest.raises(ValueError, match="gone"):
        await spool.read(0, 4)
    other.close()


async def test_a_full_disk_is_a_503_and_a_missing_folder_too(
    spools: Spools, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    missing = Spools("/nowhere/at/all")
    with pytest.raises(ServiceUnavailable, match="no room for pictures"):
        await missing.open().append(b"x")
    missing.close()
    spool = spools.open()
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ServiceUnavailable, match="no room for pictures"):
        await spool.append(b"x")
    spool.close()


async def test_a_picture_is_held_to_its_size(spools: Spools) -> None:
    spool = spools.open()
    pictures = Pictures(spool, 1000)
    pictures.begin("image")
    await pictures.add(bytes(1000))
    with pytest.raises(InvalidRequest, match="larger than"):
        await pictures.add(b"x")
    spool.close()


texts = st.text(max_size=30) | st.sampled_from(["data:", "data:image/png;base64", '\\"', "\\"])


@pytest.mark.slow
@given(
    blobs=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=3),
    prompt=texts,
    user=texts,
    cut=st.integers(1, 50),
    escape=st.sampled_from(["", "/", "+", "="]),
    ascii_=st.booleans(),
)
def test_data_urls_are_taken_out_wherever_the_body_is_cut(
    blobs: list[bytes], prompt: str, user: str, cut: int, escape: str, ascii_: bool
) -> None:
    """And the rest is the same JSON as before."""
    urls = [f"data:image/png;base64,{base64.b64encode(blob).decode()}" for blob in blobs]
    images = [{"image_url": url} for url in urls]
    text = json.dumps({"prompt": prompt, "images": images, "user": user}, ensure_ascii=ascii_)
    if escape:
        text = text.replace(escape, f"\\u{ord(escape):04X}")
        text = text.replace(";base64\\u002C", ";base64,")
    body = text.replace("data:image\\u002Fpng", "data:image/png").encode(errors="replace")

    async def read() -> tuple[Any, list[bytes]]:
        spools = Spools(None)
        spool = spools.open()
        pictures = Pictures(spool, MIB)
        found = JsonFilter(pictures, MIB)
        for at in range(0, len(body), cut):
            await found.feed(body[at : at + cut])
        parts = [upload.part for upload in pictures.uploads]
        data = [await spool.read(part.offset, part.size) for part in parts]
        spool.close()
        spools.close()
        return json.loads(bytes(found.text)), data

    left, data = asyncio.run(read())

    assert data == blobs
    assert [index_of(each["image_url"]) for each in left["images"]] == list(range(len(blobs)))
    expected = json.loads(body)
    assert (left["prompt"], left["user"]) == (expected["prompt"], expected["user"])


def examined(image: bytes, tmp_path: Path, max_pixels: int = 4096 * 4096) -> Examined:
    path = tmp_path / "picture"
    path.write_bytes(b"before" + image + b"behind")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return examine(descriptor, len(image), len(b"before"), max_pixels)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_turn_of_exif(kind: str, orientation: int, tmp_path: Path) -> None:
    """Those that a program must make are made, to the same picture as another program makes."""
    image = turned(kind, orientation)
    found = examined(image, tmp_path)

    if orientation in {1, 9}:
        assert found == Examined(f"image/{kind.lower()}")
        return
    with Image.open(BytesIO(image)) as before, Image.open(BytesIO(found.rewritten or b"")) as after:
        upright = ImageOps.exif_transpose(before).convert("RGB")
        assert after.size == upright.size
        assert after.getexif().get(0x0112) is None
        corner = [(x, y) for x in (0, after.width - 1) for y in (0, after.height - 1)]
        grey = (upright.convert("L"), after.convert("L"))
        bright = [max(corner, key=lambda at: int(str(each.getpixel(at)))) for each in grey]
        assert bright[0] == bright[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0"]
)
def test_exif_data_that_cannot_be_read_harms_nothing(exif: bytes, tmp_path: Path) -> None:
    """Programs write what they like there; the picture is whole."""
    examiner = Examiner(100)  # says that its warnings are nobody's business
    assert examined(picture("JPEG", exif=exif), tmp_path) == Examined("image/jpeg")
    assert examined(noise("JPEG", (2700, 2700), quality=97, exif=exif), tmp_path).rewritten
    examiner.close()


def test_a_colour_profile_stays(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    image = picture("JPEG", exif=exif, icc_profile=b"a profile" * 20)

    with Image.open(BytesIO(examined(image, tmp_path).rewritten or b"")) as found:
        assert found.info["icc_profile"] == b"a profile" * 20


@pytest.mark.slow
def test_a_large_picture_with_transparency_stays_transparent(tmp_path: Path) -> None:
    file = BytesIO()
    bands = [
        *(Image.effect_noise((1750, 1750), 90) for _ in range(3)),
        Image.new("L", (1750, 1750)),
    ]
    Image.merge("RGBA", bands).save(file, "PNG", compress_level=1)
    assert len(file.getvalue()) > 8 * MIB

    found = examined(file.getvalue(), tmp_path)

    assert found.mime == "image/webp"
    assert len(found.rewritten or b"") < MAX_DATA_URI_BYTES * 3 // 4
    with Image.open(BytesIO(found.rewritten or b"")) as image:
        assert image.has_transparency_data


def test_pixels_are_counted_before_any_is_decoded(tmp_path: Path) -> None:
    for width, height in ((101, 100), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(Unfit, match="pixels"):
            examined(claiming(width, height), tmp_path, max_pixels=10_000)


@pytest.mark.parametrize(
    ("kind", "saving", "most"),
    [("PNG", {}, 48), ("JPEG", {}, 192), ("JPEG", {"progressive": True}, 48), ("WEBP", {}, 24)],
)
def test_how_many_pixels_depends_on_what_decoding_takes(
    kind: str, saving: dict[str, Any], most: int, tmp_path: Path
) -> None:
    """Of 48: a JPEG is never decoded whole, a WebP four times over."""
    fits, larger = (picture(kind, (size, 1), **saving) for size in (most, most + 1))

    assert examined(fits, tmp_path, max_pixels=48).mime == f"image/{kind.lower()}"
    with pytest.raises(Unfit, match=f"at most {most} are taken"):
        examined(larger, tmp_path, max_pixels=48)


def test_a_jpeg_of_very_many_scans_is_not_decoded(tmp_path: Path) -> None:
    """Ten megabytes of them would hold the thread for minutes, and cost their sender nothing."""
    plain = picture("JPEG", (512, 512), progressive=True)
    last = plain.rindex(b"\xff\xda")
    scan = plain[last:-2]
    many = plain[:-2] + scan * 200 + plain[-2:]

    assert examined(plain, tmp_path).mime == "image/jpeg"
    with pytest.raises(Unfit, match="scans"):
        examined(many, tmp_path)


def test_the_texts_of_a_png_are_bounded(tmp_path: Path) -> None:
    """They are unpacked before a pixel is read."""
    texts = PngInfo()
    for number in range(12):
        texts.add_itxt(f"note {number}", "x" * 1_000_000, zip=True)

    with pytest.raises(Unfit, match="damaged"):
        examined(picture("PNG", (16, 16), pnginfo=texts), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "left"),
    [((6000, 4000), (3000, 2000)), ((4200, 2800), (3546, 2364)), ((3000, 2000), (3000, 2000))],
)
def test_a_large_photograph_is_turned_at_a_size_that_models_read(
    size: tuple[int, int], left: tuple[int, int], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    found = examined(picture("JPEG", size, exif=exif), tmp_path)

    with Image.open(BytesIO(found.rewritten or b"")) as image:
        assert image.size == left[::-1]


async def test_a_tenant_with_many_pictures_holds_up_no_other(spools: Spools) -> None:
    examiner = Examiner(4096 * 4096)
    spool = spools.open()
    many = await kept(spool, *([noise(size=(700, 700))] * 12))
    one = await kept(spool, picture())
    order: list[str] = []

    async def ask(tenant: str, upload: Any) -> None:
        await examiner.examine(tenant, upload)
        order.append(tenant)

    tasks = [asyncio.create_task(ask("many", upload)) for upload in many.uploads]
    await asyncio.sleep(0)
    await asyncio.gather(ask("one", one.uploads[0]), *tasks)

    assert order.index("one") <= 2
    examiner.close()
    spool.close()


@given(prompt=st.text(max_size=50), sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=3))
def test_a_call_leaves_as_if_the_pictures_had_been_in_it(prompt: str, sizes: list[int]) -> None:
    """Byte for byte, with the length that was told before; a prompt that looks like one is none."""

    class Held(msgspec.Struct, frozen=True):
        data: bytes

        async def blocks(self, size: int) -> AsyncIterator[bytes]:
            for at in range(0, len(self.data), size):
                yield self.data[at : at + size]

    pictures = [
        Picture(f"sha256:{index:064x}", "image/png", size, Held(os.urandom(size)))
        for index, size in enumerate(sizes)
    ]
    inputs = Inputs([*pictures, "https://example.com/a.png"])
    text = f'{prompt}"image":"{pictures[0].reference}"'

    def call(images: list[str]) -> bytes:
        content: tuple[InputImage | Text, ...] = (*map(InputImage, images), Text(text))
        return msgspec.json.encode(
            GenerationRequest("m", Input((Message(content),)), Parameters(n=1))
        )

    sent = call_body.pieces(call(list(inputs.references)), inputs.stored)

    async def collect() -> bytes:
        return b"".join([block async for block in call_body.stream(sent)])

    whole = asyncio.run(collect())
    uris = [
        f"data:image/png;base64,{base64.b64encode(each.stored.data).decode()}"  # type: ignore[attr-defined]
        for each in pictures
    ]
    assert whole == call([*uris, "https://example.com/a.png"])
    assert call_body.length(sent) == len(whole)


@pytest.mark.slow
def test_what_holds_the_pictures_is_given_back_once() -> None:
    closed: list[int] = []
    inputs = Inputs(close=lambda: closed.append(1))
    inputs.close()
    inputs.close()
    del inputs

    assert closed == [1]

"""Pictures for tests: small, of every kind that a client may send."""

from __future__ import annotations

import base64
import struct
import zlib
from io import BytesIO
from typing import Any

from PIL import Image


def picture(
    kind: str = "PNG",
    size: tuple[int, int] = (64, 48),
    *,
    mode: str = "RGB",
    seed: int = 0,
    **saving: Any,
) -> bytes:
    """A picture that differs by its seed."""
    file = BytesIO()
    image = Image.new("RGB", size, (seed % 256, seed // 256 % 256, 80))
    image.putpixel((0, 0), (255, 255, 255))
    image.convert(mode).save(file, kind, **saving)
    return file.getvalue()


def noise(kind: str = "PNG", size: tuple[int, int] = (64, 64), **saving: Any) -> bytes:
    """One that no encoder makes smaller."""
    file = BytesIO()
    Image.merge("RGB", [Image.effect_noise(size, 90) for _ in range(3)]).save(file, kind, **saving)
    return file.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG whose head says that it is so large."""
    image = picture()
    head = b"IHDR" + struct.pack(">II", width, height) + image[24:29]
    return image[:12] + head + struct.pack(">I", zlib.crc32(head)) + image[33:]


def several(kind: str) -> bytes:
    """A file of two: an animation, or an MPO."""
    file = BytesIO()
    first, second = (Image.new("RGB", (32, 24), colour) for colour in ("red", "blue"))
    more: dict[str, Any] = {} if kind == "MPO" else {"duration": 100}
    first.save(file, kind, save_all=True, append_images=[second], **more)
    return file.getvalue()


def turned(kind: str = "JPEG", orientation: int = 6) -> bytes:
    """One that must be turned by its EXIF data: 64x48, shown as 48x64."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(kind, exif=exif)


def data_url(image: bytes, mime: str = "image/png") -> str:
    """As a JSON body has it."""
    return f"data:{mime};base64,{base64.b64encode(image).decode()}"


def opened(url: str) -> tuple[str, Image.Image, bytes]:
    """What a data URL holds: its type, the picture, its bytes."""
    head, _, text = url.partition(",")
    data = base64.b64decode(text, validate=True)
    return head.removeprefix("data:").removesuffix(";base64"), Image.open(BytesIO(data)), data

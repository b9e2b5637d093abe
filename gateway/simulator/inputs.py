"""Input pictures of edits: which forms the vendor takes, and how big a picture is."""

from __future__ import annotations

import binascii
import hashlib
import math
from base64 import b64decode
from io import BytesIO
from typing import Any

from PIL import Image, UnidentifiedImageError

from gateway.simulator.replies import Refused

MAX_DATA_URI_BYTES = 10 * 1024 * 1024
UNSEEN = (1024, 1024)
"""Size taken for a picture behind a URL: the simulator fetches nothing."""
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")


def check_reference(reference: str, *, resolves_oss: bool) -> None:
    """Whether a reference is a URL, a data URI or, with the header for it, a temporary upload.

    Raises `Refused` with the vendor's message otherwise.
    """
    scheme = reference.partition(":")[0].lower()
    if scheme == "data":
        if len(reference) > MAX_DATA_URI_BYTES:
            raise Refused("InvalidParameter-data-uri-too-large")
    elif scheme == "oss":
        if not resolves_oss:
            raise Refused("InvalidParameter.DataInspection")
    elif scheme not in {"http", "https"} or "://" not in reference:
        raise Refused("InvalidURL")


def measure(reference: str) -> tuple[int, int]:
    """Width and height in pixels; `Refused` if a data URI holds no picture."""
    if reference[:5].lower() != "data:":
        return UNSEEN
    head, _, payload = reference.partition(",")
    if not head.lower().endswith(";base64"):
        raise Refused("InvalidParameter-image-format")
    try:
        with Image.open(BytesIO(b64decode(payload, validate=True)), formats=FORMATS) as picture:
            return picture.size
    except (binascii.Error, UnidentifiedImageError, OSError, ValueError) as fault:
        raise Refused("InvalidParameter-image-format") from fault


def described(reference: str) -> dict[str, Any]:
    """What the journal says of an input picture that was accepted."""
    if reference[:5].lower() != "data:":
        return {"url": reference}
    head, _, payload = reference.partition(",")
    data = b64decode(payload)
    kind = head[5:].removesuffix(";base64")
    return {"type": kind, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def megapixel_size(width: int, height: int) -> tuple[int, int]:
    """About 1024² pixels in the same shape, both sides multiples of 16 (edit-plus, edit-max)."""
    scale = 1024 / math.sqrt(width * height)
    return _multiple_of_16(width * scale), _multiple_of_16(height * scale)


def digest(references: tuple[str, ...]) -> str:
    """Stands for the input pictures, so that other inputs give another result."""
    joined = "\n".join(references).encode()
    return hashlib.sha256(joined).hexdigest()[:16] if references else ""


def _multiple_of_16(side: float) -> int:
    return max(16, round(side / 16) * 16)

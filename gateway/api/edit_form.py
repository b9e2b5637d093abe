"""The two forms of an edit's body, read as they come: pictures go to their file, fields stay."""

from __future__ import annotations

import re
from typing import Any, Final, Protocol

import multipart

from gateway.api.body import parse_json, shown
from gateway.api.uploads import Pictures
from gateway.api.uploads.data_urls import JsonFilter, placeholder
from gateway.domain.errors import BodyTooLarge, InvalidRequest
from gateway.protocol.openai import ImageEditRequest
from gateway.translate.fields import FOREIGN, known

PICTURE: Final = re.compile(r"images?(?:\[([0-9]{0,3})\])?")
MAX_PICTURES: Final = 16
"""OpenAI's own."""
MAX_PARTS: Final = 100
MAX_HEADER: Final = 8192
"""Bytes of one header of a part: a file's name may be a whole path."""
UNREAD: Final = frozenset({"mask", "markup"})
"""Files that are refused by their name."""
CHARSETS: Final = frozenset({"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin1"})
TEXTS: Final = (known(ImageEditRequest) | FOREIGN.keys()) - UNREAD


class Body(Protocol):
    strict: bool

    async def feed(self, data: bytes) -> None:
        """Some more of it."""

    def fields(self) -> dict[str, Any]:
        """Those of the whole body; where a picture was, `images` has its placeholder."""


class JsonBody:
    """`{"prompt": "…", "images": [{"image_url": "data:…"}]}`."""

    strict = True

    def __init__(self, pictures: Pictures, limit: int) -> None:
        self._pictures = pictures
        self._filter = JsonFilter(pictures, limit)

    async def feed(self, data: bytes) -> None:
        await self._filter.feed(data)

    def fields(self) -> dict[str, Any]:
        """Raises InvalidRequest if it is not JSON."""
        return parse_json(bytes(self._filter.text))


class FormBody:
    """`multipart/form-data`: a part's name alone says what it is, not its file name or type."""

    strict = False

    def __init__(self, pictures: Pictures, limit: int, boundary: str) -> None:
        self._pictures = pictures
        self._left = limit
        self._limit = limit
        self._values: dict[str, str] = {}
        self._places: list[int | None] = []
        """The N of each picture's `image[N]`."""
        self._part: multipart.MultipartSegment | None = None
        self._text = bytearray()
        self._is_picture = False
        self._is_empty = True
        try:
            self._parser = multipart.PushMultipartParser(
                boundary,
                max_header_size=MAX_HEADER,
                max_segment_count=MAX_PARTS,
                header_charset="latin-1",
            )
        except multipart.MultipartError as fault:
            raise malformed(fault) from None

    async def feed(self, data: bytes) -> None:
        """Raises InvalidRequest if it is malformed, BodyTooLarge, or ServiceUnavailable."""
        if not data:
            return
        try:
            for event in self._parser.parse(data):
                if isinstance(event, multipart.MultipartSegment):
                    self._begin(event)
                elif event is not None:
                    await self._add(bytes(event))
                else:
                    await self._end()
        except multipart.MultipartError as fault:
            raise malformed(fault) from None

    def fields(self) -> dict[str, Any]:
        """Raises InvalidRequest if it has no end, or no picture."""
        try:
            self._parser.close()
        except multipart.MultipartError as fault:
            raise malformed(fault) from None
        if not self._places:
            message = "Missing required parameter: 'image'."
            raise InvalidRequest(message, param="image", code="missing_required_parameter")
        return {**self._values, "images": [{"image_url": placeholder(at)} for at in self._order()]}

    def _order(self) -> list[int]:
        """By their N where each has one, else as they came."""
        places = [place for place in self._places if place is not None]
        if len(places) < len(self._places):
            return list(range(len(self._places)))
        return sorted(range(len(places)), key=places.__getitem__)

    def _begin(self, part: multipart.MultipartSegment) -> None:
        name = part.name or ""
        picture = PICTURE.fullmatch(name)
        self._part, self._is_picture, self._is_empty = part, picture is not None, True
        if picture is None:
            self._refuse_repeated(name)
            self._text = bytearray()
            return
        if len(self._places) == MAX_PICTURES:
            message = f"There are more than {MAX_PICTURES} images. Send fewer."
            raise InvalidRequest(message, param=name, code="too_many_images")
        self._places.append(int(picture[1]) if picture[1] else None)
        self._pictures.begin(name)

    def _refuse_repeated(self, name: str) -> None:
        if not name:
            message = "A part of the form has no name."
            raise InvalidRequest(message, code="invalid_form")
        if name in self._values:
            message = f"'{shown(name)}' stands twice in the form."
            raise InvalidRequest(message, param=shown(name))

    async def _add(self, data: bytes) -> None:
        if self._is_picture:
            await self._pictures.add(data)
            return
        self._is_empty = self._is_empty and not data
        if self._name not in TEXTS:  # refused, or ignored: its name is enough
            return
        self._left -= len(data)
        if self._left < 0:
            raise BodyTooLarge(f"The form has more than {self._limit} bytes beside its images.")
        self._text += data

    async def _end(self) -> None:
        if self._is_picture:
            await self._pictures.end()
            return
        name = self._name
        self._left -= len(name)
        text = self._decoded()
        # A page sends an empty file where none was chosen.
        is_chosen = name not in UNREAD or not self._is_empty
        if text or (name not in TEXTS and is_chosen):
            self._values[name] = text

    @property
    def _name(self) -> str:
        return (self._part.name if self._part else None) or ""

    def _decoded(self) -> str:
        charset = (self._part.charset if self._part else None) or "utf-8"
        if charset.lower() not in CHARSETS:
            charset = "utf-8"
        try:
            return self._text.decode(charset)
        except UnicodeDecodeError:
            message = f"'{shown(self._name)}' is not UTF-8 text."
            raise InvalidRequest(message, param=shown(self._name)) from None


def malformed(fault: multipart.MultipartError) -> InvalidRequest:
    """The library's own words name nothing of the request."""
    text = str(fault.args[0]) if fault.args else "it cannot be read"
    message = f"The body is not a well-formed multipart/form-data body: {text}."
    return InvalidRequest(message, code="invalid_form")

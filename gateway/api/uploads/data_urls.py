r"""Takes the pictures out of a JSON body while it comes, so that it is never held with them.

Each `"data:image/png;base64,iVBORw0…"` becomes `"\u00000"`, the index in `Pictures`. Some writers
escape each `/` and `+` of base64.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import AsyncIterator
from typing import Final

import pybase64

from gateway.api.uploads.spool import Pictures
from gateway.domain.errors import BodyTooLarge, InvalidRequest

SLICE: Final = 16 * 1024
"""Bytes that are looked at together: each string in them copies what follows it."""
LONGEST_START: Final = 256
START: Final = re.compile(rb'data:[^",]{0,200};base64,')
PREFIX: Final = b"data:"
PLAIN: Final = re.compile(rb'(?:[^"\\]|\\.)*+', re.DOTALL)
ESCAPE: Final = re.compile(rb"\\(?:u[0-9A-Fa-f]{4}|[^u])")
ESCAPE_BYTES: Final = 6
PLACEHOLDER: Final = "\0"


def placeholder(index: int) -> str:
    """What stands for a picture."""
    return f"{PLACEHOLDER}{index}"


def index_of(reference: str) -> int | None:
    """Which picture a placeholder stands for."""
    number = reference.removeprefix(PLACEHOLDER)
    is_one = reference.startswith(PLACEHOLDER) and number.isascii() and number.isdigit()
    return int(number) if is_one and len(number) < 4 else None


class Base64Text:
    __slots__ = ("_is_padded", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._is_padded = False

    def feed(self, text: bytes) -> bytes:
        """The bytes that are known now. Raises ValueError for what is not base64."""
        text, escaped = self._rest + text, b""
        if b"\\" in text:
            text, escaped = self._split_escape(text)
            plain: str = json.loads(b'"%b"' % text)
            text = plain.encode().translate(None, b" \r\n\t")  # lines may be broken
        whole = len(text) - len(text) % 4
        self._rest = text[whole:] + escaped
        return self._decoded(text[:whole])

    def end(self) -> bytes:
        """The last bytes. Raises ValueError for what is not base64."""
        rest, self._rest = self._rest, b""
        return self._decoded(rest + b"=" * (-len(rest) % 4))

    def _split_escape(self, text: bytes) -> tuple[bytes, bytes]:
        """Keep back an escape whose end is still to come."""
        last = text.rfind(b"\\", max(0, len(text) - ESCAPE_BYTES + 1))
        if last == -1 or ESCAPE.match(text, last):
            return text, b""
        return text[:last], text[last:]

    def _decoded(self, text: bytes) -> bytes:
        if not text:
            return b""
        if self._is_padded:
            raise ValueError("there is more behind its end")
        self._is_padded = text.endswith(b"=")
        return pybase64.b64decode(text, validate=True)


class JsonFilter:
    """Reads a body in pieces; `text` is the JSON that is left."""

    __slots__ = ("_base64", "_coming", "_limit", "_pictures", "_where", "text")

    def __init__(self, pictures: Pictures, limit: int) -> None:
        self._pictures = pictures
        self._limit = limit
        self.text = bytearray()
        self._coming = b""
        self._where = self._between_strings
        self._base64 = Base64Text()

    async def feed(self, data: bytes) -> None:
        """Raises BodyTooLarge, InvalidRequest for a bad picture, or ServiceUnavailable."""
        for start in range(0, len(data), SLICE):
            self._coming += data[start : start + SLICE]
            async for kept in self._pieces():
                self.text += kept
            if len(self.text) > self._limit:
                message = f"The request body is larger than {self._limit} bytes beside its images."
                raise BodyTooLarge(message)

    async def _pieces(self) -> AsyncIterator[bytes]:
        while self._coming:
            where, before = self._where, len(self._coming)
            yield await where()
            if self._where == where and len(self._coming) == before:
                return  # more must come first

    def _take(self, count: int) -> bytes:
        taken, self._coming = self._coming[:count], self._coming[count:]
        return taken

    async def _between_strings(self) -> bytes:
        quote = self._coming.find(b'"')
        if quote == -1:
            return self._take(len(self._coming))
        self._where = self._at_start
        return self._take(quote + 1)

    async def _at_start(self) -> bytes:
        if start := START.match(self._coming):
            self._pictures.begin(f"images[{len(self._pictures.uploads)}]")
            self._base64 = Base64Text()
            self._where = self._in_picture
            self._take(start.end())
        elif not self._may_become_picture():
            self._where = self._in_string
        return b""

    def _may_become_picture(self) -> bool:
        head = self._coming[: len(PREFIX)]
        is_short = len(self._coming) < LONGEST_START and b'"' not in self._coming
        return is_short and PREFIX.startswith(head)

    async def _in_string(self) -> bytes:
        plain = PLAIN.match(self._coming)
        end = plain.end() if plain else 0
        if self._coming[end : end + 1] == b'"':
            self._where = self._between_strings
            end += 1
        return self._take(end)

    async def _in_picture(self) -> bytes:
        quote = self._coming.find(b'"')
        text = self._take(len(self._coming) if quote == -1 else quote)
        try:
            data = self._base64.feed(text)
            if quote != -1:
                data += self._base64.end()
        except (ValueError, binascii.Error) as fault:
            name = f"images[{len(self._pictures.uploads)}]"
            message = f"The image '{name}' is no base64."
            raise InvalidRequest(message, param=name, code="invalid_image_file") from fault
        await self._pictures.add(data)
        if quote == -1:
            return b""
        await self._pictures.end()
        self._where = self._between_strings
        self._take(1)
        return json.dumps(placeholder(len(self._pictures.uploads) - 1))[1:].encode()

"""From a request for an edit to its fields and pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar
from urllib.parse import urlsplit

import multipart
from litestar.types import Scope
from msgspec import Struct

from gateway.api.body import (
    NO_CODING,
    BodyReading,
    ReadBudget,
    codings,
    parts_of,
    refuse_large,
    require_json,
)
from gateway.api.edit_form import Body, FormBody, JsonBody
from gateway.api.image_request import GatewayRequest, take_fields
from gateway.api.start_limiter import StartLimiter
from gateway.api.uploads import Examiner, Pictures, Spools, Upload
from gateway.api.uploads.data_urls import index_of
from gateway.config import Uploads
from gateway.domain.errors import BodyTimeout, InvalidRequest, UnsupportedMediaType
from gateway.domain.pictures import NO_INPUTS, Inputs, Picture
from gateway.observability.context import context_of
from gateway.protocol.openai import ImageEditRequest, ImageReference

W = TypeVar("W")
LONGEST_URL: Final = 8192
Reference = tuple[str, str]
"""Where a picture stands in a body, and its address: a mark, or a URL elsewhere."""


class Form(Struct, Generic[W], frozen=True):
    """A kind of request that may have pictures."""

    take: Callable[[GatewayRequest, dict[str, Any], bool], W]
    """Checks the fields of a body; the last argument says whether it is JSON."""
    references: Callable[[W], Sequence[Reference]]
    is_multipart: bool = False


class EditReader:
    def __init__(self, uploads: Uploads, max_text_bytes: int) -> None:
        self._uploads = uploads
        self._max_text_bytes = max_text_bytes
        self._budget = ReadBudget(uploads.reading)
        self._spools = Spools(uploads.directory)
        self._examiner = Examiner(uploads.max_pixels)
        self._limiter = StartLimiter()

    def close(self) -> None:
        self._spools.close()
        self._examiner.close()

    async def read(self, request: GatewayRequest, form: Form[W]) -> tuple[W, Inputs]:
        """The fields and the pictures, which the caller must close. Raises GatewayError."""
        spool = self._spools.open()
        reading = self._budget.begin(request.user.tenant.name)

        def close() -> None:
            spool.close()
            reading.close()

        try:
            pictures = Pictures(spool, self._uploads.max_image_bytes)
            context = context_of(request.scope)
            context.waits()  # for the client, whose pictures may take a minute
            try:
                with context.phase("upload"):
                    fields, strict = await self._fields(request, reading, pictures, form)
            finally:
                context.goes_on()
            wanted = form.take(request, fields, strict)
            with context.phase("pictures"):
                sources = named(form.references(wanted), pictures.uploads)
                given = [await self._given(request, reading, each) for each in sources]
            reading.finished()
            await self._limiter.enter()
        except BaseException:
            close()
            raise
        if not given:
            close()
            return wanted, NO_INPUTS
        inputs = Inputs(given, close)
        # The same pictures are the same request, wherever they are in its body.
        request.fields["images"] = inputs.references
        return wanted, inputs

    async def _fields(
        self,
        request: GatewayRequest,
        reading: BodyReading,
        pictures: Pictures,
        form: Form[W],
    ) -> tuple[dict[str, Any], bool]:
        limit = self._uploads.max_body_bytes
        body = self._body(request.scope, pictures, form)
        refuse_large(request.scope, limit)
        try:
            async with asyncio.timeout(reading.timeout_s):
                async for part in parts_of(request.receive, limit, reading):
                    await body.feed(part)
        except TimeoutError:
            message = f"The request body did not arrive within {reading.timeout_s:g} seconds."
            raise BodyTimeout(message) from None
        return body.fields(), body.strict

    def _body(self, scope: Scope, pictures: Pictures, form: Form[W]) -> Body:
        """By its declared type, JSON if undeclared. Raises UnsupportedMediaType."""
        if not form.is_multipart:
            require_json(scope)
            return JsonBody(pictures, self._max_text_bytes)
        line = dict(scope["headers"]).get(b"content-type", b"application/json").decode("latin-1")
        media, options = multipart.parse_options_header(line)
        if not NO_CODING.issuperset(codings(scope)):
            raise UnsupportedMediaType("Send the body without Content-Encoding.")
        if media == "multipart/form-data":
            return FormBody(pictures, self._max_text_bytes, options.get("boundary", ""))
        if media == "application/json" or media.endswith("+json"):
            return JsonBody(pictures, self._max_text_bytes)
        raise UnsupportedMediaType("Send the images as multipart/form-data, or as JSON.")

    async def _given(
        self, request: GatewayRequest, reading: BodyReading, given: Upload | str
    ) -> Picture | str:
        """Examine a picture; if it is rewritten, its copy counts beside the original."""
        if isinstance(given, str):
            return given
        picture = await self._examiner.examine(request.user.tenant.name, given)
        if picture.stored is not given.part:
            reading.add(picture.size, more=False)
        return picture


def named(references: Sequence[Reference], uploads: list[Upload]) -> list[Upload | str]:
    """The references of a body resolved, in order. Raises InvalidRequest for a bad one."""
    sources = [source(url, name, uploads) for name, url in references]
    if sum(isinstance(each, Upload) for each in sources) < len(uploads):
        message = "An image stands where none is expected. Send images in 'images' alone."
        raise InvalidRequest(message, param="images")
    return sources


def references_of(wanted: ImageEditRequest) -> list[Reference]:
    """Raises InvalidRequest for a picture without an address."""
    return [
        (f"images[{index}].image_url", address_in(reference, f"images[{index}]"))
        for index, reference in enumerate(wanted.images)
    ]


def address_in(reference: ImageReference, name: str) -> str:
    """Raises InvalidRequest for a file id, or nothing."""
    if reference.file_id is not None:
        message = f"There are no stored files here. Send '{name}.image_url' instead of a file_id."
        raise InvalidRequest(message, param=f"{name}.file_id", code="unsupported_parameter")
    if reference.image_url is None:
        message = f"'{name}' has no image_url."
        raise InvalidRequest(message, param=name, code="missing_required_parameter")
    return reference.image_url


EDIT: Final = Form(
    lambda request, fields, strict: take_fields(request, fields, ImageEditRequest, strict=strict),
    references_of,
    is_multipart=True,
)


def source(url: str, name: str, uploads: list[Upload]) -> Upload | str:
    """A picture that came with the body, or an address. Raises InvalidRequest for neither."""
    index = index_of(url)
    if index is not None and index < len(uploads):
        return uploads[index]
    if len(url) > LONGEST_URL:
        message = f"'{name}' has more than {LONGEST_URL} characters. Send the image itself."
        raise InvalidRequest(message, param=name, code="string_above_max_length")
    if not is_address(url):
        message = f"'{name}' must be data:image/…;base64,… or the http(s) URL of an image."
        raise InvalidRequest(message, param=name)
    return url


def is_address(url: str) -> bool:
    """Whether the vendor could read it; the gateway never does."""
    if not (url.isascii() and url.isprintable()) or " " in url:
        return False
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)

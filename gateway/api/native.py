"""POST /api/v1/services/aigc/multimodal-generation/generation: for the vendor's SDK (0029)."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from functools import partial
from typing import Any, Final

import msgspec
from litestar import Response, post
from litestar.handlers import HTTPRouteHandler

from gateway.api.body import given, refuse_long, refuse_unknown
from gateway.api.edit_request import EditReader, Form
from gateway.api.field_faults import to_invalid
from gateway.api.image_request import GatewayRequest
from gateway.api.images import ImageRoutes
from gateway.api.openapi import DASHSCOPE, NATIVE_ERRORS, error_responses
from gateway.api.paths import NATIVE_GENERATION
from gateway.domain.errors import CallModeForbidden
from gateway.domain.pictures import Inputs
from gateway.observability.context import context_of
from gateway.protocol.native import (
    NativeInput,
    NativeItem,
    NativeMessage,
    NativeParameters,
    NativeReply,
    NativeRequest,
)
from gateway.translate.native import (
    OUTER,
    PARAMETERS,
    references_of,
    to_image_request,
    to_reply,
    without_unknown,
)

TYPES = (NativeRequest, NativeInput, NativeMessage, NativeItem, NativeParameters)
MODES = {
    b"x-dashscope-async": "asynchronous calls. Leave the header X-DashScope-Async out.",
    b"x-dashscope-sse": "streamed calls. Leave the header X-DashScope-SSE out, or stream=False.",
}
"""Headers by which the SDK asks for another kind of answer, and the end of the vendor's words."""


def take_native(request: GatewayRequest, body: dict[str, Any], _: bool) -> NativeRequest:  # noqa: FBT001
    """Check the request by the tenant's rights. Raises InvalidRequest."""
    request.fields = body
    request.ignored = ()
    is_strict = request.user.tenant.unknown_parameters == "refuse"
    if not is_strict:
        body, request.ignored = without_unknown(body)
    return to_native_request(body, strict=is_strict)


def to_native_request(body: dict[str, Any], *, strict: bool) -> NativeRequest:
    """Check the form of a request; a null is the same as an absent key. Raises InvalidRequest."""
    fields = given(body)
    refuse_unknown(fields, OUTER)
    if isinstance(parameters := fields.get("parameters"), dict):
        fields["parameters"] = parameters = given(parameters)
        refuse_unknown(parameters, PARAMETERS)
    try:
        return msgspec.convert(fields, NativeRequest, strict=strict)
    except msgspec.ValidationError as fault:
        raise to_invalid(fault, *TYPES) from None


NATIVE: Final = Form(take_native, references_of)


class NativeRoutes:
    def __init__(self, images: ImageRoutes, reader: EditReader) -> None:
        self._images = images
        self._reader = reader

    def routes(self, options: dict[str, Any]) -> list[HTTPRouteHandler]:
        """`options` are those of `body_options`."""

        @post(
            NATIVE_GENERATION,
            **options,
            summary="Make or edit images, as the vendor's SDK asks for them",
            responses=error_responses(NATIVE_ERRORS, DASHSCOPE),
        )
        async def create_image_natively(request: GatewayRequest) -> Response[NativeReply]:
            """Make images as `MultiModalConversation.call` does, at once."""
            refuse_other_modes(request.scope["headers"])
            data, inputs = await self._reader.read(request, NATIVE)
            try:
                return await self._make(data, request, inputs)
            except BaseException:
                inputs.close()
                raise

        return [create_image_natively]

    def _make(
        self, data: NativeRequest, request: GatewayRequest, inputs: Inputs
    ) -> Awaitable[Response[NativeReply]]:
        wanted = to_image_request(data)
        refuse_long("text", wanted.prompt)
        refuse_long("negative_prompt", wanted.negative_prompt)
        describe = partial(to_reply, request_id=context_of(request.scope).request_id)
        return self._images.make(
            wanted, request, size_policy="strict", describe=describe, inputs=inputs
        )


def refuse_other_modes(lines: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises CallModeForbidden if a header asks to answer later, or bit by bit."""
    for name, value in lines:
        if name in MODES and value.strip().lower() == b"enable":
            raise CallModeForbidden(f"current user api does not support {MODES[name]}")

"""DashScope's image request to the gateway's own, and results and errors back (0029)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from msgspec import UNSET
from msgspec.structs import fields

from gateway.domain import errors
from gateway.domain.catalogue import Size
from gateway.domain.errors import GatewayError, InvalidRequest
from gateway.protocol.native import (
    NativeAnswer,
    NativeChoice,
    NativeError,
    NativeImage,
    NativeItem,
    NativeOutput,
    NativeParameters,
    NativeReply,
    NativeRequest,
    NativeUsage,
)
from gateway.protocol.openai import Image, ImageRequest
from gateway.translate.fields import shown

SIZE = re.compile(r"([1-9][0-9]{0,4})\*([1-9][0-9]{0,4})")
OPENAI_SIZE = re.compile(r"\b([0-9]+)x([0-9]+)\b")
OUTER = frozenset(field.name for field in fields(NativeRequest))
PARAMETERS = frozenset(field.name for field in fields(NativeParameters))
SHOWN_NAMES = 20

CODES: dict[type[GatewayError], str] = {
    errors.GatewayError: "InternalError",
    errors.InvalidRequest: "InvalidParameter",
    errors.ModerationBlocked: "DataInspectionFailed",
    errors.BodyTooLarge: "BadRequest.TooLarge",
    errors.InvalidKey: "InvalidApiKey",
    errors.ModelForbidden: "Model.AccessDenied",
    errors.CallModeForbidden: "AccessDenied",
    errors.NotFound: "NotFound",
    errors.ModelNotFound: "ModelNotFound",
    errors.MethodNotAllowed: "UnsupportedOperation",
    errors.BodyTimeout: "RequestTimeOut",
    errors.NotCached: "NotCached",
    errors.RateLimited: "Throttling.RateQuota",
    errors.BudgetExhausted: "Throttling.AllocationQuota",
    errors.UpstreamBilling: "Arrearage",
    errors.ClientGone: "ClientDisconnect",
    errors.ServiceUnavailable: "ServiceUnavailable",
    errors.UpstreamOverloaded: "ModelServingError",
    errors.UpstreamTimeout: "RequestTimeOut",
}
"""The vendor's word for each error; an unlisted one has its superclass's."""


def without_unknown(body: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """With their names; what is inside `input` stays, as it changes what the request means."""
    outer = {name: value for name, value in body.items() if name in OUTER}
    unknown = [name for name in body if name not in OUTER]
    parameters = outer.get("parameters")
    if isinstance(parameters, dict):
        outer["parameters"] = {n: value for n, value in parameters.items() if n in PARAMETERS}
        unknown += [name for name in parameters if name not in PARAMETERS]
    return outer, tuple(shown(name) for name in unknown[:SHOWN_NAMES])


def to_image_request(request: NativeRequest) -> ImageRequest:
    """Raises InvalidRequest if it is not one message with one text."""
    given = request.parameters
    return ImageRequest(
        model=request.model,
        prompt=text_of(request),
        n=given.n,
        size=None if given.size is None else to_size(given.size),
        response_format="url",
        negative_prompt=given.negative_prompt,
        prompt_extend=given.prompt_extend,
        prompt_extend_mode=given.prompt_extend_mode,
        enable_thinking=given.enable_thinking,
        watermark=given.watermark,
        seed=given.seed,
    )


def text_of(request: NativeRequest) -> str:
    texts = [item.text for item in content_of(request) if item.text is not None]
    if len(texts) != 1:
        raise InvalidRequest("'content' must have exactly one text.")
    return texts[0]


def references_of(request: NativeRequest) -> list[tuple[str, str]]:
    """The place and the address of each picture."""
    return [
        (f"input.messages[0].content[{index}].image", item.image)
        for index, item in enumerate(content_of(request))
        if item.image is not None
    ]


def content_of(request: NativeRequest) -> list[NativeItem]:
    """Raises InvalidRequest if there is not one message, or an item is not one text or picture."""
    messages = request.input.messages
    if len(messages) != 1:
        raise InvalidRequest("'input.messages' must have exactly one message.")
    content = messages[0].content
    if any((item.text is None) is (item.image is None) for item in content):
        raise InvalidRequest("Each item of 'content' must have either a text or an image.")
    return content


def to_size(size: str) -> str:
    """`1024*1024` as OpenAI writes it. Raises InvalidRequest for another form."""
    found = SIZE.fullmatch(size)
    if found is None:
        message = "'size' must be WIDTH*HEIGHT in pixels, for example 1024*1024."
        raise InvalidRequest(message)
    return f"{found[1]}x{found[2]}"


def to_reply(
    images: list[Image], *, created: int, size: Size | None, request_id: str
) -> NativeReply:
    """It has no date: that is in its signed URLs."""
    del created
    content = [NativeImage(image.url) for image in images if image.url is not UNSET]
    return NativeReply(
        NativeOutput([NativeChoice(NativeAnswer(content))]),
        NativeUsage(len(content), *((size.width, size.height) if size else ())),
        request_id,
    )


def to_error(error: GatewayError, request_id: str) -> NativeError:
    """The gateway's own words; sizes as the vendor writes them."""
    message = error.message
    if error.param == "size":
        message = OPENAI_SIZE.sub(r"\1*\2", message)
    return NativeError(code_of(type(error)), message, request_id)


def code_of(kind: type[GatewayError]) -> str:
    return next(CODES[each] for each in kind.__mro__ if each in CODES)

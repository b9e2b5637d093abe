"""OpenAI's image API as clients see it.

Source: openai-python `types/image_generate_params.py`; `extra_body` arrives at the top level. An
explicit null means "absent": the SDKs send both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Count = Annotated[int, Meta(ge=1, le=10)]
Seed = Annotated[int, Meta(ge=0, le=2147483647)]
Compression = Annotated[int, Meta(ge=0, le=100)]
Partials = Annotated[int, Meta(ge=0, le=3)]

ResponseFormat = Literal["url", "b64_json"]
ExtendMode = Literal["direct", "agent"]
OutputFormat = Literal["png", "jpeg", "webp"]
Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]
ShownQuality = Literal["low", "medium", "high"]


class ImageRequest(Struct, frozen=True, kw_only=True):
    """The body of `POST /v1/images/generations`; fields' fates are in `gateway.translate.fields`.

    Types and ranges are OpenAI's own; the last six fields are the gateway's, with DashScope's
    ranges.
    """

    prompt: str
    model: str | None = None
    n: Count | None = None
    size: str | None = None
    quality: Quality | None = None
    response_format: ResponseFormat | None = None
    output_format: Literal["png", "webp", "jpeg", "gif", "svg"] | None = None
    output_compression: Compression | None = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    moderation: Literal["low", "auto"] | None = None
    style: Literal["vivid", "natural"] | None = None
    stream: bool | None = None
    partial_images: Partials | None = None
    user: str | None = None
    safety_identifier: str | None = None
    complexity: Literal["low", "medium", "high"] | None = None
    frame_count: int | None = None
    frame_duration_ms: int | None = None
    svg: dict[str, Any] | None = None
    negative_prompt: str | None = None
    prompt_extend: bool | None = None
    prompt_extend_mode: ExtendMode | None = None
    enable_thinking: bool | None = None
    watermark: bool | None = None
    seed: Seed | None = None


class ImageReference(Struct, frozen=True, kw_only=True):
    """A picture in a JSON body: OpenAI takes exactly one of the two."""

    image_url: str | None = None
    """`data:…;base64,…`, or an address that the vendor reads."""
    file_id: str | None = None


class ImageEditRequest(ImageRequest, frozen=True, kw_only=True):
    """The body of `POST /v1/images/edits` as JSON; a form has the same fields."""

    images: Annotated[list[ImageReference], Meta(min_length=1, max_length=16)]
    input_fidelity: Literal["high", "low"] | None = None
    mask: Any = None
    markup: Any = None


class Image(Struct, frozen=True, omit_defaults=True):
    """One picture: exactly one of the two is set, as `response_format` asked."""

    url: str | UnsetType = UNSET
    b64_json: str | UnsetType = UNSET


class ImagesResponse(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The answer. `created` is a Unix time in whole seconds.

    `size`, `quality` and the like have only values of every published schema: the August 2026 one
    knows three sizes.
    """

    created: int
    data: list[Image]
    background: Literal["opaque"] | UnsetType = UNSET
    output_format: OutputFormat | UnsetType = UNSET
    quality: ShownQuality | UnsetType = UNSET
    size: str | UnsetType = UNSET


ImageEvent = Literal["image_generation.completed", "image_edit.completed"]


class TokenDetails(Struct, frozen=True):
    text_tokens: int = 0
    image_tokens: int = 0


class TokenUsage(Struct, frozen=True):
    """Required of an event, and always zero: DashScope bills images, not tokens."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()


class ImageCompleted(Struct, frozen=True, kw_only=True):
    """One picture of a streamed answer; every field is required by the published schemas.

    `size` is `auto` where the August 2026 specification does not know the picture's own.
    """

    type: ImageEvent
    created_at: int
    size: str
    quality: ShownQuality | Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat = "png"
    usage: TokenUsage = TokenUsage()
    b64_json: str


class ErrorDetail(Struct, frozen=True):
    """All four keys are always present; `param` and `code` may be null."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Struct, frozen=True):
    """The envelope of every failure, whatever its status."""

    error: ErrorDetail


class ErrorEvent(Struct, frozen=True):
    """The last event of a streamed answer that failed after it had begun."""

    error: ErrorDetail
    type: Literal["error"] = "error"


class Model(Struct, frozen=True, kw_only=True):
    """One entry of `GET /v1/models`."""

    id: str
    created: int
    owned_by: str
    object: Literal["model"] = "model"


class ModelList(Struct, frozen=True):
    """`GET /v1/models`: not paginated; both keys are required by the SDKs."""

    data: list[Model]
    object: Literal["list"] = "list"

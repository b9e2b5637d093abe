"""DashScope's answer to OpenAI's."""

from __future__ import annotations

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from gateway.domain import foreign
from gateway.domain.catalogue import Size
from gateway.protocol.dashscope import GenerationReply
from gateway.protocol.openai import (
    Image,
    ImageCompleted,
    ImageEvent,
    ImagesResponse,
    OutputFormat,
    Quality,
    ShownQuality,
)

PUBLISHED_SIZES = ("1024x1024", "1024x1536", "1536x1024")
"""All that the August 2026 specification, and openai-python before 3.0, allow as `size`."""

PUBLISHED_QUALITIES: dict[str, ShownQuality] = {"low": "low", "medium": "medium", "high": "high"}
"""The same of `quality`."""


def image_urls(reply: GenerationReply) -> list[str]:
    """In order, over choices and their content; text items are skipped."""
    choices = (reply.output and reply.output.choices) or []
    return [
        item.image
        for choice in choices
        for item in (choice.message and choice.message.content) or []
        if item.image
    ]


def split_surplus(urls: list[str], asked: int) -> tuple[list[str], int]:
    """The wanted images, and the number of others, not billed here; a repeated one counts once."""
    wanted = list(dict.fromkeys(urls))[:asked]
    return wanted, len(urls) - len(wanted)


def with_texts_cut(reply: GenerationReply) -> GenerationReply:
    """Each text short enough for later readers."""
    code, message, request_id = reply.code or "", reply.message or "", reply.request_id or ""
    if (
        len(code) <= foreign.CODE
        and len(message) <= foreign.MESSAGE
        and len(request_id) <= foreign.ID
    ):
        return reply
    return replace(
        reply,
        code=foreign.cut(code, foreign.CODE),
        message=foreign.cut(message, foreign.MESSAGE),
        request_id=foreign.cut(request_id, foreign.ID),
    )


def to_openai(
    images: list[Image],
    *,
    created: int,
    size: Size | None,
    output_format: OutputFormat = "png",
    quality: Quality | None = None,
) -> ImagesResponse:
    """`size` and `quality` are left out where published schemas would reject them."""
    text = str(size)
    shown: str | UnsetType = text if text in PUBLISHED_SIZES else UNSET
    return ImagesResponse(
        created=created,
        data=images,
        background="opaque",
        output_format=output_format,
        quality=PUBLISHED_QUALITIES.get(quality or "", UNSET),
        size=shown,
    )


def to_event(
    event: ImageEvent,
    b64_json: str,
    *,
    created: int,
    size: Size | None,
    output_format: OutputFormat = "png",
    quality: Quality | None = None,
) -> ImageCompleted:
    text = str(size)
    return ImageCompleted(
        type=event,
        created_at=created,
        size=text if text in PUBLISHED_SIZES else "auto",
        quality=PUBLISHED_QUALITIES.get(quality or "", "auto"),
        output_format=output_format,
        b64_json=b64_json,
    )

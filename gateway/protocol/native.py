"""DashScope's image API as the gateway's clients see it: what the vendor's SDK sends and reads.

A request, `POST /api/v1/services/aigc/multimodal-generation/generation`::

    {"model": "qwen-image-2.0-pro",
     "input": {"messages": [{"role": "user", "content": [{"text": "a fox"}]}]},
     "parameters": {"size": "1024*1024", "n": 2, "seed": 7, "result_format": "message"}}

an answer, all images in one choice::

    {"output": {"choices": [{"finish_reason": "stop", "message":
        {"role": "assistant", "content": [{"image": "https://…"}, {"image": "https://…"}]}}]},
     "usage": {"image_count": 2, "width": 1024, "height": 1024}, "request_id": "req_…"}

and an error::

    {"code": "InvalidParameter", "message": "…", "request_id": "req_…"}
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from gateway.protocol.openai import Count, ExtendMode, Seed


class NativeItem(Struct, frozen=True, forbid_unknown_fields=True):
    """A content item: exactly one of the two."""

    text: str | None = None
    image: str | None = None


class NativeMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """The one turn of a request."""

    content: list[NativeItem]
    role: Literal["user"]


class NativeInput(Struct, frozen=True, forbid_unknown_fields=True):
    """Exactly one message."""

    messages: list[NativeMessage]


class NativeParameters(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All may be absent. `size` is `W*H`."""

    size: str | None = None
    n: Count | None = None
    negative_prompt: str | None = None
    prompt_extend: bool | None = None
    prompt_extend_mode: ExtendMode | None = None
    enable_thinking: bool | None = None
    watermark: bool | None = None
    seed: Seed | None = None
    result_format: Literal["message"] | None = None
    """The SDK adds it; there is no other format."""


class NativeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a call."""

    model: str
    input: NativeInput
    parameters: NativeParameters = NativeParameters()


class NativeImage(Struct, frozen=True):
    """One picture."""

    image: str


class NativeAnswer(Struct, frozen=True):
    """The model's turn."""

    content: list[NativeImage]
    role: Literal["assistant"] = "assistant"


class NativeChoice(Struct, frozen=True):
    """The only one: the vendor's own examples have all images in it."""

    message: NativeAnswer
    finish_reason: Literal["stop"] = "stop"


class NativeOutput(Struct, frozen=True):
    """What was generated."""

    choices: list[NativeChoice]


class NativeUsage(Struct, frozen=True, omit_defaults=True):
    """What was asked for: the size is left out where the model chose it."""

    image_count: int
    width: int | UnsetType = UNSET
    height: int | UnsetType = UNSET


class NativeReply(Struct, frozen=True):
    """The answer."""

    output: NativeOutput
    usage: NativeUsage
    request_id: str


class NativeError(Struct, frozen=True):
    """Any failure, whatever its status."""

    code: str
    message: str
    request_id: str

"""DashScope's image API as the vendor's SDK sends and reads it; see docs/native.md."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from gateway.protocol.openai import Count, ExtendMode, Seed


class NativeItem(Struct, frozen=True, forbid_unknown_fields=True):
    text: str | None = None
    image: str | None = None


class NativeMessage(Struct, frozen=True, forbid_unknown_fields=True):
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
    model: str
    input: NativeInput
    parameters: NativeParameters = NativeParameters()


class NativeImage(Struct, frozen=True):
    image: str


class NativeAnswer(Struct, frozen=True):
    content: list[NativeImage]
    role: Literal["assistant"] = "assistant"


class NativeChoice(Struct, frozen=True):
    """The only one: the vendor's own examples have all images in it."""

    message: NativeAnswer
    finish_reason: Literal["stop"] = "stop"


class NativeOutput(Struct, frozen=True):
    choices: list[NativeChoice]


class NativeUsage(Struct, frozen=True, omit_defaults=True):
    """What was asked for: the size is left out where the model chose it."""

    image_count: int
    width: int | UnsetType = UNSET
    height: int | UnsetType = UNSET


class NativeReply(Struct, frozen=True):
    output: NativeOutput
    usage: NativeUsage
    request_id: str


class NativeError(Struct, frozen=True):
    """Any failure, whatever its status."""

    code: str
    message: str
    request_id: str

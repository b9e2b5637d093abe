"""DashScope's multimodal-generation schema, the part that images use.

`POST {base}/services/aigc/multimodal-generation/generation`. The documents show both one choice
with N items and N choices with one, so images are found by flattening choices × content. A failure
may have status 200. An edit's pictures come before its text. Source: Alibaba Cloud Model Studio,
"Qwen-Image API reference".
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Text(Struct, frozen=True):
    """The last content item of a message, and the only one of text-to-image."""

    text: str


class InputImage(Struct, frozen=True):
    """A picture to edit: its URL, or a reference that is replaced when it is sent."""

    image: str


class Message(Struct, frozen=True):
    """The single turn that the endpoint accepts."""

    content: tuple[InputImage | Text, ...]
    role: Literal["user"] = "user"


class Input(Struct, frozen=True):
    """Exactly one message."""

    messages: tuple[Message]


class Parameters(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """None is left out; `size` is `W*H`.

    `n`, `prompt_extend` and `watermark` are sent even at their default: the documents disagree on
    it.
    """

    size: str | None = None
    n: int | None = None
    negative_prompt: str | None = None
    prompt_extend: bool | None = None
    prompt_extend_mode: str | None = None
    enable_thinking: bool | None = None
    watermark: bool | None = None
    seed: int | None = None


class GenerationRequest(Struct, frozen=True):
    model: str
    input: Input
    parameters: Parameters


class Item(Struct, frozen=True):
    """A content item: a picture's URL, or text or reasoning that some models add."""

    image: str | None = None


class Reply(Struct, frozen=True):
    """The message of a choice; `content` is null in some failures."""

    content: list[Item] | None = None


class Choice(Struct, frozen=True):
    message: Reply | None = None


class Output(Struct, frozen=True):
    choices: list[Choice] | None = None


class GenerationReply(Struct, frozen=True):
    """Any JSON answer of the endpoint, success or failure; absent keys are None."""

    output: Output | None = None
    code: str | None = None
    message: str | None = None
    request_id: str | None = None

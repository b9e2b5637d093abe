"""DashScope's multimodal-generation schema, the part that images use.

A request, `POST {base}/services/aigc/multimodal-generation/generation`::

    {"model": "qwen-image-2.0-pro",
     "input": {"messages": [{"role": "user", "content": [{"text": "a fox"}]}]},
     "parameters": {"size": "2048*2048", "n": 1, "prompt_extend": true, "watermark": false}}

an edit has its pictures before the text, `{"image": "data:image/png;base64,…"}` or a URL;

an answer: images are found by flattening choices × content, since the documents show both one
choice with N items and N choices with one::

    {"output": {"choices": [{"finish_reason": "stop", "message":
        {"role": "assistant", "content": [{"image": "https://…png?Expires=…"}]}}]},
     "usage": {"image_count": 1, "width": 2048, "height": 2048}, "request_id": "d0250a3d-…"}

a failure, sometimes with status 200::

    {"code": "InvalidParameter", "message": "…", "request_id": "…"}

Source: Alibaba Cloud Model Studio, "Qwen-Image API reference".
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Text(Struct, frozen=True):
    """The last content item of a message, and the only one of text-to-image."""

    text: str


class InputImage(Struct, frozen=True):
    """A picture to edit: its URL, or a reference to what takes its place when it is sent."""

    image: str


class Message(Struct, frozen=True):
    """The single turn that the endpoint accepts."""

    content: tuple[InputImage | Text, ...]
    role: Literal["user"] = "user"


class Input(Struct, frozen=True):
    """Exactly one message."""

    messages: tuple[Message]


class Parameters(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Generation parameters; None is left out.

    `size` is `W*H` with an asterisk. `n`, `prompt_extend` and `watermark` are sent even at their
    documented default wherever the model takes them, because the documents disagree on it.
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
    """The body of one upstream call."""

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
    """One choice."""

    message: Reply | None = None


class Output(Struct, frozen=True):
    """What was generated."""

    choices: list[Choice] | None = None


class GenerationReply(Struct, frozen=True):
    """Any JSON answer of the endpoint, success or failure; absent keys are None."""

    output: Output | None = None
    code: str | None = None
    message: str | None = None
    request_id: str | None = None

"""OpenAI's image request to DashScope's.

`n: 7, seed: 7` on a model of four images per call becomes two calls: `n: 4, seed: 7` and `n: 3,
seed: 11`. An edit's pictures come before the text, in their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar, cast

import msgspec
from msgspec import Struct

from gateway.domain.catalogue import (
    NO_PRICES,
    Choice,
    InputSizes,
    Model,
    Parameter,
    Size,
    nearest,
)
from gateway.domain.errors import InvalidRequest
from gateway.domain.pictures import MAX_INPUT_BYTES, NO_INPUTS, Inputs
from gateway.domain.prices import Money, PriceLists, dearest
from gateway.protocol.dashscope import (
    GenerationRequest,
    Input,
    InputImage,
    Message,
    Parameters,
    Text,
)
from gateway.protocol.openai import ImageRequest, OutputFormat, Quality, ResponseFormat
from gateway.translate.fields import ignored, refuse_unsupported

T = TypeVar("T")
SizePolicy = Literal["nearest", "strict"]

SEEDS = 2**31
"""DashScope's seeds are 0 to 2147483647."""

LEAST_LOSS = 100
"""The default of `output_compression`, in percent kept."""

NEGATIVE_PROMPT_LENGTH = 500
"""Characters that DashScope reads of a negative prompt; it cuts off the rest."""


class Plan(Struct, frozen=True, kw_only=True):
    """What one image request asks of the vendor, and what to tell its sender."""

    model: str
    """Catalogue or snapshot name, as the vendor is sent it."""
    family: str
    """The catalogue's entry."""
    entry: Model
    prices: Mapping[str, PriceLists] = NO_PRICES
    """By account."""
    calls: tuple[GenerationRequest, ...]
    images: int
    response_format: ResponseFormat
    output_format: OutputFormat = "png"
    output_compression: int = LEAST_LOSS
    quality: Quality | None = None
    """Which led to the model; None where it has no effect."""
    size: Size | None
    """As sent; None where the model chooses."""
    inputs: Inputs = NO_INPUTS
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def cost(self, account: str | None = None) -> Money:
        """For one image on an account; without one, on the dearest."""
        inputs = len(self.inputs.references) * self.entry.input_price.micros
        return Money(self._cost(account).micros + inputs)

    def _cost(self, account: str | None) -> Money:
        if account is not None and account in self.prices:
            return dearest(self.prices[account], self.size)
        if not self.prices:
            return self.entry.cost(self.size)
        return max(dearest(lists, self.size) for lists in self.prices.values())


def to_dashscope(
    request: ImageRequest, choice: Choice, size_policy: SizePolicy, inputs: Inputs = NO_INPUTS
) -> Plan:
    """Raises InvalidRequest whose `param` names the field that cannot be honoured."""
    refuse_unsupported(request)
    refuse_unreadable("prompt", request.prompt)
    refuse_unreadable("negative_prompt", request.negative_prompt)
    refuse_inputs(inputs, choice)
    refuse_agent(request, inputs)
    model = choice.model
    size = to_size(request.size, choice, size_policy)
    images = request.n or 1
    response_format = to_format(request, choice)
    pictures = (InputImage(reference) for reference in inputs.references)
    prompt = Input((Message((*pictures, Text(request.prompt))),))
    parameters = to_parameters(request, choice, size)
    return Plan(
        model=choice.upstream_name,
        family=choice.family,
        entry=model,
        prices=choice.prices,
        calls=tuple(
            GenerationRequest(choice.upstream_name, prompt, call)
            for call in split(parameters, images, model.images_per_call)
        ),
        images=images,
        response_format=response_format,
        output_format=to_output_format(request, response_format),
        output_compression=to_compression(request),
        quality=choice.quality,
        size=size,
        inputs=inputs,
        ignored=(
            *ignored(request, quality_counts=choice.quality is not None),
            *unused_size(request.size, choice),
        ),
        warnings=tuple(length_warnings(request, choice)),
    )


def to_format(request: ImageRequest, choice: Choice) -> ResponseFormat:
    """As asked, else as the alias or tenant says; events hold base64, and only a PNG has a URL."""
    if request.response_format is None and request.output_format in {"jpeg", "webp"}:
        return "b64_json"
    if not request.stream:
        return request.response_format or choice.response_format or "url"
    if request.response_format == "url":
        raise InvalidRequest(
            "Streamed images come as base64 only. "
            "Send 'response_format' as b64_json or leave it out, or send 'stream' as false.",
            param="response_format",
            code="unsupported_value",
        )
    return "b64_json"


def refuse_unreadable(name: str, text: str | None) -> None:
    """Refuse text that the vendor would not read as its sender meant it."""
    if text is None:
        return
    if name == "prompt" and not text.strip():
        raise InvalidRequest("'prompt' must not be empty.", param=name)
    if "\0" in text:
        raise InvalidRequest(f"'{name}' must not contain NUL characters.", param=name)


def to_output_format(request: ImageRequest, response_format: ResponseFormat) -> OutputFormat:
    """A URL leads to the vendor's own file, which is a PNG."""
    wanted = request.output_format
    if wanted is None or wanted == "png":
        return "png"
    if response_format == "url":
        message = (
            f"An image can be had by its address as png only, not as {wanted}. "
            "Leave 'response_format' out or send it as b64_json, or send 'output_format' as png."
        )
        raise InvalidRequest(message, param="output_format", code="unsupported_value")
    return cast("OutputFormat", wanted)  # of the others, none has come so far


def to_compression(request: ImageRequest) -> int:
    """Quality for lossy formats; PNG loses nothing."""
    wanted = LEAST_LOSS if request.output_compression is None else request.output_compression
    if wanted < LEAST_LOSS and request.output_format not in {"jpeg", "webp"}:
        message = (
            "Images in png cannot be compressed further. Send 'output_format' as jpeg or webp, "
            "or leave 'output_compression' out."
        )
        raise InvalidRequest(message, param="output_compression", code="unsupported_value")
    return wanted


def refuse_inputs(inputs: Inputs, choice: Choice) -> None:
    """Raises InvalidRequest for pictures that the model would not read, or their absence."""
    model, name, count = choice.model, choice.upstream_name, len(inputs.references)
    if not count and not model.generates:
        message = f"The model {name} only edits images. Send some at /v1/images/edits."
        raise InvalidRequest(message, param="model", code="unsupported_model")
    if count and not model.edits:
        message = f"The model {name} cannot edit images. Choose another one, as qwen-image-2.0."
        raise InvalidRequest(message, param="model", code="unsupported_model")
    if count > model.edits:
        message = f"The model {name} takes up to {model.edits} images, not {count}."
        raise InvalidRequest(message, param="image", code="too_many_images")
    if inputs.sent_bytes > MAX_INPUT_BYTES:
        message = "The images are too large together. Send fewer, or smaller ones."
        raise InvalidRequest(message, param="image", code="image_too_large")


def refuse_agent(request: ImageRequest, inputs: Inputs) -> None:
    """Refuse a way of rewriting prompts that the vendor has only without pictures."""
    if request.prompt_extend_mode == "agent" and inputs.references:
        message = "An edit cannot have 'prompt_extend_mode' agent. Send direct, or leave it out."
        raise InvalidRequest(message, param="prompt_extend_mode", code="unsupported_value")


def unused_size(wanted: str | None, choice: Choice) -> tuple[str, ...]:
    """The name of `size`, where one is given to a model that takes none."""
    is_unused = isinstance(choice.model.sizes, InputSizes) and wanted not in {None, "auto"}
    return ("size",) if is_unused else ()


def to_size(wanted: str | None, choice: Choice, policy: SizePolicy) -> Size | None:
    """The size to send: as asked where legal, else the nearest legal one, or a 400 if `strict`."""
    if wanted is None or wanted == "auto":
        return choice.default_size
    try:
        size = Size.parse(wanted)
    except ValueError as fault:
        raise InvalidRequest(f"Invalid 'size': {fault}, or auto.", param="size") from None
    if choice.model.sizes.allows(size):
        return size
    if policy == "strict":
        raise InvalidRequest(
            f"The model {choice.upstream_name} makes no images of {size}. "
            f"Send a 'size' of {choice.model.sizes}.",
            param="size",
        )
    if isinstance(choice.model.sizes, InputSizes):
        return None
    return nearest(choice.model.sizes, size)


def to_parameters(request: ImageRequest, choice: Choice, size: Size | None) -> Parameters:
    """Everything but `n`; refuses a parameter that the model does not document."""
    supports = choice.model.supports

    def given(name: Parameter, value: T | None, default: T | None = None) -> T | None:
        if name in supports:
            return default if value is None else value
        if value is not None and value is not False:
            message = (
                f"The model {choice.upstream_name} has no '{name}'. "
                "Leave it out, or choose another model."
            )
            raise InvalidRequest(message, param=name, code="unsupported_parameter")
        return None

    return Parameters(
        size=None if size is None else f"{size.width}*{size.height}",
        negative_prompt=given("negative_prompt", request.negative_prompt),
        prompt_extend=given("prompt_extend", request.prompt_extend, choice.model.prompt_extend),
        prompt_extend_mode=given("prompt_extend_mode", request.prompt_extend_mode),
        enable_thinking=given("enable_thinking", request.enable_thinking),
        watermark=given("watermark", request.watermark, default=False),
        seed=given("seed", request.seed),
    )


def split(parameters: Parameters, images: int, per_call: int) -> list[Parameters]:
    """As few calls as the model allows; each seed is the given one plus the images before it."""
    calls = -(-images // per_call)
    counts = [images // calls + (index < images % calls) for index in range(calls)]
    seed = parameters.seed
    return [
        msgspec.structs.replace(
            parameters, n=count, seed=None if seed is None else (seed + sum(counts[:index])) % SEEDS
        )
        for index, count in enumerate(counts)
    ]


def remaining(call: GenerationRequest, received: int) -> GenerationRequest:
    """The same call for its missing images, with a seed of its own."""
    if not received:
        return call
    before = call.parameters
    rest = msgspec.structs.replace(
        before,
        n=(before.n or 1) - received,
        seed=None if before.seed is None else (before.seed + received) % SEEDS,
    )
    return msgspec.structs.replace(call, parameters=rest)


def length_warnings(request: ImageRequest, choice: Choice) -> list[str]:
    """Sentences for texts longer than the vendor documents that it reads."""
    limits = (
        ("prompt", request.prompt, choice.model.max_prompt),
        ("negative_prompt", request.negative_prompt or "", NEGATIVE_PROMPT_LENGTH),
    )
    return [
        f"{name} has {len(text)} characters; {choice.upstream_name} reads about the first {limit}"
        for name, text, limit in limits
        if len(text) > limit
    ]

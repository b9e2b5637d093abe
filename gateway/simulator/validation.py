"""What the vendor refuses, and with which words.

    {"model": "qwen-image-2.0-pro",
     "input": {"messages": [{"role": "user", "content": [{"text": "a cat"}]}]},
     "parameters": {"size": "1024*1024", "n": 1, "seed": 7}}

The older task paths carry `{"input": {"prompt": "a cat", "images": [...]}}` instead.
`read_generation` turns either into a `Generation`, or raises `Refused` naming a file in
`replies/errors`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from gateway.simulator import inputs
from gateway.simulator.models import Endpoint, Entry, Model
from gateway.simulator.replies import Json, Refused

MAX_SEED = 2147483647
MAX_NEGATIVE_CHARS = 500

_SIZE = re.compile(r"(\d{1,5})\*(\d{1,5})")
_KINDS: dict[str, tuple[type, str]] = {
    "size": (str, "a string"),
    "n": (int, "an integer"),
    "seed": (int, "an integer"),
    "negative_prompt": (str, "a string"),
    "prompt_extend": (bool, "a boolean"),
    "prompt_extend_mode": (str, "a string"),
    "enable_thinking": (bool, "a boolean"),
    "enable_interleave": (bool, "a boolean"),
    "enable_sequential": (bool, "a boolean"),
    "watermark": (bool, "a boolean"),
}


class Generation(Struct, frozen=True, kw_only=True):
    """A call the vendor would run. Sizes in pixels."""

    model: Model
    prompt: str
    images: tuple[str, ...]
    width: int
    height: int
    n: int
    seed: int | None
    negative_prompt: str
    prompt_extend: bool
    watermark: bool


class Rules(Struct, frozen=True):
    """What else decides: the path called, a header, and how strict the vendor is today."""

    endpoint: Endpoint
    resolves_oss: bool = False
    strict_parameters: bool = False


def read_generation(body: bytes, models: Mapping[str, Model], rules: Rules) -> Generation:
    """The call in a request body, every value checked.

    Raises `Refused`. Messages known from the vendor's documentation or from captures are used as
    they are; where only the rule is known, the error file says `inferred`.
    """
    request = _decoded(body)
    model = _model(request, models, rules.endpoint)
    prompt, images, negative = _prompt_and_images(request, model.facts, rules)
    parameters = _parameters(request, model, rules)
    _check_modes(parameters, images)
    width, height = _size(parameters.get("size"), model.facts, images)
    return Generation(
        model=model,
        prompt=prompt,
        images=images,
        width=width,
        height=height,
        n=_n(parameters, model.facts),
        seed=_seed(parameters.get("seed")),
        negative_prompt=(parameters.get("negative_prompt") or negative)[:MAX_NEGATIVE_CHARS],
        prompt_extend=parameters.get("prompt_extend", model.facts.prompt_extend),
        watermark=parameters.get("watermark", False),
    )


def named_model(body: bytes) -> str:
    """The model a body names, as far as it can be told; for the statistics."""
    try:
        name = msgspec.json.decode(body, type=_Named).model
    except msgspec.DecodeError:
        return ""
    return name[:100]


class _Named(Struct):
    model: str = ""


def _decoded(body: bytes) -> Json:
    try:
        request = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise Refused("InvalidParameter-body") from fault
    if not isinstance(request, dict):
        raise Refused("InvalidParameter-body")
    return request


def _model(request: Json, models: Mapping[str, Model], endpoint: Endpoint) -> Model:
    name = request.get("model")
    if not isinstance(name, str) or not name:
        raise Refused("BadRequest.EmptyModel")
    model = models.get(name)
    if model is None:
        raise Refused("InvalidParameter-model")
    if endpoint in model.facts.serves:
        return model
    if endpoint == "sync":
        raise Refused("AccessDenied-synchronous")
    if model.facts.serves == ("sync",):
        raise Refused("AccessDenied-asynchronous")
    raise Refused("InvalidParameter-url")


def _prompt_and_images(
    request: Json, facts: Entry, rules: Rules
) -> tuple[str, tuple[str, ...], str]:
    given = request.get("input")
    if not isinstance(given, dict) or not given:
        raise Refused("BadRequest.EmptyInput")
    by_message = rules.endpoint in {"sync", "image-generation"}
    texts, images = _from_messages(given, facts) if by_message else _from_prompt(given)
    if not texts or not texts[0] or len(images) < facts.images[0]:
        raise Refused("InvalidParameter-lack-of-image-or-text")
    if len(texts) > 1:
        raise Refused("InvalidParameter-one-text")
    if len(images) > facts.images[1]:
        raise Refused("InvalidParameter-content-length", limit=facts.images[1] + 1)
    for reference in images:
        inputs.check_reference(reference, resolves_oss=rules.resolves_oss)
    negative = given.get("negative_prompt")
    return texts[0], images, negative if isinstance(negative, str) else ""


def _from_messages(given: Json, facts: Entry) -> tuple[list[str], tuple[str, ...]]:
    content = _only_message(given)
    limit = facts.images[1] + 1
    if len(content) > limit:
        raise Refused("InvalidParameter-content-length", limit=limit)
    texts = [_string(item["text"]) for item in content if _has(item, "text")]
    images = tuple(_string(item["image"]) for item in content if _has(item, "image"))
    if len(texts) + len(images) != len(content):
        raise Refused("InvalidParameter-lack-of-image-or-text")
    return texts, images


def _only_message(given: Json) -> list[Any]:
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused("InvalidParameter-no-messages")
    if len(messages) > 1:
        raise Refused("InvalidParameter-messages-length")
    message = messages[0]
    if not isinstance(message, dict):
        raise Refused("InvalidParameter-body")
    if message.get("role") != "user":
        raise Refused("InvalidParameter-role")
    content = message.get("content")
    if not isinstance(content, list) or not content:
        raise Refused("InvalidParameter-lack-of-image-or-text")
    return content


def _from_prompt(given: Json) -> tuple[list[str], tuple[str, ...]]:
    images = given.get("images") or []
    if not isinstance(images, list):
        raise Refused("InvalidParameter-body")
    return [_string(given.get("prompt") or "")], tuple(_string(one) for one in images)


def _has(item: object, key: str) -> bool:
    return isinstance(item, dict) and key in item


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise Refused("InvalidParameter-body")
    return value


def _parameters(request: Json, model: Model, rules: Rules) -> Json:
    """The parameters, each of its kind; keys nobody documents pass unless the rules are strict.

    The SDK itself adds `result_format` and `is_async`, so the real vendor takes at least those.
    """
    parameters = request.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise Refused("InvalidParameter-body")
    for name, value in parameters.items():
        if rules.strict_parameters and name not in model.documented:
            raise Refused("InvalidParameter-unknown-parameter", name=name)
        _check_kind(name, value)
    return parameters


def _check_kind(name: str, value: object) -> None:
    kind, wording = _KINDS.get(name, (object, ""))
    is_bool_as_int = kind is int and isinstance(value, bool)
    if not isinstance(value, kind) or is_bool_as_int:
        raise Refused("InvalidParameter-type", name=name, kind=wording)


def _check_modes(parameters: Json, images: tuple[str, ...]) -> None:
    mode = parameters.get("prompt_extend_mode", "direct")
    if mode not in {"direct", "agent"}:
        raise Refused("InvalidParameter-prompt-extend-mode")
    if mode == "agent" and images:
        raise Refused("InvalidParameter-agent-with-images")
    if parameters.get("enable_interleave"):
        raise Refused("InvalidParameter-interleave")


def _n(parameters: Json, facts: Entry) -> int:
    low, high = facts.n
    default = facts.n_default
    if facts.n_sequential and parameters.get("enable_sequential"):
        high = default = facts.n_sequential
    n: int = parameters.get("n", default)
    if low <= n <= high:
        return n
    if high == 1:
        raise Refused("InvalidParameter-n-one")
    raise Refused("InvalidParameter-n-range", low=low, high=high)


def _seed(seed: int | None) -> int | None:
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise Refused("InvalidParameter-seed")
    return seed


def _size(size: str | None, facts: Entry, images: tuple[str, ...]) -> tuple[int, int]:
    last = [inputs.measure(reference) for reference in images][-1:]
    ignores_size = facts.edit_size == "input" and not (facts.area or facts.side or facts.sizes)
    if size is not None and not ignores_size:
        return _checked_size(size, facts)
    if last and facts.edit_size == "input":
        return last[0]
    if last and facts.edit_size == "megapixel":
        return inputs.megapixel_size(*last[0])
    return _split(facts.default_size)


def _checked_size(size: str, facts: Entry) -> tuple[int, int]:
    size = facts.keywords.get(size, size)
    width, height = _split(size)
    if facts.sizes and size not in facts.sizes:
        raise Refused("InvalidParameter-size-fixed", allowed=",".join(facts.sizes))
    for check in (_check_area, _check_side, _check_aspect):
        check(width, height, facts)
    return width, height


def _split(size: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(size)
    if match is None or not int(match[1]) * int(match[2]):
        raise Refused("InvalidParameter-size-format", size=size)
    return int(match[1]), int(match[2])


def _check_area(width: int, height: int, facts: Entry) -> None:
    if facts.area is None or facts.area[0] <= width * height <= facts.area[1]:
        return
    low, high = facts.area
    area = width * height
    raise Refused(
        "InvalidParameter-size-area", low=low, high=high, area=area, width=width, height=height
    )


def _check_side(width: int, height: int, facts: Entry) -> None:
    if facts.side is None:
        return
    low, high = facts.side
    if not (low <= width <= high and low <= height <= high):
        raise Refused("InvalidParameter-size-side", low=low, high=high, width=width, height=height)


def _check_aspect(width: int, height: int, facts: Entry) -> None:
    limit = facts.aspect
    if limit is not None and max(width, height) > limit * min(width, height):
        raise Refused(
            "InvalidParameter-size-aspect", limit=f"{limit:g}", width=width, height=height
        )

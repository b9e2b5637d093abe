"""The fate of every field of an image request: one table, which the README shows and tests walk.

A field is *honoured*, *mapped*, *accepted* without effect (named in `x-gateway-ignored`), or
*refused* with a 400 whose `param` names it. `adapted` reads other vendors' names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from msgspec import Struct

from gateway.domain.errors import InvalidRequest
from gateway.protocol.openai import ImageEditRequest, ImageRequest

Fate = Literal["honoured", "mapped", "accepted", "refused"]


class Field(Struct, frozen=True):
    """`taken` has the only allowed values, or an accepted field's values that are true anyway.

    `refusal` explains any other value to end users who know nothing of the gateway.
    """

    name: str
    fate: Fate
    what: str
    taken: tuple[object, ...] = ()
    refusal: str = ""


ANIMATION = "Animations cannot be made. Leave 'frame_count' and 'frame_duration_ms' out."

FIELDS: tuple[Field, ...] = (
    Field(
        "prompt", "honoured", "sent as it is; over the model's documented length, a warning header"
    ),
    Field("model", "mapped", "a catalogue name or an alias; absent: the tenant's default"),
    Field("n", "honoured", "1 to 10 on every model, split over upstream calls where needed"),
    Field("size", "mapped", "as asked where legal, else the nearest legal size, named in a header"),
    Field("response_format", "honoured", "`url` or `b64_json`; absent: the alias decides"),
    Field("negative_prompt", "honoured", "where the model has it, else refused"),
    Field(
        "prompt_extend",
        "honoured",
        "where the model has it, else only `false`; absent: the model's default",
    ),
    Field(
        "prompt_extend_mode",
        "honoured",
        "`direct` or, without pictures, `agent`, where the model has it, else refused",
    ),
    Field("enable_thinking", "honoured", "where the model has it, else only `false`"),
    Field("watermark", "honoured", "where the model has it, else only `false`; absent: false"),
    Field(
        "seed", "honoured", "0 to 2147483647; a further call adds the number of images before it"
    ),
    Field(
        "output_format",
        "honoured",
        "`png`; `jpeg` and `webp` as `b64_json`; `gif` and `svg` are refused",
        ("png", "jpeg", "webp"),
        "Images are made as png, jpeg or webp. Send 'output_format' as one of them.",
    ),
    Field(
        "output_compression",
        "honoured",
        "0 to 100 for `jpeg` and `webp`, as their quality; for `png` only 100",
    ),
    Field("quality", "mapped", "to a model, where the alias has one for it; else no effect"),
    Field(
        "background",
        "refused",
        "`auto` and `opaque` only: no transparency",
        ("auto", "opaque"),
        "Images cannot have a transparent background. "
        "Send 'background' as auto or opaque, or leave it out.",
    ),
    Field(
        "stream", "honoured", "an event for each image as it comes, which holds it as `b64_json`"
    ),
    Field("frame_count", "refused", "animations only, which no model makes", (), ANIMATION),
    Field("frame_duration_ms", "refused", "animations only, which no model makes", (), ANIMATION),
    Field(
        "svg",
        "refused",
        "vector graphics only, which no model makes",
        (),
        "Vector graphics cannot be made. Leave 'svg' out.",
    ),
    Field("partial_images", "accepted", "0 to 3; the vendor makes whole images only", (0,)),
    Field("style", "accepted", "the vendor has no such choice"),
    Field("moderation", "accepted", "the vendor's own moderation always applies"),
    Field("complexity", "accepted", "the vendor has no such choice"),
    Field("user", "accepted", "not sent to the vendor"),
    Field("safety_identifier", "accepted", "not sent to the vendor"),
)

NO_MASK = "No part of an image can be marked. Say in 'prompt' what to change, and leave '{}' out."

EDIT_FIELDS: tuple[Field, ...] = (
    Field(
        "images",
        "honoured",
        "`image`, `image[]` or `image[N]` of a form, in their order; `images[].image_url` of JSON",
    ),
    Field("mask", "refused", "the vendor has none", (), NO_MASK.format("mask")),
    Field("markup", "refused", "the vendor has none", (), NO_MASK.format("markup")),
    Field("input_fidelity", "accepted", "the vendor has no such choice"),
)
"""Beside all the others."""


@cache
def fields_of(kind: type[ImageRequest]) -> tuple[Field, ...]:
    return (*FIELDS, *EDIT_FIELDS) if issubclass(kind, ImageEditRequest) else FIELDS


@cache
def accepted(kind: type[ImageRequest]) -> tuple[Field, ...]:
    """Those that have no effect."""
    return tuple(row for row in fields_of(kind) if row.fate == "accepted")


@cache
def limited(kind: type[ImageRequest]) -> tuple[Field, ...]:
    """Those with refused values."""
    return tuple(row for row in fields_of(kind) if row.refusal)


@cache
def known(kind: type[ImageRequest]) -> frozenset[str]:
    return frozenset(row.name for row in fields_of(kind))


KNOWN = known(ImageRequest)


def refuse_unsupported(request: ImageRequest) -> None:
    """Raises InvalidRequest whose `param` names the first field that the vendor cannot honour."""
    for row in limited(type(request)):
        value = getattr(request, row.name)
        if value is not None and value not in row.taken:
            raise InvalidRequest(row.refusal, param=row.name, code="unsupported_value")


def ignored(request: ImageRequest, *, quality_counts: bool) -> tuple[str, ...]:
    """Names of the given fields that have no effect."""
    given = ((row, getattr(request, row.name)) for row in accepted(type(request)))
    names = [row.name for row, value in given if value is not None and value not in row.taken]
    return tuple(names if quality_counts or request.quality is None else ["quality", *names])


FOREIGN: dict[str, str] = {
    "batch_size": "n",
    "image_size": "size",
    "negativePrompt": "negative_prompt",
    "num_images": "n",
    "num_images_per_prompt": "n",
    "num_outputs": "n",
    "prompt_enhancement": "prompt_extend",
    "promptExtend": "prompt_extend",
    "responseFormat": "response_format",
}
"""Other names of fields that the gateway has. A field under its own name comes first."""
UNPRINTABLE = re.compile(r"[^!-+\--~]")
SHOWN_NAME = 64
SHOWN_NAMES = 20


def adapted(
    body: Mapping[str, Any], kind: type[ImageRequest] = ImageRequest
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The known fields, and the names of the others; for tenants with `unknown_parameters: ignore`.

    `image_size` and `batch_size` become `size` and `n`. Text that spells a number or a boolean is
    read as one later.
    """
    names = known(kind)
    fields = {name: value for name, value in body.items() if name in names and value != ""}
    left_out = []
    for name, value in body.items():
        own = FOREIGN.get(name)
        if own is not None and fields.get(own) is None and value not in ("", None):
            fields[own] = value
        elif name not in names:
            left_out.append(shown(name))
    return fields, tuple(left_out[:SHOWN_NAMES])


def shown(name: str) -> str:
    """A caller's own name as a header may hold it, in a list that commas divide."""
    return UNPRINTABLE.sub("?", name[:SHOWN_NAME])

"""Requests of programs that speak another vendor's dialect, for tenants that allow it.

`image_size` and `batch_size` become `size` and `n`; unknown fields are named as ignored. Text that
spells a number or a boolean is read as one later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateway.protocol.openai import ImageRequest
from gateway.translate.fields import known

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
    """The known fields, and the names of the others."""
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

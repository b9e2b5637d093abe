"""Calls as the simulator reads them, without a server."""

from __future__ import annotations

import json
from base64 import b64encode
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from gateway.simulator.models import load_models
from gateway.simulator.replies import Refused, Replies
from gateway.simulator.validation import Generation, Rules, read_generation

MODELS = load_models()
ERRORS = Replies()
SYNC = Rules("sync")
TEXT = {"text": "a cat"}
PIXEL = {"image": "https://example.com/cat.png"}


def picture(width: int, height: int) -> str:
    """A data URI of a blank PNG."""
    buffer = BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode()


def content_of(*items: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(items)}]}


def read(
    model: Any = "qwen-image-2.0-pro",
    given: Any = None,
    parameters: Any = None,
    rules: Rules = SYNC,
) -> Generation:
    body = {"model": model, "input": given or content_of({"text": "a cat"})}
    if parameters is not None:
        body["parameters"] = parameters
    return read_generation(json.dumps(body).encode(), MODELS, rules)


def refusal(**call: Any) -> tuple[int, str, str]:
    """Status, code and message of a refused call."""
    with pytest.raises(Refused) as caught:
        read(**call)
    status, body = ERRORS.error(caught.value, "id")
    return status, body["code"], body["message"]

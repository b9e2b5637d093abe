"""Every reply file that the simulator serves: it decodes, and becomes the answer it should."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from gateway.protocol.dashscope import GenerationReply
from gateway.translate.response import image_urls

REPLIES = Path(__file__).parents[2] / "gateway" / "simulator" / "replies"
SUCCESSES = sorted(path.stem for path in (REPLIES / "success").glob("*.json"))
ERRORS = sorted(path.stem for path in (REPLIES / "errors").glob("*.json"))


def decoded(kind: str, name: str) -> GenerationReply:
    body = json.loads((REPLIES / kind / f"{name}.json").read_text())["body"]
    return msgspec.json.decode(msgspec.json.encode(body), type=GenerationReply)


@pytest.mark.parametrize("name", SUCCESSES)
def test_a_success_decodes(name: str) -> None:
    """Images, as many as its content has; none where it is a task."""
    found = image_urls(decoded("success", name))

    assert bool(found) != name.startswith("task-")
    assert all(url.startswith("https://") for url in found)


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_decodes(name: str) -> None:
    reply = decoded("errors", name)

    assert reply.code
    assert reply.message
    assert image_urls(reply) == []

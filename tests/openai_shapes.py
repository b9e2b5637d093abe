"""Answers against the published schemas: OpenAI's specification and openai-python's own types.

The specification writes `nullable: true` as OpenAPI 3.0 did, inside a 3.1 document, where that word
means nothing: it is rewritten before requests are checked.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

import httpx
from jsonschema import Draft202012Validator, FormatChecker

SCHEMAS: Final = Path(__file__).parent / "contract" / "schemas"
KEYS_OF_AN_ERROR: Final = {"message", "type", "param", "code"}


@cache
def specification() -> dict[str, Any]:
    """OpenAI's, nulls put right."""
    text = (SCHEMAS / "openai-images-spec.json").read_text()
    document: dict[str, Any] = with_nulls(json.loads(text))
    return document


def with_nulls(node: Any) -> Any:
    """`nullable: true` in the words of JSON Schema 2020-12."""
    if isinstance(node, list):
        return [with_nulls(item) for item in node]
    if not isinstance(node, dict):
        return node
    told = {key: with_nulls(value) for key, value in node.items() if key != "nullable"}
    return {"anyOf": [told, {"type": "null"}]} if node.get("nullable") is True else told


@cache
def by_specification(name: str) -> Draft202012Validator:
    """A validator for one schema of the specification."""
    components = specification()["components"]
    schema = {"$ref": f"#/components/schemas/{name}", "components": components}
    return Draft202012Validator(schema, format_checker=FormatChecker())


@cache
def by_sdk(name: str) -> Draft202012Validator:
    """A validator for one type of openai-python 3."""
    text = (SCHEMAS / "openai-images-sdk-schemas.json").read_text()
    return Draft202012Validator(json.loads(text)["schemas"][name])


def check_images(response: httpx.Response) -> None:
    """A successful answer of the images endpoint."""
    body = json_of(response)
    by_specification("ImagesResponse").validate(body)
    by_sdk("ImagesResponse").validate(body)
    assert type(body["created"]) is int
    for image in body["data"]:
        assert len(image) == 1, "one of url and b64_json, and no nulls"


def check_events(response: httpx.Response) -> None:
    """A streamed answer: every event, and nothing that an SDK chokes on."""
    assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
    for text in response.text.removesuffix("\n\n").split("\n\n"):
        if text != ":":
            check_event(text)


def check_event(text: str) -> dict[str, Any]:
    """One event without the blank line behind it; its data."""
    named, data = text.split("\n")
    event: dict[str, Any] = json.loads(data.removeprefix("data: "))
    assert named == f"event: {event['type']}"
    if event["type"] == "error":
        by_specification("ErrorResponse").validate({"error": event["error"]})
        assert set(event["error"]) == KEYS_OF_AN_ERROR
    else:
        name = {
            "image_generation": "ImageGenCompletedEvent",
            "image_edit": "ImageEditCompletedEvent",
        }[event["type"].removesuffix(".completed")]
        by_specification(name).validate(event)
        by_sdk(name).validate(event)
    return event


def check_error(response: httpx.Response) -> None:
    """Any failure, the framework's own included."""
    body = json_of(response)
    by_specification("ErrorResponse").validate(body)
    assert set(body) == {"error"}
    assert set(body["error"]) == KEYS_OF_AN_ERROR
    assert body["error"]["message"]
    assert body["error"]["code"]


def json_of(response: httpx.Response) -> Any:
    """The body; the SDKs read it only where the content type says JSON."""
    assert response.headers["content-type"].partition(";")[0] == "application/json"
    return json.loads(response.content)

"""Makes the calls of a scenario (see run.py) with whichever `openai` is installed beside it."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import struct
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import openai

PNG_START = b"\x89PNG\r\n\x1a\n"


class Wire(threading.local):
    """What the calling thread's current call sent and got."""

    attempts = 0
    headers: dict[str, str]

    def reset(self) -> None:
        self.attempts = 0
        self.headers = {}

    def sent(self, _: Any) -> None:
        self.attempts += 1

    def got(self, response: Any) -> None:
        self.headers = dict(response.headers)


def main() -> None:
    scenario = json.load(sys.stdin)
    wire = Wire()
    client = connect(scenario)
    client._client.event_hooks = {"request": [wire.sent], "response": [wire.got]}
    with ThreadPoolExecutor(scenario.get("concurrency", 1)) as threads:
        for reply in threads.map(functools.partial(answer, client, wire), scenario["calls"]):
            print(json.dumps(reply), flush=True)  # noqa: T201  # the answer goes to stdout


def connect(scenario: dict[str, Any]) -> openai.OpenAI:
    """OpenAI's client, or Azure's where the scenario names an `azure` API version."""
    more = {
        "api_key": scenario["api_key"],
        "max_retries": scenario.get("max_retries", 0),
        "timeout": scenario.get("timeout", 30),
    }
    if "azure" in scenario:
        where = "base_url" if scenario["base_url"].endswith("/v1") else "azure_endpoint"
        more[where] = scenario["base_url"]
        return openai.AzureOpenAI(api_version=scenario["azure"], **more)
    return openai.OpenAI(base_url=scenario["base_url"], **more)


def answer(client: openai.OpenAI, wire: Wire, call: dict[str, Any]) -> dict[str, Any]:
    wire.reset()
    started = time.monotonic()
    try:
        reply = {"ok": True, **succeed(client, call)}
    except openai.OpenAIError as error:
        reply = {"ok": False, **describe(error)}
    elapsed_s = time.monotonic() - started
    return {
        **reply,
        "attempts": wire.attempts,
        "headers": wire.headers,
        "elapsed_s": round(elapsed_s, 3),
    }


def succeed(client: openai.OpenAI, call: dict[str, Any]) -> dict[str, Any]:
    method: Any = functools.reduce(getattr, call["method"].split("."), client)
    positional = [call["id"]] if "id" in call else []
    result = method(*positional, **call.get("args", {}), **pictures(call))
    if call["method"] == "models.list":
        return {"ids": [model.id for model in result]}
    if call.get("args", {}).get("stream"):
        return stream(result)
    common = {
        "request_id": result._request_id,
        "created": result.created,
        "type_of_created": type(result.created).__name__,
        "raw_keys": sorted(result.model_dump(exclude_unset=True)),
    }
    if call["method"] == "models.retrieve":
        return {"id": result.id, "owned_by": result.owned_by, **common}
    images = [image(item, fetch=call.get("fetch", False)) for item in result.data]
    return {**common, "data": images}


def pictures(call: dict[str, Any]) -> dict[str, Any]:
    """The files of an edit, each given in the way that the scenario names."""
    ways: dict[str, Any] = {
        "path": Path,
        "file": lambda path: Path(path).open("rb"),  # noqa: SIM115  # the SDK reads it
        "bytes": lambda path: Path(path).read_bytes(),
        "BytesIO": lambda path: BytesIO(Path(path).read_bytes()),
        "tuple": lambda path: ("a.png", Path(path).read_bytes(), "image/png"),
    }
    found = [ways[one["as"]](one["path"]) for one in call.get("pictures", ())]
    if not found:
        return {}
    return {"image": found[0] if len(found) == 1 and not call.get("list") else found}


def stream(result: Any) -> dict[str, Any]:
    """Every event, and the error that ended them, if one did."""
    events: list[dict[str, Any]] = []
    try:
        events.extend(event(item) for item in result)
    except openai.OpenAIError as error:
        return {"ok": False, "events": events, **describe(error)}
    return {"events": events}


def event(item: Any) -> dict[str, Any]:
    picture = base64.b64decode(item.b64_json, validate=True)
    return {
        "class": type(item).__name__,
        "type": item.type,
        "size": item.size,
        "total_tokens": item.usage.total_tokens,
        "b64_sha256": sha256(picture),
    }


def image(item: Any, *, fetch: bool) -> dict[str, Any]:
    picture = base64.b64decode(item.b64_json, validate=True) if item.b64_json else None
    described = {
        "url": item.url,
        "b64_sha256": sha256(picture),
        "b64_len": len(item.b64_json) if item.b64_json else None,
        "png_size": png_size(picture),
        "revised_prompt": item.revised_prompt,
        "raw_keys": sorted(item.model_dump(exclude_unset=True)),
    }
    if fetch and item.url:
        described["fetched"] = download(item.url)
    return described


def download(url: str) -> dict[str, Any]:
    """As a browser would: the URL alone, no key."""
    with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310  # the gateway's answer
        body = response.read()
        return {
            "status": response.status,
            "content_type": response.headers["content-type"],
            "sha256": sha256(body),
            "len": len(body),
            "png_size": png_size(body),
        }


def sha256(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def png_size(content: bytes | None) -> list[int] | None:
    if content is None or not content.startswith(PNG_START):
        return None
    return list(struct.unpack(">II", content[16:24]))


def describe(error: openai.OpenAIError) -> dict[str, Any]:
    return {
        "class": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "type": getattr(error, "type", None),
        "param": getattr(error, "param", None),
        "message": str(error),
        "request_id": getattr(error, "request_id", None),
    }


main()

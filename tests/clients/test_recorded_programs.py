"""Requests as programs that people use send them; `docs/clients.md` says how each is set up.

Recorded from the programs themselves, or read from their sources: Open WebUI 0.12.4, LibreChat,
n8n 2, LobeChat, Cherry Studio, AI SDK 4 to 6, LangChain, LiteLLM 1.109, Spring AI, LangChain4j,
Semantic Kernel, Home Assistant, promptfoo, pydantic-ai, Activepieces.
"""

from __future__ import annotations

import base64
import time
from typing import Any, Final, Literal

import pytest
from msgspec import Struct
from msgspec.structs import replace

from gateway.config import Cache, Tenant
from tests.pictures import picture
from tests.running import ACME, Client, HeldClock, account, config_for, tenants
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

OPENAI: Final = "/v1/images/generations"
DEPLOYED: Final = "/openai/deployments/gpt-image-1/images/generations"
SDK: Final = {"x-stainless-lang": "js", "x-stainless-retry-count": "0", "accept-encoding": "gzip"}


class Program(Struct, frozen=True, kw_only=True):
    """One request. `needs` is what the program reads of each image, and fails without."""

    body: dict[str, Any]
    needs: Literal["b64_json", "url"]
    path: str = OPENAI
    headers: dict[str, str] = {}
    key: str | None = ACME
    """As a bearer token; None: in another header."""
    tenant: dict[str, Any] = {}
    """How its tenant is set up."""
    model: str = "qwen-image-2.0-pro"
    size: str = "1024x1024"
    """What the vendor is asked for."""


PROGRAMS: Final[dict[str, Program]] = {
    "Open WebUI": Program(
        body={
            "model": "dall-e-2",
            "prompt": "a fox",
            "n": 1,
            "size": "512x512",
            "response_format": "b64_json",
        },
        headers={"x-openwebui-user-name": "Ann", "x-openwebui-user-role": "admin"},
        needs="b64_json",
        model="qwen-image-2.0",
        size="512x512",
    ),
    "Open WebUI, a GPT model": Program(
        body={"model": "gpt-image-1", "prompt": "a fox", "n": 1, "size": "1024x1024"},
        path=f"{OPENAI}?api-version=2025-04-01-preview",
        needs="b64_json",
    ),
    "LibreChat": Program(
        body={
            "model": "gpt-image-1",
            "prompt": "a fox",
            "n": 1,
            "background": "auto",
            "output_format": "png",
            "quality": "auto",
            "size": "auto",
        },
        headers=SDK,
        needs="b64_json",
        size="2048x2048",
    ),
    "LibreChat's older tool": Program(
        body={
            "model": "dall-e-3",
            "quality": "standard",
            "style": "vivid",
            "size": "1024x1024",
            "prompt": "a fox",
            "n": 1,
        },
        headers=SDK,
        needs="url",
    ),
    "n8n": Program(
        body={
            "prompt": "a fox",
            "model": "dall-e-3",
            "n": 1,
            "quality": "standard",
            "size": "1024x1024",
            "style": "vivid",
            "response_format": "b64_json",
        },
        needs="b64_json",
    ),
    "n8n, by address": Program(
        body={"prompt": "a fox", "model": "dall-e-2", "response_format": "url"},
        needs="url",
        model="qwen-image-2.0",
    ),
    "n8n, a GPT model": Program(
        body={"prompt": "a fox", "model": "gpt-image-1", "size": "1024x1024"}, needs="b64_json"
    ),
    "LobeChat": Program(
        body={"model": "gpt-image-1", "n": 1, "prompt": "a fox", "quality": "high"},
        headers=SDK,
        needs="b64_json",
        size="2048x2048",
    ),
    "LobeChat, dall-e": Program(
        body={
            "model": "dall-e-3",
            "n": 1,
            "prompt": "a fox",
            "size": "1024x1024",
            "response_format": "b64_json",
        },
        headers=SDK,
        needs="b64_json",
    ),
    "Cherry Studio's painting page": Program(
        body={
            "model": "qwen-image-2.0",
            "prompt": "a fox",
            "negative_prompt": "",
            "image_size": "1024x1024",
            "batch_size": 1,
            "num_inference_steps": 25,
            "guidance_scale": 4.5,
            "seed": "1234",
            "prompt_enhancement": False,
        },
        tenant={"unknown_parameters": "ignore"},
        needs="url",
        model="qwen-image-2.0",
    ),
    "Cherry Studio, OpenAI's page": Program(
        body={
            "model": "gpt-image-1",
            "prompt": "a fox",
            "size": "1024x1024",
            "n": 1,
            "quality": "auto",
            "moderation": "auto",
            "background": "auto",
        },
        needs="b64_json",
    ),
    "AI SDK, a name that is not OpenAI's": Program(
        body={
            "model": "qwen-image-2.0",
            "prompt": "a fox",
            "n": 1,
            "size": "1024x1024",
            "response_format": "b64_json",
        },
        headers={"user-agent": "ai/6.0.326 ai-sdk/openai/3.0.141 runtime/node.js/v20"},
        needs="b64_json",
        model="qwen-image-2.0",
    ),
    "AI SDK, compatible, its options beside": Program(
        body={
            "model": "qwen-image-2.0",
            "prompt": "a fox",
            "n": 1,
            "size": "1024x1024",
            "negative_prompt": "dogs",
        },
        needs="url",
        model="qwen-image-2.0",
    ),
    "AI SDK for Azure": Program(
        body={"model": "gpt-image-1", "prompt": "a fox", "n": 1, "size": "1024x1024"},
        path="/openai/images/generations",
        headers={"api-key": ACME},
        key=None,
        needs="b64_json",
    ),
    "LangChain.js": Program(
        body={
            "model": "dall-e-3",
            "prompt": "a fox",
            "n": 1,
            "size": "1024x1024",
            "response_format": "url",
            "style": "vivid",
            "quality": "standard",
            "user": "someone",
        },
        headers=SDK,
        needs="url",
    ),
    "LiteLLM": Program(
        body={"model": "gpt-image-1", "prompt": "a fox", "size": "1024x1024", "user": "u"},
        headers={**SDK, "x-stainless-lang": "python"},
        needs="b64_json",
    ),
    "LiteLLM on Azure's paths, no model, two keys": Program(
        body={"prompt": "a fox", "size": "1024x1024"},
        path=f"{DEPLOYED}?api-version=2025-04-01-preview",
        headers={"api-key": ACME},
        needs="b64_json",
    ),
    "Activepieces on Azure's paths": Program(
        body={"prompt": "a fox", "n": 1, "size": "1024x1024", "quality": "auto"},
        path=f"{DEPLOYED}?api-version=2024-10-21",
        headers={"api-key": ACME},
        key=None,
        needs="b64_json",
    ),
    "Spring AI": Program(
        body={"model": "gpt-image-1-mini", "prompt": "a fox"},
        headers={**SDK, "x-stainless-lang": "java"},
        needs="b64_json",
        model="qwen-image-2.0",
        size="2048x2048",
    ),
    "LangChain4j": Program(
        body={
            "model": "dall-e-3",
            "prompt": "a fox",
            "n": 1,
            "size": "1024x1024",
            "quality": "standard",
            "style": "vivid",
            "response_format": "url",
        },
        headers={
            "connection": "Upgrade, HTTP2-Settings",
            "upgrade": "h2c",
            "http2-settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
        },
        needs="url",
    ),
    "Semantic Kernel for .NET": Program(
        body={"prompt": "a fox", "model": "gpt-image-1", "size": "1024x1024"},
        headers={"user-agent": "OpenAI/2.5.0 (.NET 9.0)"},
        needs="b64_json",
    ),
    "Home Assistant": Program(
        body={
            "model": "dall-e-3",
            "prompt": "a fox",
            "size": "1024x1024",
            "quality": "standard",
            "style": "vivid",
            "response_format": "url",
            "n": 1,
        },
        headers={**SDK, "x-stainless-lang": "python", "x-stainless-async": "async:asyncio"},
        needs="url",
    ),
    "promptfoo": Program(
        body={
            "model": "dall-e-3",
            "prompt": "a fox",
            "n": 1,
            "size": "1024x1024",
            "response_format": "url",
        },
        needs="url",
    ),
    "pydantic-ai": Program(
        body={"model": "qwen-image-2.0", "prompt": "a fox", "size": "1024x1024"},
        headers={**SDK, "x-stainless-lang": "python"},
        tenant={"response_format": "b64_json"},
        needs="b64_json",
        model="qwen-image-2.0",
    ),
}


class Edit(Struct, frozen=True, kw_only=True):
    """A form. Each part is a name, a file name, and the type that it is said to have."""

    parts: tuple[tuple[str, str, str | None], ...]
    fields: dict[str, str]
    needs: Literal["b64_json", "url"] = "b64_json"
    path: str = "/v1/images/edits"
    headers: dict[str, str] = {}
    key: str | None = ACME
    tenant: dict[str, Any] = {}
    model: str = "qwen-image-2.0-pro"


EDITS: Final[dict[str, Edit]] = {
    "openai-python, from memory": Edit(
        parts=(("image", "upload", "application/octet-stream"),),
        fields={"model": "gpt-image-1", "prompt": "a hat"},
    ),
    "Open WebUI": Edit(
        parts=(("image", "image.png", "image/png"),),
        fields={"model": "gpt-image-1", "prompt": "a hat", "n": "1", "size": "1024x1024"},
    ),
    "Open WebUI, several": Edit(
        parts=(("image[]", "image.png", "image/png"), ("image[]", "image.png", "image/png")),
        fields={"model": "qwen-image-2.0", "prompt": "a hat", "response_format": "b64_json"},
        model="qwen-image-2.0",
    ),
    "LibreChat": Edit(
        parts=(("image[]", "image.png", "image/png"),),
        fields={"model": "gpt-image-1", "prompt": "a hat", "quality": "auto", "size": "auto"},
        headers={"user-agent": "axios/1.12.2"},
    ),
    "LibreChat on Azure": Edit(
        parts=(("image[]", "image.png", "image/png"),),
        fields={"model": "gpt-image-1", "prompt": "a hat", "quality": "auto", "size": "auto"},
        path="/openai/deployments/gpt-image-1/images/edits?api-version=2025-04-01-preview",
        headers={"api-key": ACME},
        key=None,
    ),
    "n8n": Edit(
        parts=(("image[]", "photo.jpg", "image/jpeg"),),
        fields={"model": "gpt-image-1", "prompt": "a hat", "n": "1", "quality": "high"},
    ),
    "n8n, another model": Edit(
        parts=(("image", "photo.jpg", "image/jpeg"),),
        fields={"model": "dall-e-2", "prompt": "a hat", "n": "1", "response_format": "url"},
        needs="url",
        model="qwen-image-2.0",
    ),
    "AI SDK": Edit(
        parts=(("image", "blob", "image/png"),),
        fields={"model": "gpt-image-1", "prompt": "a hat", "n": "1", "size": "1024x1024"},
    ),
    "AI SDK, several, a name that is not OpenAI's": Edit(
        parts=(("image[]", "blob", "image/png"), ("image[]", "blob", "image/png")),
        fields={"model": "qwen-image-2.0", "prompt": "a hat", "n": "1"},
        tenant={"response_format": "b64_json"},
        model="qwen-image-2.0",
    ),
    "LiteLLM": Edit(
        parts=(("image[]", "image.png", "image/png"),),
        fields={"model": "gpt-image-1", "prompt": "a hat", "stream": "false"},
    ),
    "LobeChat": Edit(
        parts=(("image", "image.png", "image/png"),),
        fields={"model": "gpt-image-1", "prompt": "a hat", "n": "1", "input_fidelity": "high"},
        headers=SDK,
    ),
    "Cherry Studio": Edit(
        parts=(("image[]", "C:\\Users\\ann\\fox.png", None),),
        fields={
            "model": "gpt-image-1",
            "prompt": "a hat",
            "moderation": "auto",
            "background": "auto",
            "quality": "auto",
            "n": "1",
        },
    ),
    "Semantic Kernel, which names no model": Edit(
        parts=(("image[]", "upload", "application/octet-stream"),),
        fields={"prompt": "a hat"},
        headers={**SDK, "x-stainless-lang": "python"},
        tenant={"response_format": "b64_json"},
    ),
}


def tenant_of(program: Program | Edit) -> tuple[Tenant, ...]:
    return tuple(replace(each, **program.tenant) for each in tenants())


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_gets_what_it_reads_and_pays_once(
    name: str, start: Start, simulator: SimulatedDashScope
) -> None:
    program = PROGRAMS[name]
    gateway = start(config_for(account(simulator.base_url), tenants=tenant_of(program)))

    answer = gateway.ask(
        "POST", program.path, key=program.key, json=program.body, headers=program.headers
    )

    assert answer.status_code == 200, answer.text
    [image] = answer.json()["data"]
    assert is_image(image[program.needs], gateway)
    assert answer.headers["x-gateway-model"] == program.model
    assert answer.headers["x-gateway-size"] == program.size
    assert sum(simulator.state(log=0)["paid"].values()) == 1


@pytest.mark.parametrize("name", EDITS)
def test_the_program_s_edit_gets_what_it_reads_and_pays_once(
    name: str, start: Start, simulator: SimulatedDashScope
) -> None:
    edit = EDITS[name]
    gateway = start(config_for(account(simulator.base_url), tenants=tenant_of(edit)))
    files = [
        (part, (file, picture(seed=index), type_))
        for index, (part, file, type_) in enumerate(edit.parts)
    ]

    answer = gateway.ask(
        "POST", edit.path, key=edit.key, files=files, data=edit.fields, headers=edit.headers
    )

    assert answer.status_code == 200, answer.text
    [image] = answer.json()["data"]
    assert is_image(image[edit.needs], gateway)
    assert answer.headers["x-gateway-model"] == edit.model
    [call] = simulator.state()["log"]
    content = call["body"]["input"]["messages"][0]["content"]
    assert len(content) == len(edit.parts) + 1
    assert sum(simulator.state(log=0)["paid"].values()) == 1


def is_image(found: str, gateway: Client) -> bool:
    if found.startswith("http"):
        return gateway.http.get(found).headers["content-type"] == "image/png"
    return base64.b64decode(found, validate=True).startswith(b"\x89PNG")


@pytest.mark.parametrize("base", ["/v1", "/openai"])
def test_open_webui_and_n8n_list_the_models_before_anything_else(
    base: str, gateway: Client
) -> None:
    """n8n's picker shows those alone whose names look like OpenAI's."""
    listed = gateway.ask("GET", f"{base}/models").json()["data"]

    names = {model["id"] for model in listed}
    assert {"dall-e-3", "gpt-image-1", "qwen-image-2.0-pro"} <= names


def test_litellm_s_health_checks_cost_one_picture(
    start: Start, simulator: SimulatedDashScope, clock: HeldClock
) -> None:
    """It makes a picture for each of them; with `cache: {mode: always}` the first one only."""
    clock.now = time.time()  # the vendor's, so that its URLs live
    cached = tuple(replace(each, cache=Cache(mode="always")) for each in tenants())
    gateway = start(config_for(account(simulator.base_url), tenants=cached))

    checks = [gateway.generate("test from litellm", model="dall-e-2") for _ in range(3)]

    assert [check.headers["x-cache"] for check in checks] == ["miss", "hit", "hit"]
    assert sum(simulator.state(log=0)["paid"].values()) == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/chat/completions", 400),
        ("/v1/responses", 400),
        ("/openai/deployments/gpt-4o/chat/completions", 400),
        ("/v1/images/variations", 410),
    ],
)
def test_what_is_no_image_endpoint_is_told_apart_from_a_wrong_address(
    path: str, status: int, gateway: Client
) -> None:
    """LiteLLM takes a deployment that answers 404 out of service."""
    answer = gateway.ask("POST", path, json={"model": "gpt-image-1"})

    assert answer.status_code == status

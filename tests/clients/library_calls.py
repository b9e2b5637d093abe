"""Makes the calls of a scenario (see run.py) by the libraries that are installed beside it."""
# ruff: noqa: PLC0415  # each of them is imported where it is used: no environment has all

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

GPT = "gpt-image-1"
DALL_E = "dall-e-3"
SIZE = "1024x1024"


def langchain(prompt: str, base_url: str, api_key: str) -> bytes:
    from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

    wrapper = DallEAPIWrapper(base_url=base_url, api_key=api_key)
    return download(wrapper.run(prompt))


def llama_index(prompt: str, base_url: str, api_key: str) -> bytes:
    """Its tool has no setting for the address but the environment's."""
    from llama_index.tools.openai.image_generation.base import OpenAIImageGenerationToolSpec

    os.environ["OPENAI_BASE_URL"] = base_url
    tool = OpenAIImageGenerationToolSpec(api_key=api_key)
    return download(tool.image_generation(prompt, model=DALL_E))


def litellm(prompt: str, base_url: str, api_key: str) -> bytes:
    import litellm

    made = litellm.image_generation(
        prompt=prompt, model=f"openai/{GPT}", api_base=base_url, api_key=api_key, size=SIZE
    )
    return base64.b64decode(made.data[0].b64_json)


def litellm_azure(prompt: str, base_url: str, api_key: str) -> bytes:
    import litellm

    made = litellm.image_generation(
        prompt=prompt,
        model=f"azure/{GPT}",
        api_base=base_url.removesuffix("/v1"),
        api_key=api_key,
        api_version="2025-04-01-preview",
        size=SIZE,
    )
    return base64.b64decode(made.data[0].b64_json)


def litellm_edit(prompt: str, base_url: str, api_key: str, picture: bytes) -> bytes:
    import litellm

    made = litellm.image_edit(
        image=picture, prompt=prompt, model=f"openai/{GPT}", api_base=base_url, api_key=api_key
    )
    return base64.b64decode(made.data[0].b64_json)


def haystack(prompt: str, base_url: str, api_key: str) -> bytes:
    from haystack.components.generators import OpenAIImageGenerator
    from haystack.utils import Secret

    key = Secret.from_token(api_key)
    generator = OpenAIImageGenerator(model=GPT, api_base_url=base_url, api_key=key)
    return base64.b64decode(generator.run(prompt)["images"][0])


def agno(prompt: str, base_url: str, api_key: str) -> bytes:
    """A tool of agents: its errors are text for the model."""
    from agno.tools.openai import OpenAITools

    os.environ["OPENAI_BASE_URL"] = base_url
    found: Any = OpenAITools(api_key=api_key, image_model=GPT).generate_image(prompt)
    if not found.images:
        raise ToolError(found.content)
    picture: bytes = found.images[0].content
    return picture


class ToolError(Exception):
    """What an agent's tool says instead of raising."""


def kernel_service(base_url: str, api_key: str) -> Any:
    from openai import AsyncOpenAI
    from semantic_kernel.connectors.ai.open_ai import OpenAITextToImage

    client = AsyncOpenAI(base_url=base_url, api_key=api_key)
    return OpenAITextToImage(ai_model_id=GPT, async_client=client)


def semantic_kernel(prompt: str, base_url: str, api_key: str) -> bytes:
    [made] = asyncio.run(kernel_service(base_url, api_key).generate_images(prompt))
    return base64.b64decode(made)


def semantic_kernel_edit(prompt: str, base_url: str, api_key: str, picture: bytes) -> bytes:
    service = kernel_service(base_url, api_key)
    [made] = asyncio.run(service.edit_image(prompt, image_files=[io.BytesIO(picture)]))
    return base64.b64decode(made)


LIBRARIES: dict[str, Callable[..., bytes]] = {
    "LangChain": langchain,
    "LlamaIndex": llama_index,
    "LiteLLM": litellm,
    "LiteLLM on Azure's paths": litellm_azure,
    "Haystack": haystack,
    "Agno": agno,
    "Semantic Kernel": semantic_kernel,
}
EDITORS: dict[str, Callable[..., bytes]] = {
    "LiteLLM": litellm_edit,
    "Semantic Kernel": semantic_kernel_edit,
}


def main() -> None:
    scenario = json.load(sys.stdin)
    base_url = f"{scenario['url']}/v1"
    for call in scenario["calls"]:
        sent = [call["prompt"], base_url, scenario["api_key"]]
        library = LIBRARIES[call["library"]]
        if "picture" in call:
            library = EDITORS[call["library"]]
            sent.append(base64.b64decode(call["picture"]))
        print(json.dumps(answer(library, sent)))  # noqa: T201 - the answer goes to stdout


def answer(library: Callable[..., bytes], sent: list[Any]) -> dict[str, Any]:
    try:
        picture = library(*sent)
    except Exception as error:  # noqa: BLE001 - whatever the library makes of it
        kind = type(error)
        name = f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"
        return {"ok": False, "class": name, "message": str(error), "status": status(error)}
    return {"ok": True, "sha256": hashlib.sha256(picture).hexdigest()}


def status(error: BaseException) -> int | None:
    """Its own, or that of the error behind it."""
    found: int | None = getattr(error, "status_code", None)
    return status(error.__cause__) if found is None and error.__cause__ else found


def download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - the gateway's answer
        picture: bytes = response.read()
    return picture


main()

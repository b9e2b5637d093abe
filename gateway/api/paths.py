"""Where an operation is served, and the answers at paths that nothing serves."""

from __future__ import annotations

from typing import Final

from gateway.domain.errors import (
    CallModeForbidden,
    EndpointRetired,
    GatewayError,
    NotFound,
    Unsupported,
)

DEPLOYMENT: Final = "deployment"
"""Azure's name of a model, in the path."""
PREFIXES: Final = ("/v1", "", "/openai/v1", "/openai")
"""OpenAI's, a base URL without it, and Azure's two."""
NATIVE: Final = "/api/v1"
"""The base of the vendor's own paths, where answers and errors have the vendor's own form."""
NATIVE_GENERATION: Final = f"{NATIVE}/services/aigc/multimodal-generation/generation"


def is_native(path: str) -> bool:
    return path.startswith(f"{NATIVE}/")


def prefixed(operation: str) -> list[str]:
    """The documented path comes first."""
    return [prefix + operation for prefix in PREFIXES]


def of_deployments(operation: str) -> list[str]:
    """Azure's SDK puts `/deployments/NAME` behind any base URL."""
    paths = [f"{prefix}/deployments/{{{DEPLOYMENT}:str}}{operation}" for prefix in PREFIXES]
    return paths[::-1]


SHOWN_PATH = 100
ASYNCHRONOUS = tuple(
    f"{NATIVE}/services/aigc/{task}/" for task in ("image-generation", "image2image", "text2image")
)
"""The vendor's paths that answer with a task."""
FAMILIES = frozenset(
    {
        *("assistants", "audio", "batches", "chat", "completions", "containers", "conversations"),
        *("embeddings", "engines", "evals", "files", "fine-tunes", "fine_tuning", "moderations"),
        *("organization", "realtime", "responses", "threads", "uploads", "vector_stores", "videos"),
    }
)
"""The first part of OpenAI's other paths, behind its prefix."""


def unserved(method: str, path: str) -> GatewayError:
    parts = behind_prefix([part for part in path.split("/") if part])
    asked = f"{method} {path[:SHOWN_PATH].encode(errors='replace').decode()}"
    if is_native(path):
        return unserved_natively(path, asked)
    if parts[:2] == ["images", "variations"]:
        return EndpointRetired(
            "Image variations are retired, here as at OpenAI. "
            "Make images at POST /v1/images/generations instead."
        )
    if parts and parts[0] in FAMILIES:
        return Unsupported(
            "This gateway makes and edits images only, at POST /v1/images/generations and "
            "/v1/images/edits. "
            f"It does not serve {asked}: send that to another endpoint."
        )
    return NotFound(
        f"There is nothing at {asked}. Images are made at POST /v1/images/generations, "
        "so a client's base URL ends in /v1."
    )


def unserved_natively(path: str, asked: str) -> GatewayError:
    if path.startswith(ASYNCHRONOUS):
        return CallModeForbidden(
            "current user api does not support asynchronous calls. "
            f"Make images at POST {NATIVE_GENERATION}, as MultiModalConversation.call does."
        )
    return NotFound(
        f"There is nothing at {asked}. Of the vendor's own API this gateway serves synchronous "
        f"image generation only, at POST {NATIVE_GENERATION}."
    )


def behind_prefix(parts: list[str]) -> list[str]:
    """A path's parts without `v1`, or Azure's prefix."""
    while parts and parts[0] in {"openai", "v1"}:
        parts = parts[1:]
    return parts[2:] if parts[:1] == ["deployments"] else parts

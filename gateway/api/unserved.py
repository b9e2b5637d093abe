"""What a path is answered at which nothing is: OpenAI may have it, or a base URL is wrong."""

from __future__ import annotations

from gateway.domain.errors import EndpointRetired, GatewayError, NotFound, Unsupported

SHOWN_PATH = 100
FAMILIES = frozenset(
    {
        *("assistants", "audio", "batches", "chat", "completions", "containers", "conversations"),
        *("embeddings", "engines", "evals", "files", "fine-tunes", "fine_tuning", "moderations"),
        *("organization", "realtime", "responses", "threads", "uploads", "vector_stores", "videos"),
    }
)
"""The first part of OpenAI's other paths, behind its prefix."""


def unserved(method: str, path: str) -> GatewayError:
    """The error for a path that no route has."""
    parts = behind_prefix([part for part in path.split("/") if part])
    asked = f"{method} {path[:SHOWN_PATH].encode(errors='replace').decode()}"
    if parts[:2] == ["images", "variations"]:
        return EndpointRetired(
            "Image variations are retired, here as at OpenAI. "
            "Make images at POST /v1/images/generations instead."
        )
    if parts and parts[0] in FAMILIES:
        return Unsupported(
            "This gateway makes images only, at POST /v1/images/generations. "
            f"It does not serve {asked}: send that to another endpoint."
        )
    return NotFound(
        f"There is nothing at {asked}. Images are made at POST /v1/images/generations, "
        "so a client's base URL ends in /v1."
    )


def behind_prefix(parts: list[str]) -> list[str]:
    """A path's parts without `v1`, or what Azure puts before its own."""
    while parts and parts[0] in {"openai", "v1"}:
        parts = parts[1:]
    return parts[2:] if parts[:1] == ["deployments"] else parts

"""Where an operation is served: as documented, and in every other way that clients ask for it."""

from __future__ import annotations

from typing import Final

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

"""Text that others wrote, cut before patterns, masks or labels read each character of it."""

from __future__ import annotations

CODE = 128
"""Characters of an error code."""
ID = 128
"""Characters of a request id."""
MESSAGE = 500
"""Characters of a sentence."""
PAGE = 2048
"""Characters of a page that is no JSON."""
LOGGED = 8192
"""Characters of any one value in a log line."""


def cut(text: str, most: int) -> str:
    """The beginning of a longer text ends with the number of missing characters."""
    missing = len(text) - most
    return text if missing <= 0 else f"{text[:most]}… ({missing} more)"

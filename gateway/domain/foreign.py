"""Text that others wrote, cut before anything is done with it.

The upstream's codes, messages and ids, a client's headers and prompts may be as long as a message
is allowed to be. Whatever looks at each character (a pattern, the log's masking, a metric's label)
gets at most as many as these.
"""

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
    """The text; of a longer one its beginning, with the number of characters that are missing."""
    missing = len(text) - most
    return text if missing <= 0 else f"{text[:most]}… ({missing} more)"

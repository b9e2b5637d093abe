"""Looking for known secrets in everything that a gateway shows: a test's own, and the suite's."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote


class Search:
    """Collects what was shown, by where; `found` names the secrets in it, in any usual writing."""

    def __init__(self, secrets: dict[str, str]) -> None:
        self._needles = {
            name: [needle.encode() for needle in writings(text)] for name, text in secrets.items()
        }
        self._shown: list[tuple[str, bytes]] = []

    def add(self, where: str, text: str | bytes) -> None:
        """Keep something that was shown."""
        self._shown.append((where, text.encode() if isinstance(text, str) else text))

    @property
    def size(self) -> int:
        """How much there is to search."""
        return sum(len(text) for _, text in self._shown)

    def found(self) -> list[str]:
        """Which secret is where."""
        return [
            f"{name} in {where}"
            for where, text in self._shown
            for name, needles in self._needles.items()
            if any(needle in text for needle in needles)
        ]


class Shown:
    """What gateways of the present test showed elsewhere than in this process' output."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, str]] = []

    def add(self, where: str, text: str) -> None:
        """Keep something, from any thread."""
        self._parts.append((where, text))

    def take(self) -> list[tuple[str, str]]:
        """All of it, which is then forgotten."""
        taken, self._parts = self._parts, []
        return taken


SHOWN: Final = Shown()
"""`tests/conftest.py` searches it after every test."""


def writings(secret: str) -> Iterable[str]:
    """The secret itself, quoted for a URL, in base 64, reversed, and its tell-tale middle."""
    yield secret
    yield quote(secret, safe="")
    yield base64.b64encode(secret.encode()).decode().rstrip("=")[:-2]
    yield secret[::-1]
    middle = len(secret) // 2
    yield secret[max(0, middle - 8) : middle + 8]

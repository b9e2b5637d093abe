"""What an examination of the gateway's surroundings found, for `gateway doctor`."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

FindingState = Literal["ok", "warning", "fails"]


class Finding(Struct, frozen=True):
    """One line: what was looked at, how it is, and what to do where it is not well."""

    subject: str
    text: str
    state: FindingState = "ok"
    advice: str = ""

    def __str__(self) -> str:
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{self.state:9}{self.subject}: {self.text}{advice}"

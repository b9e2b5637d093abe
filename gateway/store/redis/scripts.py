"""The Lua scripts: each operation in a file of its own, after what it shares with others."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from msgspec import Struct


class Script(Struct, frozen=True):
    """One operation, ready to be sent."""

    source: str
    sha: str


def load(*names: str) -> Script:
    """The files `store/lua/<name>.lua`, one after the other."""
    folder = files("gateway.store") / "lua"
    source = "\n".join((folder / f"{name}.lua").read_text("utf-8") for name in names)
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())

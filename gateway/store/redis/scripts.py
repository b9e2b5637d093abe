"""The Lua scripts: each operation in a file of its own, after what it shares with others."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from msgspec import Struct
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from gateway.store.base import StoreUnavailable
from gateway.store.redis.pipeliner import Command, Reply
from gateway.store.redis.router import NodeRouter


class Script(Struct, frozen=True):
    """One operation, ready to be sent."""

    name: str
    """Of its last file."""
    source: str
    sha: str


def load(*names: str) -> Script:
    """The files `store/lua/<name>.lua`, one after the other."""
    folder = files("gateway.store") / "lua"
    source = "\n".join((folder / f"{name}.lua").read_text("utf-8") for name in names)
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return Script(names[-1], source, sha)


async def run(servers: NodeRouter, script: Script, keys: tuple[str, ...], args: Command) -> Reply:
    """One decision of the server that these keys live on. Raises StoreUnavailable."""
    rest = (len(keys), *keys, *args)
    reply = await servers.call(keys[0], ("EVALSHA", script.sha, *rest))
    if isinstance(reply, NoScriptError):
        # The server was restarted, or is another one since a failover.
        reply = await servers.call(keys[0], ("EVAL", script.source, *rest))
    if isinstance(reply, ResponseError):
        if isinstance(reply, ReadOnlyError) or "READONLY" in str(reply):
            await servers.reconnect(keys[0])
        raise StoreUnavailable(f"Redis: {reply}")
    return reply

"""The Lua scripts: a file per operation, behind shared ones; arguments are MessagePack."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct
from redis.exceptions import (
    AskError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
)

from gateway.store.availability import StoreUnavailable
from gateway.store.redis.pipeliner import Command, Reply
from gateway.store.redis.router import NodeRouter

Args: TypeAlias = dict[str, Any]
"""None is nil."""

TAIR = (
    "this server, or the proxy before it, takes only scripts that name each key literally: set "
    "script_check_enable to 0 (Tair, ApsaraDB), or connect to its nodes"
)
CLUSTER = "this is a cluster: use redis+cluster:// in redis.url"
ACL = "its user needs +@scripting, +@read, +@write and +time on the keys of redis.prefix"
LACKING = "this server, or the proxy before it, lacks a command that the gateway needs"
ADVICE = {
    "bad lua script": TAIR,
    "script_check_enable": TAIR,
    "hash to the same slot": CLUSTER,
    "ACL failure in script": ACL,
    "has no permissions": ACL,
    "unknown command": LACKING,
    "unknown redis command": LACKING,
}
"""What to do, by the text of a server's error."""


class Script(Struct, frozen=True):
    name: str
    """Its last file's, as in metrics."""
    source: str
    sha: str


def load(*names: str, **constants: int) -> Script:
    """The files `store/lua/<name>.lua` in order; the constants become their locals."""
    folder = files("gateway.store") / "lua"
    lines = [f"local {name} = {value}" for name, value in constants.items()]
    parts = [(folder / f"{name}.lua").read_text("utf-8") for name in ("clock", *names)]
    source = "\n".join([*lines, *parts])
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return Script(names[-1].removeprefix("requests/").replace("/", "_"), source, sha)


async def run(
    servers: NodeRouter,
    script: Script,
    keys: tuple[str, ...],
    offset_ms: int,
    args: Args,
    blobs: Sequence[bytes] = (),
) -> Reply:
    """One decision of the server that has these keys. Raises StoreUnavailable."""
    rest: Command = (len(keys), *keys, offset_ms, msgspec.msgpack.encode(args), *blobs)
    reply = await servers.call(keys[0], ("EVALSHA", script.sha, *rest))
    if isinstance(reply, NoScriptError):
        # The server was restarted, or is another one since a failover.
        reply = await servers.call(keys[0], ("EVAL", script.source, *rest))
    if isinstance(reply, ResponseError):
        if isinstance(reply, ReadOnlyError) or "READONLY" in str(reply):
            await servers.reconnect(keys[0])
        raise StoreUnavailable(f"Redis: {explained(reply)}", advice=advice_on(reply))
    return reply


def explained(error: ResponseError) -> str:
    """A server's error, and what to do where it is set up wrong."""
    advice = advice_on(error)
    return f"{error} ({advice})" if advice else str(error)


def advice_on(error: ResponseError) -> str:
    """What to do; empty where the server is not set up wrong."""
    if isinstance(error, MovedError | AskError):
        return CLUSTER
    if isinstance(error, NoPermissionError):
        return ACL
    return next((advice for sign, advice in ADVICE.items() if sign in str(error)), "")

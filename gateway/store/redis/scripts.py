"""The Lua scripts: a file per operation, behind shared ones; arguments are MessagePack."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from importlib.resources import files
from time import perf_counter
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
from gateway.store.redis.pipeliner import Command, Reply, Timeouts
from gateway.store.redis.router import NodeRouter, connect

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
KINDS = {"tenant": "t", "group": "g"}


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
    now_us: int,
    args: Args,
    blobs: Sequence[bytes] = (),
) -> Reply:
    """One decision of the server that has these keys, at `now_us`, or at its own time if that is 0.

    Raises StoreUnavailable.
    """
    rest: Command = (len(keys), *keys, now_us, msgspec.msgpack.encode(args), *blobs)
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


LatencyObserver: TypeAlias = Callable[[str, float], None]
"""Called with an operation and its seconds."""


def ignore_latency(operation: str, seconds: float) -> None:
    """The default."""


def server_clock() -> int:
    """The default: a script reads the time of its server."""
    return 0


async def timed(took: LatencyObserver, operation: str, asked: Awaitable[Reply]) -> Reply:
    """A call that never left is not timed: it says nothing of Redis."""
    started = perf_counter()
    try:
        reply = await asked
    except StoreUnavailable as lost:
        if lost.in_doubt:
            took(operation, perf_counter() - started)
        raise
    took(operation, perf_counter() - started)
    return reply


class ScriptRunner:
    """`took` is called with the time of each call. `clock_us` is for tests only."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "gateway:",
        timeouts: Timeouts | None = None,
        took: LatencyObserver = ignore_latency,
        clock_us: Callable[[], int] = server_clock,
    ) -> None:
        """Raises ValueError for a URL of no known form."""
        self._servers = connect(url, timeouts or Timeouts())
        self._prefix = prefix
        self._took = took
        self._clock_us = clock_us

    async def _run(
        self, script: Script, keys: tuple[str, ...], args: Args, blobs: Sequence[bytes] = ()
    ) -> Reply:
        asked = run(self._servers, script, keys, self._clock_us(), args, blobs)
        return await timed(self._took, script.name, asked)

    async def _run_in(
        self,
        scope: str,
        script: Script,
        args: Args,
        named: Iterable[str] = (),
        blobs: Sequence[bytes] = (),
    ) -> Reply:
        return await self._run(script, self._scope_keys(scope, named), args, blobs)

    def _scope_keys(self, scope: str, named: Iterable[str] = ()) -> tuple[str, ...]:
        """`named`: those of a scope's keys that are known before the call."""
        kind, _, name = scope.partition(":")
        base = f"{self._prefix}{{{KINDS.get(kind, kind)}:{name}}}:"
        return (base + "cached", *(base + key for key in named))

    def _tenant_keys(self, tenant: str) -> tuple[str, ...]:
        base = f"{self._prefix}{{t:{tenant}}}:"
        return (
            base + "window",
            base + "leases",
            base + "detached",
            base + "reservations",
            base + "gone",
            base + "day",
            base + "month",
        )

    async def ping(self) -> None:
        await self._servers.ping()

    async def aclose(self) -> None:
        await self._servers.aclose()

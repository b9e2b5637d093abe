"""Whether a Redis can hold what the gateway keeps: its kind, version, eviction and scripts."""

from __future__ import annotations

import time
from collections.abc import Callable

from redis.exceptions import ResponseError

from gateway.config.redis_url import parse
from gateway.domain.findings import Finding
from gateway.store.availability import StoreUnavailable
from gateway.store.redis import RedisStore
from gateway.store.redis.eviction import ANYWHERE, eviction_warning
from gateway.store.redis.pipeliner import Timeouts
from gateway.store.redis.router import NodeRouter, connect
from gateway.store.redis.scripts import CLUSTER

OLDEST = (6, 2)
TRIES = 5
SLOW = 4
"""A command may take this fraction of the time-out; slower, a busy moment looks like an outage."""
SKEW_NOTICED_S = 5.0
PATIENT = Timeouts(5.0, 5.0)
LOGIN = "look at the user and password in the address"
UNREACHED = {
    "AUTH": LOGIN,
    "WRONGPASS": LOGIN,
    "password": LOGIN,
    "NOPERM": "give its user the commands that docs/operations.md names",
    "not known": "look at the host in the address, and at this machine's name server",
    "resolution": "look at the host in the address, and at this machine's name server",
    "connect": "start it, or look at the host and port in the address",
}
"""What to do, by the text of the failure."""


async def examine_redis(
    url: str, prefix: str, command_timeout_ms: int, now: Callable[[], float]
) -> list[Finding]:
    """The store of limits, pacing and results."""
    store, servers = RedisStore(url, prefix=prefix, timeouts=PATIENT), connect(url, PATIENT)
    try:
        found = await examine_server("redis", url, servers)
        if any(finding.state == "fails" for finding in found):
            return found
        found.append(await examine_eviction(servers))
        found.append(await examine_scripts(store))
        found.append(await examine_speed(servers, command_timeout_ms))
        found += await examine_clock(servers, now)
        return found
    finally:
        await store.aclose()
        await servers.aclose()


async def examine_image_cache(url: str) -> list[Finding]:
    """The store of images' bytes, which may evict."""
    servers = connect(url, PATIENT)
    try:
        return await examine_server("image cache", url, servers)
    finally:
        await servers.aclose()


async def examine_server(subject: str, url: str, servers: NodeRouter) -> list[Finding]:
    """Whether it answers, what it is, and whether its address is of the right kind."""
    try:
        await servers.ping()
        server, replication = await facts(servers, "server"), await facts(servers, "replication")
    except StoreUnavailable as fault:
        text = str(fault)
        advice = next((do for sign, do in UNREACHED.items() if sign in text), "")
        return [Finding(subject, text, "fails", advice or "look at the address, and at its log")]
    if not server:
        advice = "allow its user INFO"
        return [Finding(subject, "it does not tell what it is", "warning", advice)]
    return [judge_server(subject, server, replication, is_cluster=parse(url).is_cluster)]


def judge_server(
    subject: str, server: dict[str, str], replication: dict[str, str], *, is_cluster: bool
) -> Finding:
    name = server.get("server_name", "redis").capitalize()
    version = server.get("valkey_version") or server.get("redis_version", "")
    mode = server.get("server_mode") or server.get("redis_mode", "standalone")
    text = f"{name} {version}, {mode}"
    if mode == "cluster" and not is_cluster:
        return Finding(subject, text, "fails", CLUSTER)
    if mode == "sentinel":
        advice = "this is a Sentinel: use redis+sentinel://host:port/service"
        return Finding(subject, text, "fails", advice)
    if replication.get("role") in {"slave", "replica"} and not is_cluster:
        advice = "this is a replica, which takes no writes: use the primary's address"
        return Finding(subject, text, "fails", advice)
    if numbers(server.get("redis_version", "")) < OLDEST:
        return Finding(subject, text, "fails", "Redis 6.2 or later is needed, or Valkey")
    return Finding(subject, text)


def numbers(version: str) -> tuple[int, ...]:
    """`6.2.7` as numbers, up to the first part that is none."""
    parts: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


async def facts(servers: NodeRouter, section: str) -> dict[str, str]:
    """A section of INFO; empty where it is forbidden."""
    reply = await servers.call(ANYWHERE, ("INFO", section))
    if isinstance(reply, ResponseError):
        return {}
    lines = reply.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


async def examine_eviction(servers: NodeRouter) -> Finding:
    warning = await eviction_warning(servers)
    if warning is None:
        return Finding("redis", "evicts nothing")
    advice = "set maxmemory-policy to noeviction"
    return Finding("redis", warning, "fails", advice)


async def examine_scripts(store: RedisStore) -> Finding:
    """Run one script of each kind, which finds and writes nothing."""
    try:
        await store.probe()
    except StoreUnavailable as fault:
        advice = fault.advice or "look at its log"
        text = str(fault).removesuffix(f" ({fault.advice})")
        return Finding("redis", f"a script is refused: {text}", "fails", advice)
    return Finding("redis", "takes a script of each kind")


async def examine_speed(servers: NodeRouter, command_timeout_ms: int) -> Finding:
    took = []
    for _ in range(TRIES):
        started = time.perf_counter()
        await servers.ping()
        took.append((time.perf_counter() - started) * 1000)
    middle = sorted(took)[TRIES // 2]
    text = f"answers in {middle:.1f} ms"
    if middle * SLOW > command_timeout_ms:
        advice = f"raise redis.command_timeout_ms ({command_timeout_ms}), or bring it nearer"
        return Finding("redis", text, "warning", advice)
    return Finding("redis", text)


async def examine_clock(servers: NodeRouter, now: Callable[[], float]) -> list[Finding]:
    """Limits and budgets go by its clock, the life of images by this one."""
    reply = await servers.call(ANYWHERE, ("TIME",))
    if isinstance(reply, ResponseError):
        return []
    skew_s = now() - int(reply[0])
    if abs(skew_s) <= SKEW_NOTICED_S:
        return [Finding("redis", "this clock and its agree")]
    text = f"this clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} its"
    return [Finding("redis", text, "warning", "set both clocks, best by NTP")]

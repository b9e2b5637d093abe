"""Whether limits and leases might be evicted: all keys expire, so only `noeviction` is safe."""

from __future__ import annotations

from collections.abc import Iterator

from redis.crc import key_slot
from redis.exceptions import NoPermissionError, ResponseError

from gateway.store.availability import StoreUnavailable
from gateway.store.redis.pipeliner import Reply
from gateway.store.redis.router import NodeRouter

SAFE = "noeviction"
INFO = ("INFO", "memory")
ANYWHERE = ""
"""A key for commands that any node answers."""
TRIES_MAX = 1_000_000
"""Keys tried to find one on each node: a node of a single slot among 16,384 takes that many/60."""


async def eviction_warning(servers: NodeRouter) -> str | None:
    """What to tell the operator; None: all is well, or the servers cannot be asked now."""
    try:
        for key in await _one_key_per_master(servers):
            warning = _judge(await servers.call(key, INFO))
            if warning:
                return warning
    except (StoreUnavailable, ValueError, TypeError, IndexError):
        # No answer, or one of a form unknown here: a check must not keep the gateway from starting.
        return None
    return None


async def _one_key_per_master(servers: NodeRouter) -> list[str]:
    slots = await servers.call(ANYWHERE, ("CLUSTER", "SLOTS"))
    if isinstance(slots, ResponseError):  # no cluster: one server has every key
        return [ANYWHERE]
    masters = {
        slot: bytes(master[0] or b"") + b":%d" % master[1]
        for first, last, master, *_ in slots
        for slot in range(first, last + 1)
    }
    missing, keys = set(masters.values()), []
    for key, slot in _keys_and_slots():
        if not missing:
            break
        if masters.get(slot) in missing:
            missing.remove(masters[slot])
            keys.append(key)
    return keys


def _keys_and_slots() -> Iterator[tuple[str, int]]:
    for number in range(TRIES_MAX):
        yield str(number), key_slot(b"%d" % number)


def _judge(reply: Reply) -> str | None:
    if isinstance(reply, NoPermissionError):
        return "the eviction policy of Redis cannot be checked: its user may not call INFO"
    if isinstance(reply, ResponseError):
        return None
    facts = dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)
    policy = facts.get("maxmemory_policy", SAFE)
    if int(facts.get("maxmemory", "0")) == 0 or policy == SAFE:
        return None
    return (
        f"Redis may evict limits, budgets and leases: its maxmemory-policy is {policy}; "
        f"set it to {SAFE}, and keep image bytes on a server of their own (docs/caching.md)"
    )

"""Generations on Redis: the keys of a scope in one slot.

`{t:<tenant>}` or `{g:<group>}` with
cached|sizes|counts|g:<id>|c:<cache key>|i:<idempotency key>|a:<retry key>|t:<request>
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec

from gateway.store.generations import (
    CANDIDATES,
    DELIVERED_REUSED_MS,
    DOUBT_MS,
    FORMER_MAX,
    IDEMPOTENCY_MS,
    MARGIN_MS,
    PARTS_KEPT_MS,
    RETRIED_MAX,
    SHARED_ERROR_MS,
    UNDELIVERED_REUSED_MS,
    CacheStats,
    Doubtful,
    Entry,
    FencingResult,
    Follow,
    Found,
    GenerationStatus,
    How,
    Lead,
    Leadership,
    Parts,
    Place,
    Refusal,
    State,
)
from gateway.store.redis.pipeliner import Reply
from gateway.store.redis.scripts import Args, ScriptRunner, load

CONSTANTS = {
    "CANDIDATES": CANDIDATES,
    "DELIVERED_REUSED_MS": DELIVERED_REUSED_MS,
    "DOUBT_MS": DOUBT_MS,
    "IDEMPOTENCY_MS": IDEMPOTENCY_MS,
    "MARGIN_MS": MARGIN_MS,
    "PARTS_KEPT_MS": PARTS_KEPT_MS,
    "RETRIED_MAX": RETRIED_MAX,
    "FORMER_MAX": FORMER_MAX,
    "SHARED_ERROR_MS": SHARED_ERROR_MS,
    "UNDELIVERED_REUSED_MS": UNDELIVERED_REUSED_MS,
}
SCOPE = CONSTANTS | {"SCOPE_AT": 1}

RESTORE = load("generations/scope", "generations/restore", **SCOPE)
RENEW = load("generations/scope", "generations/renew", **SCOPE)
POLL = load("generations/scope", "generations/poll", **SCOPE)
CLIENT_GONE = load("generations/scope", "generations/ending", "generations/client_gone", **SCOPE)
PIN = load("generations/scope", "generations/pin", **SCOPE)
DISCARD = load("generations/scope", "generations/discard", **SCOPE)
STATS = load("generations/scope", "generations/stats", **SCOPE)
PURGE = load("generations/scope", "generations/purge", **SCOPE)

PURGED_AT_ONCE = 500
URLS = msgspec.msgpack.Decoder(tuple[str, ...])


class RedisGenerations(ScriptRunner):
    async def restore(
        self, leadership: Leadership, entry: Entry, lead_ms: int, parts: Parts
    ) -> FencingResult:
        args = {
            "id": leadership.id,
            "leader": leadership.leader,
            "plan": entry.plan_hash,
            "lead_ms": lead_ms,
            "parts": list(parts),
            **pointer_args(entry),
        }
        named = pointer_keys(entry, leadership.id)
        return fencing_result(
            await self._run_in(leadership.scope, RESTORE, args, named, packed(parts))
        )

    async def renew_leaderships(
        self, leaderships: Sequence[Leadership], lead_ms: int
    ) -> list[FencingResult]:
        if not leaderships:
            return []
        leaders = [(one.id, one.leader) for one in leaderships]
        args = {"lead_ms": lead_ms, "leaderships": leaders}
        named = [f"g:{one.id}" for one in leaderships]
        reply = await self._run_in(leaderships[0].scope, RENEW, args, named)
        return [fencing_result(one) for one in reply]

    async def poll(self, scope: str, ids: Sequence[str]) -> list[GenerationStatus]:
        named = [f"g:{id_}" for id_ in ids]
        reply = await self._run_in(scope, POLL, {"ids": list(ids)}, named)
        return [
            GenerationStatus(State(state.decode()), payload, age_ms)
            for state, payload, age_ms in zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        ]

    async def client_gone(self, leadership: Leadership, retry_key: str | None) -> None:
        args = {"id": leadership.id, "leader": leadership.leader, "retry_key": retry_key}
        named = [f"g:{leadership.id}", *retry_keys(retry_key)]
        await self._run_in(leadership.scope, CLIENT_GONE, args, named)

    async def pin_images(self, scope: str, id_: str, pin_ms: int) -> None:
        await self._run_in(scope, PIN, {"id": id_, "pin_ms": pin_ms}, [f"g:{id_}"])

    async def discard(self, scope: str, id_: str) -> None:
        await self._run_in(scope, DISCARD, {"id": id_}, [f"g:{id_}"])

    async def cache_stats(self, scope: str) -> CacheStats:
        entries, size, counts = await self._run_in(scope, STATS, {}, ["sizes", "counts"])
        pairs = zip(counts[::2], counts[1::2], strict=True)
        known = {how.decode(): int(times) for how, times in pairs if times.isdigit()}
        return CacheStats(entries, size, known)

    async def purge(self, scope: str) -> int:
        total, left = 0, 1
        while left:
            purged, left = await self._run_in(scope, PURGE, {"most": PURGED_AT_ONCE}, ["sizes"])
            total += purged
        return total


def pointer_args(entry: Entry) -> Args:
    key = entry.idempotency
    return {
        "cache_key": entry.cache_key,
        "key": key and key.key,
        "body": key and key.body,
        "retry_key": entry.retry_key,
    }


def entry_args(entry: Entry) -> Args:
    return {
        "request": entry.request,
        "plan": entry.plan_hash,
        "max_age_ms": entry.max_age_ms,
        "fresh": entry.fresh,
        "only_if_cached": entry.only_if_cached,
        "needs_url": entry.needs_url,
        "is_retry": entry.is_retry,
        "may_reuse_unclaimed": entry.may_reuse_unclaimed,
        **pointer_args(entry),
    }


def retry_keys(retry_key: str | None) -> list[str]:
    return [f"a:{retry_key}"] if retry_key else []


def pointer_keys(entry: Entry, *ids: str | None) -> list[str]:
    """The keys of an entry whose names are known before the call."""
    named = [f"g:{id_}" for id_ in ids if id_]
    if entry.cache_key:
        named.append(f"c:{entry.cache_key}")
    if entry.idempotency:
        named.append(f"i:{entry.idempotency.key}")
    return [*named, *retry_keys(entry.retry_key)]


def packed(parts: Parts) -> list[bytes]:
    return [msgspec.msgpack.encode(urls) for urls in parts.values()]


def unpacked(fields: Sequence[bytes]) -> dict[int, tuple[str, ...]]:
    """Unreadable parts are left out and made again."""
    parts = {}
    for index, urls in zip(fields[::2], fields[1::2], strict=True):
        with suppress(ValueError, msgspec.MsgspecError):
            parts[int(index)] = URLS.decode(urls)
    return parts


def fencing_result(reply: bytes) -> FencingResult:
    return FencingResult(reply.decode())


def placed(entry: Entry, reply: Sequence[Reply]) -> Place[bytes] | None:
    """A place as `lua/generations/choose.lua` returns it; None where it has changed."""
    kind, *rest = reply
    if kind == b"led":
        id_, parts = rest
        return Lead(Leadership(entry.scope, id_.decode(), entry.request), unpacked(parts))
    if kind == b"joined":
        id_, how = rest
        return Follow(id_.decode(), How(how.decode()))
    if kind == b"found":
        id_, how, age_ms, result = rest
        return Found(id_.decode(), result or b"", age_ms, How(how.decode()))
    if kind == b"doubtful":
        id_, age_ms, error = rest
        return Doubtful(id_.decode(), error or b"", age_ms)
    return None if kind == b"changed" else Refusal(kind.decode())

"""Generations on Redis: one script per operation, the keys of a scope in one slot.

<prefix>{f:<scope>}:shelf|sizes|counts|g:<id>|c:<key>|i:<key>|a:<hash>|x:<hash>
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import msgspec

from gateway.store.generations import (
    Begun,
    Claim,
    Departure,
    Ending,
    Entry,
    Failure,
    Found,
    How,
    Idempotency,
    Joined,
    Led,
    Parts,
    Phase,
    Refusal,
    Shelf,
    Sight,
    Standing,
)
from gateway.store.redis.pipeliner import Command, Reply
from gateway.store.redis.scripts import Script, load

BEGIN = load("flights", "flight_begin")
RESTORE = load("flights", "flight_restore")
PROGRESS = load("flights", "flight_progress")
FINISH = load("flights", "flight_finish")
FAIL = load("flights", "flight_fail")
ABANDON = load("flights", "flight_abandon")
KEEP_ALIVE = load("flights", "flight_keep_alive")
LOOK = load("flights", "flight_look")
DEPART = load("flights", "flight_depart")
EXCUSE = load("flights", "flight_excuse")
HOLD = load("flights", "flight_hold")
DISCARD = load("flights", "flight_discard")
SHELF = load("flights", "flight_shelf")
PURGE = load("flights", "flight_purge")

PURGED_AT_ONCE = 500

NO_KEY = Idempotency("", "")
URLS = msgspec.msgpack.Decoder(tuple[str, ...])


class RedisFlights:
    """A part of RedisStore, which runs the scripts."""

    _prefix: str
    _offset_ms: Callable[[], int]

    async def _run(self, script: Script, keys: tuple[str, ...], args: Command) -> Reply:
        raise NotImplementedError

    async def begin(self, entry: Entry, lease_ms: int, follows: str | None = None) -> Begun:
        key = entry.idempotency or NO_KEY
        args = (
            entry.request,
            entry.plan,
            lease_ms,
            entry.cache_key or "",
            -1 if entry.max_age_ms is None else entry.max_age_ms,
            _flags(entry),
            key.key,
            key.body,
            entry.adoption or "",
            follows or "",
        )
        named = _pointers(entry, entry.request, follows)
        return _begun(entry, await self._run_in(entry.scope, BEGIN, args, named))

    async def restore(self, claim: Claim, entry: Entry, lease_ms: int, parts: Parts) -> Standing:
        key = entry.idempotency or NO_KEY
        args = (
            claim.id,
            claim.leader,
            entry.plan,
            lease_ms,
            entry.cache_key or "",
            key.key,
            key.body,
            entry.adoption or "",
            *_packed(parts),
        )
        reply = await self._run_in(claim.scope, RESTORE, args, _pointers(entry, claim.id))
        return Standing(reply.decode())

    async def progress(self, claim: Claim, index: int, urls: Sequence[str]) -> Standing:
        args = (claim.id, claim.leader, *_packed({index: tuple(urls)}))
        return Standing(
            (await self._run_in(claim.scope, PROGRESS, args, [f"g:{claim.id}"])).decode()
        )

    async def finish(self, claim: Claim, ending: Ending) -> Standing:
        args = (
            claim.id,
            claim.leader,
            ending.result,
            ending.life_ms,
            ending.keep_ms,
            ending.cache_key or "",
            ending.cache_ms,
        )
        named = [f"g:{claim.id}", *([f"c:{ending.cache_key}"] if ending.cache_key else [])]
        return Standing((await self._run_in(claim.scope, FINISH, args, named)).decode())

    async def fail(self, claim: Claim, failure: Failure) -> Standing:
        args = (
            claim.id,
            claim.leader,
            failure.error or b"",
            failure.adoption or "",
            int(failure.answered),
            *_packed(failure.parts),
        )
        named = [f"g:{claim.id}", *_adoption(failure.adoption)]
        return Standing((await self._run_in(claim.scope, FAIL, args, named)).decode())

    async def abandon(self, claim: Claim, adoption: str | None) -> bool:
        args = (claim.id, claim.leader, adoption or "")
        named = [f"g:{claim.id}", *_adoption(adoption)]
        return bool(await self._run_in(claim.scope, ABANDON, args, named))

    async def keep_alive(self, claims: Sequence[Claim], lease_ms: int) -> list[Standing]:
        if not claims:
            return []
        leaders = [part for claim in claims for part in (claim.id, claim.leader)]
        named = [f"g:{claim.id}" for claim in claims]
        reply = await self._run_in(claims[0].scope, KEEP_ALIVE, (lease_ms, *leaders), named)
        return [Standing(standing.decode()) for standing in reply]

    async def look(self, scope: str, ids: Sequence[str]) -> list[Sight]:
        reply = await self._run_in(scope, LOOK, tuple(ids), [f"g:{id_}" for id_ in ids])
        return [
            Sight(Phase(phase.decode()), payload, age_ms)
            for phase, payload, age_ms in zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        ]

    async def depart(self, claim: Claim, adoption: str | None, how: Departure) -> None:
        args = (claim.id, claim.leader, adoption or "", how.value)
        named = [f"g:{claim.id}", *_adoption(adoption)]
        await self._run_in(claim.scope, DEPART, args, named)

    async def excuse(self, scope: str, adoption: str, request: str) -> None:
        await self._run_in(scope, EXCUSE, (adoption, request), [f"x:{adoption}"])

    async def hold(self, scope: str, id_: str, hold_ms: int) -> None:
        await self._run_in(scope, HOLD, (id_, hold_ms), [f"g:{id_}"])

    async def discard(self, scope: str, id_: str) -> None:
        await self._run_in(scope, DISCARD, (id_,), [f"g:{id_}"])

    async def shelf(self, scope: str) -> Shelf:
        entries, size, counts = await self._run_in(scope, SHELF, (), ["sizes", "counts"])
        pairs = zip(counts[::2], counts[1::2], strict=True)
        known = {how.decode(): int(times) for how, times in pairs if times.isdigit()}
        return Shelf(entries, size, known)

    async def purge(self, scope: str) -> int:
        total, left = 0, 1
        while left:
            purged, left = await self._run_in(scope, PURGE, (PURGED_AT_ONCE,), ["sizes"])
            total += purged
        return total

    async def _run_in(
        self, scope: str, script: Script, args: Command, named: Iterable[str] = ()
    ) -> Reply:
        base = f"{self._prefix}{{f:{scope}}}:"
        keys = (base + "shelf", *(base + name for name in named))
        return await self._run(script, keys, (self._offset_ms(), *args))


def _flags(entry: Entry) -> str:
    flags = (
        entry.fresh,
        entry.only_if_cached,
        entry.needs_url,
        entry.is_retry,
        entry.takes_orphans,
    )
    return "".join("01"[flag] for flag in flags)


def _adoption(adoption: str | None) -> list[str]:
    return [f"a:{adoption}", f"x:{adoption}"] if adoption else []


def _pointers(entry: Entry, *ids: str | None) -> list[str]:
    """The keys of an entry whose names are known before they are asked for."""
    named = [f"g:{id_}" for id_ in ids if id_]
    if entry.cache_key:
        named.append(f"c:{entry.cache_key}")
    if entry.idempotency:
        named.append(f"i:{entry.idempotency.key}")
    return [*named, *_adoption(entry.adoption)]


def _packed(parts: Parts) -> list[bytes | int]:
    return [
        value for index, urls in parts.items() for value in (index, msgspec.msgpack.encode(urls))
    ]


def _unpacked(fields: Sequence[bytes]) -> dict[int, tuple[str, ...]]:
    """The parts; one that cannot be read has to be made again."""
    parts = {}
    for index, urls in zip(fields[::2], fields[1::2], strict=True):
        with suppress(ValueError, msgspec.MsgspecError):
            parts[int(index)] = URLS.decode(urls)
    return parts


def _begun(entry: Entry, reply: Sequence[Reply]) -> Begun:
    kind, *rest = reply
    if kind == b"led":
        id_, parts = rest
        return Led(Claim(entry.scope, id_.decode(), entry.request), _unpacked(parts))
    if kind == b"joined":
        id_, how = rest
        return Joined(id_.decode(), How(how.decode()))
    if kind == b"found":
        id_, how, age_ms, result = rest
        return Found(id_.decode(), result or b"", age_ms, How(how.decode()))
    return Refusal(kind.decode())

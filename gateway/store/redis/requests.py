"""Whole requests on Redis: one script for each step (0011), or several on a cluster with groups."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.store.availability import StoreUnavailable
from gateway.store.generations import (
    Completion,
    Failure,
    FencingResult,
    Leadership,
    Place,
    Refusal,
    known_images,
)
from gateway.store.limits import (
    CONCURRENCY_RETRY_MS,
    LEFT_KEPT,
    LEFT_KEPT_MS,
    Settlement,
    Verdict,
)
from gateway.store.redis.generations import (
    CONSTANTS,
    SCOPE,
    RedisGenerations,
    entry_args,
    fencing_result,
    packed,
    placed,
    pointer_keys,
    retry_keys,
)
from gateway.store.redis.limits import (
    RedisLimits,
    limits_args,
    load_limits,
    refusal,
    settlement_args,
    verdict,
)
from gateway.store.redis.pipeliner import Reply
from gateway.store.redis.scripts import Args, Script, load
from gateway.store.requests import End, Entered, EnterRequest, Leave

BOTH = CONSTANTS | {"SCOPE_AT": 8}
"""Where a scope's keys begin, behind those of a tenant."""
ENTER = load_limits(
    "limits/admission",
    "generations/scope",
    "generations/choose",
    "requests/enter",
    CONCURRENCY_RETRY_MS=CONCURRENCY_RETRY_MS,
    **BOTH,
)
PROGRESS = load_limits("generations/scope", "generations/parts", "requests/progress", **BOTH)
END = load_limits("generations/scope", "generations/ending", "requests/end", **BOTH)
LEAVE = load_limits("generations/scope", "generations/ending", "requests/leave", **BOTH)

# The same apart.
LOCATE = load("generations/scope", "generations/choose", "generations/locate", **SCOPE)
ADMIT = load_limits("limits/admission", "limits/admit", CONCURRENCY_RETRY_MS=CONCURRENCY_RETRY_MS)
TAKE = load("generations/scope", "generations/choose", "generations/take", **SCOPE)
ADJUST = load_limits("limits/adjust")
KEEP = load("generations/scope", "generations/parts", "generations/progress", **SCOPE)
USE = load_limits("limits/use")
END_GENERATION = load("generations/scope", "generations/ending", "generations/end", **SCOPE)
LEAVE_GENERATION = load(
    "generations/scope",
    "generations/ending",
    "generations/leave",
    LEFT_KEPT=LEFT_KEPT,
    LEFT_KEPT_MS=LEFT_KEPT_MS,
    **SCOPE,
)
SETTLE = load_limits("limits/settle")

TRIES = 5
"""How often a place may become dearer between being found and being taken."""


class RedisRequests(RedisLimits, RedisGenerations):
    async def enter(self, request: EnterRequest) -> Entered[bytes]:
        entry, take = request.entry, request.take
        args = enter_args(request)
        named = pointer_keys(entry, entry.request, request.follows)
        if self._is_apart(take.tenant, entry.scope):
            return await self._enter_apart(request, args, named)
        reply = await self._run_both(take.tenant, entry.scope, ENTER, args, named)
        allowed, reason, retry_ms, levels, place, has_left = reply
        if not allowed:
            return Entered(refusal(take.limits, reason, retry_ms, levels), None)
        return Entered(verdict(take.limits, levels), placed(entry, place), bool(has_left))

    async def progress(
        self, leadership: Leadership, index: int, urls: Sequence[str], settlement: Settlement
    ) -> FencingResult:
        args = {
            "id": leadership.id,
            "leader": leadership.leader,
            "parts": [index],
            "settlement": settlement_args(settlement),
        }
        named, blobs = [f"g:{leadership.id}"], packed({index: tuple(urls)})
        tenant, scope = settlement.tenant, leadership.scope
        if not self._is_apart(tenant, scope):
            return fencing_result(await self._run_both(tenant, scope, PROGRESS, args, named, blobs))
        kept, _ = await asyncio.gather(
            self._run_in(scope, KEEP, args, named, blobs), self._run_for(tenant, USE, args)
        )
        return fencing_result(kept)

    async def end(self, end: End) -> tuple[FencingResult, Verdict]:
        settlement, scope = end.settlement, end.leadership.scope
        args, named, blobs = end_args(end), end_keys(end), end_blobs(end.outcome)
        if not self._is_apart(settlement.tenant, scope):
            reply = await self._run_both(settlement.tenant, scope, END, args, named, blobs)
        else:
            reply = await asyncio.gather(
                self._run_in(scope, END_GENERATION, args, named, blobs),
                self._run_for(settlement.tenant, SETTLE, args),
            )
        kept, levels = reply
        return fencing_result(kept), verdict(settlement.limits, levels)

    async def leave(self, leave: Leave) -> Verdict:
        settlement = leave.settlement
        args = {
            "request": settlement.reservation,
            "settlement": settlement_args(settlement),
            "leaves": True,
            "generation": leave.generation,
            "retry_key": leave.retry_key,
            "outcome": leave.outcome.value,
        }
        named = [f"g:{leave.generation or settlement.reservation}", *retry_keys(leave.retry_key)]
        if not self._is_apart(settlement.tenant, leave.scope):
            levels = await self._run_both(settlement.tenant, leave.scope, LEAVE, args, named)
        else:
            _, levels = await asyncio.gather(
                self._run_in(leave.scope, LEAVE_GENERATION, args, named),
                self._run_for(settlement.tenant, SETTLE, args),
            )
        return verdict(settlement.limits, levels)

    # -- where a tenant and its generations are apart

    def _is_apart(self, tenant: str, scope: str) -> bool:
        return self._servers.is_cluster and scope != f"tenant:{tenant}"

    async def _enter_apart(
        self, request: EnterRequest, args: Args, named: Sequence[str]
    ) -> Entered[bytes]:
        """Look for the place, admit the request at its price, then take the place.

        A refusal needs no undoing. A place that has become dearer is looked for again, and what was
        booked too much goes back.
        """
        scope, tenant, limits = request.entry.scope, request.take.tenant, request.take.limits
        for _ in range(TRIES):
            kind, images, cost, former = await self._run_in(scope, LOCATE, args, named)
            if kind in {b"conflict", b"missing"}:
                return Entered(await self.levels(tenant, limits), Refusal(kind.decode()))
            price = {"images": images, "cost": cost}
            admitted = await self._run_for(
                tenant, ADMIT, args | price | {"former": former.decode() or None}
            )
            allowed, reason, retry_ms, is_known, levels = admitted
            if not allowed:
                return Entered(refusal(limits, reason, retry_ms, levels), None)
            if allowed < 0:
                return Entered(verdict(limits, levels), Refusal.MISSING)
            taking = args | {"price": (images, cost), "is_known": bool(is_known)}
            place = placed(request.entry, await self._run_in(scope, TAKE, taking, named))
            if not is_known:
                levels = await self._adjust(request, place, images) or levels
            if place is not None:
                return Entered(verdict(limits, levels), place)
        raise StoreUnavailable("Redis: the place of this request changed too often")

    async def _adjust(
        self, request: EnterRequest, place: Place[bytes] | None, images: int
    ) -> Reply:
        """Give back what was booked for a place that is another, or cheaper, or none."""
        whole = request.take.reservation
        needed: Args = {"request": whole.id}
        if place is not None and not isinstance(place, Refusal):
            want = whole.less(known_images(place))
            if want.images == images:
                return None
            needed |= {"images": want.images, "cost": want.cost}
        return await self._run_for(request.take.tenant, ADJUST, needed)

    async def _run_both(
        self,
        tenant: str,
        scope: str,
        script: Script,
        args: Args,
        named: Sequence[str],
        blobs: Sequence[bytes] = (),
    ) -> Reply:
        keys = self._tenant_keys(tenant) + self._scope_keys(scope, named)
        return await self._run(script, keys, args | {"zone": self._zone_args()}, blobs)


def enter_args(request: EnterRequest) -> Args:
    take = request.take
    return entry_args(request.entry) | {
        "images": take.reservation.images,
        "cost": take.reservation.cost,
        "lease_ms": take.lease_ms,
        "lead_ms": request.lead_ms,
        "follows": request.follows,
        "family": take.reservation.family,
        "limits": limits_args(take.limits),
    }


def end_args(end: End) -> Args:
    args: Args = {
        "id": end.leadership.id,
        "leader": end.leadership.leader,
        "retry_key": end.retry_key,
        "settlement": settlement_args(end.settlement),
    }
    outcome = end.outcome
    if isinstance(outcome, Completion):
        return args | {
            "is_done": True,
            "life_ms": outcome.life_ms,
            "keep_ms": outcome.keep_ms,
            "cache_key": outcome.cache_key,
            "cache_ms": outcome.cache_ms,
            "leaves": end.leaves,
        }
    return args | {
        "has_error": outcome.error is not None,
        "doubtful": outcome.doubtful,
        "parts": list(outcome.parts),
    }


def end_blobs(outcome: Completion | Failure) -> list[bytes]:
    if isinstance(outcome, Completion):
        return [outcome.result]
    return [outcome.error or b"", *packed(outcome.parts)]


def end_keys(end: End) -> list[str]:
    outcome = end.outcome
    cache_key = outcome.cache_key if isinstance(outcome, Completion) else None
    cached = [f"c:{cache_key}"] if cache_key else []
    return [f"g:{end.leadership.id}", *cached, *retry_keys(end.retry_key)]

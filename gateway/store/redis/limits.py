"""Limits and usage on Redis.

`<prefix>{t:<tenant>}:window|leases|detached|reservations|gone|day|month`
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from gateway.domain.clock import ZoneClock
from gateway.store.limits import (
    LEFT_KEPT,
    LEFT_KEPT_MS,
    FamilyUse,
    Limits,
    Reason,
    Reservation,
    Settlement,
    Usage,
    Verdict,
    level_of,
)
from gateway.store.redis.pipeliner import Reply
from gateway.store.redis.scripts import Args, Script, ScriptRunner, load


def load_limits(*names: str, **constants: int) -> Script:
    """A script on one tenant's books."""
    return load(
        "limits/tenant", *names, LEFT_KEPT=LEFT_KEPT, LEFT_KEPT_MS=LEFT_KEPT_MS, **constants
    )


RENEW = load_limits("limits/renew")
LEVELS = load_limits("limits/levels")
USAGE = load_limits("limits/usage")


class RedisLimits(ScriptRunner):
    _zone: ZoneClock

    async def renew(self, tenant: str, reservations: Sequence[Reservation], lease_ms: int) -> None:
        leased = [(one.id, one.images, one.cost) for one in reservations]
        await self._run_for(tenant, RENEW, {"lease_ms": lease_ms, "reservations": leased})

    async def levels(self, tenant: str, limits: Limits) -> Verdict:
        return verdict(limits, await self._run_for(tenant, LEVELS, {}))

    async def usage(self, tenant: str, limits: Limits) -> Usage:
        levels, day, month = await self._run_for(tenant, USAGE, {})
        return Usage(tenant, verdict(limits, levels), _use_by_family(day), _use_by_family(month))

    async def _run_for(self, tenant: str, script: Script, args: Args) -> Reply:
        keys = self._tenant_keys(tenant)
        return await self._run(script, keys, args | {"zone": self._zone_args()})

    def _zone_args(self) -> tuple[int, int, int]:
        zone = self._zone.at(self._clock_us() / 1e6 or time.time())
        return zone.offset_ms, zone.until_ms, zone.offset_after_ms


def limits_args(limits: Limits) -> tuple[int, ...]:
    """-1 is no limit."""
    wanted = (
        limits.requests_per_minute,
        limits.images_per_minute,
        limits.concurrent_requests,
        limits.images_per_day,
        limits.spend_per_month,
    )
    return tuple(-1 if limit is None else limit for limit in wanted)


def settlement_args(settlement: Settlement) -> Args:
    return {
        "request": settlement.reservation,
        "family": settlement.family,
        "images": settlement.images,
        "cost": settlement.cost,
    }


def refusal(limits: Limits, reason: bytes, retry_ms: int, levels: Sequence[int]) -> Verdict:
    retry_after_ms = None if retry_ms < 0 else retry_ms
    return verdict(limits, levels, Reason(reason.decode()), retry_after_ms)


def verdict(
    limits: Limits,
    levels: Sequence[int],
    reason: Reason | None = None,
    retry_after_ms: int | None = None,
) -> Verdict:
    requests, requests_ms, images, images_ms, live, day, day_ms, month, month_ms = levels
    return Verdict(
        allowed=reason is None,
        reason=reason,
        retry_after_ms=retry_after_ms,
        requests=level_of(limits.requests_per_minute, requests, requests_ms),
        images=level_of(limits.images_per_minute, images, images_ms),
        concurrent=level_of(limits.concurrent_requests, live, 0),
        day=level_of(limits.images_per_day, day, day_ms),
        month=level_of(limits.spend_per_month, month, month_ms),
    )


def _use_by_family(fields: Sequence[bytes]) -> Mapping[str, FamilyUse]:
    """A flat hash of a day or month: r:, i: and c: before the family's name."""
    counts: dict[str, dict[str, int]] = {}
    for field, value in zip(fields[::2], fields[1::2], strict=True):
        kind, _, family = field.decode(errors="replace").partition(":")
        if family and value.isdigit():
            counts.setdefault(family, {})[kind] = int(value)
    return {
        family: FamilyUse(of.get("r", 0), of.get("i", 0), of.get("c", 0))
        for family, of in counts.items()
    }

"""The shared store on Redis: one Lua script per decision, at the server's time.

Keys, all with a time to live, those of one call in one cluster slot:

    <prefix>{t:<tenant>}:window|leases|reservations|gone|day|month
    <prefix>{m:<model>}:pace
    <prefix>{f:<scope>}:…, see gateway.store.redis.generations
    <prefix>workers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gateway.store.base import (
    BACK_OFF_MAX_MS,
    FLOW_TTL_MS,
    GRACE_US,
    LEAD_US,
    Claim,
    ClaimResult,
    Grant,
    Limits,
    LimitStatus,
    ModelUse,
    PacedAccount,
    QueueShare,
    Reason,
    Reservation,
    Settlement,
    Share,
    TakeRequest,
    Usage,
    Verdict,
)
from gateway.store.redis.eviction import eviction_warning
from gateway.store.redis.generations import RedisFlights
from gateway.store.redis.pipeliner import Command, Reply, Timeouts
from gateway.store.redis.router import connect
from gateway.store.redis.scripts import Script, load, run
from gateway.store.redis.timing import LatencyObserver, ignore_latency, timed

__all__ = ["RedisStore", "Timeouts"]

TAKE = load("tenant", "take")
RENEW = load("tenant", "renew")
RELEASE = load("tenant", "release")
USAGE = load("tenant", "usage")
HEARTBEAT = load("heartbeat")
CLAIM = load("pace", "claim")
BACK_OFF = load("pace", "back_off")
GIVE_BACK = load("pace", "give_back")


class RedisStore(RedisFlights):
    """Connects when first used, and again by itself.

    `took` is told how long each call was. `clock_offset_ms` is for tests only.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "gateway:",
        timeouts: Timeouts | None = None,
        took: LatencyObserver = ignore_latency,
        clock_offset_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """Raises ValueError for a URL of no known form."""
        self._servers = connect(url, timeouts or Timeouts())
        self._prefix = prefix
        self._took = took
        self._offset_ms = clock_offset_ms

    @property
    def failures(self) -> list[str]:
        """What is taken to be away at this moment, in words for /readyz; nothing is asked."""
        return self._servers.failures

    async def eviction_warning(self) -> str | None:
        """Why the server may forget limits and leases, if it may; None if it cannot be asked."""
        return await eviction_warning(self._servers)

    async def take(self, ask: TakeRequest) -> Verdict:
        wanted, limits = ask.reservation, ask.limits
        reply = await self._run(
            TAKE,
            self._tenant_keys(ask.tenant),
            (
                self._offset_ms(),
                wanted.id,
                wanted.images,
                wanted.cost,
                ask.lease_ms,
                _or_none(limits.requests_per_minute),
                _or_none(limits.images_per_minute),
                _or_none(limits.concurrent_requests),
                _or_none(limits.images_per_day),
                _or_none(limits.spend_per_month),
            ),
        )
        allowed, reason, retry_ms, *levels = reply
        if allowed:
            return _verdict(limits, levels)
        retry_after_ms = None if retry_ms < 0 else retry_ms
        return _verdict(limits, levels, Reason(reason.decode()), retry_after_ms)

    async def renew(self, tenant: str, reservations: Sequence[Reservation], lease_ms: int) -> None:
        leased = [part for one in reservations for part in (one.id, one.images, one.cost)]
        args = (self._offset_ms(), lease_ms, *leased)
        await self._run(RENEW, self._tenant_keys(tenant), args)

    async def release(self, settlement: Settlement) -> Verdict:
        used = settlement.reservation, settlement.model, settlement.images, settlement.cost
        args = (self._offset_ms(), *used)
        levels = await self._run(RELEASE, self._tenant_keys(settlement.tenant), args)
        return _verdict(settlement.limits, levels)

    async def usage(self, tenant: str, limits: Limits) -> Usage:
        reply = await self._run(USAGE, self._tenant_keys(tenant), (self._offset_ms(),))
        levels, day, month = reply
        return Usage(tenant, _verdict(limits, levels), _use_by_model(day), _use_by_model(month))

    async def heartbeat(self, worker: str, ttl_ms: int) -> Share:
        args = (self._offset_ms(), worker, ttl_ms)
        index, workers = await self._run(HEARTBEAT, (f"{self._prefix}workers",), args)
        return Share(index, workers)

    async def claim(self, claim: Claim) -> ClaimResult:
        accounts = [
            part for one in claim.accounts for part in (one.name, one.interval_us, one.floor_us)
        ]
        waiting = [part for flow in claim.waiting.items() for part in flow]
        reply = await self._run(
            CLAIM,
            self._model_keys(claim.model),
            (
                self._offset_ms() * 1000,
                claim.worker,
                FLOW_TTL_MS * 1000,
                GRACE_US,
                LEAD_US,
                int(claim.report),
                len(claim.accounts),
                *accounts,
                *waiting,
            ),
        )
        return _turn(reply)

    async def back_off(self, model: str, account: str, delay_ms: int) -> None:
        delay_us = min(delay_ms, BACK_OFF_MAX_MS) * 1000
        args = (self._offset_ms() * 1000, account, delay_us)
        await self._run(BACK_OFF, self._model_keys(model), args)

    async def give_back(self, model: str, account: PacedAccount, slot_us: int) -> None:
        args = (self._offset_ms() * 1000, account.name, account.interval_us, slot_us)
        await self._run(GIVE_BACK, self._model_keys(model), args)

    async def ping(self) -> None:
        await self._servers.ping()

    async def aclose(self) -> None:
        await self._servers.aclose()

    def _tenant_keys(self, tenant: str) -> tuple[str, ...]:
        tag = f"{self._prefix}{{t:{tenant}}}:"
        return (
            tag + "window",
            tag + "leases",
            tag + "reservations",
            tag + "gone",
            tag + "day",
            tag + "month",
        )

    def _model_keys(self, model: str) -> tuple[str, ...]:
        return (f"{self._prefix}{{m:{model}}}:pace",)

    async def _run(self, script: Script, keys: tuple[str, ...], args: Command) -> Reply:
        return await timed(self._took, script.name, run(self._servers, script, keys, args))


def _or_none(limit: int | None) -> int:
    return -1 if limit is None else limit


def _verdict(
    limits: Limits,
    levels: Sequence[int],
    reason: Reason | None = None,
    retry_after_ms: int | None = None,
) -> Verdict:
    requests, requests_ms, images, images_ms, live, day, day_ms, month, month_ms = levels
    return Verdict(
        reason is None,
        reason,
        retry_after_ms,
        _level(limits.requests_per_minute, requests, requests_ms),
        _level(limits.images_per_minute, images, images_ms),
        _level(limits.concurrent_requests, live, 0),
        _level(limits.images_per_day, day, day_ms),
        _level(limits.spend_per_month, month, month_ms),
    )


def _level(limit: int | None, used: int, reset_ms: int) -> LimitStatus | None:
    return None if limit is None else LimitStatus(limit, max(0, limit - used), reset_ms)


def _use_by_model(fields: Sequence[bytes]) -> Mapping[str, ModelUse]:
    """From the hash of a day or month, flat: r:, i: and c: before the model's name."""
    counts: dict[str, dict[str, int]] = {}
    for field, value in zip(fields[::2], fields[1::2], strict=True):
        kind, _, model = field.decode().partition(":")
        if model:
            counts.setdefault(model, {})[kind] = int(value)
    return {model: ModelUse(of["r"], of["i"], of["c"]) for model, of in counts.items()}


def _turn(reply: Sequence[Reply]) -> ClaimResult:
    tenant, account, slot_us, now_us, wait_us, virtual_time, free, flows = reply
    grant = None
    if tenant:
        grant = Grant(tenant.decode(), account.decode(), slot_us - now_us, slot_us)
    return ClaimResult(
        grant=grant,
        wait_us=wait_us,
        free_us={name.decode(): us for name, us in zip(free[::2], free[1::2], strict=True)},
        virtual_time=virtual_time,
        flows=tuple(
            QueueShare(flows[at].decode(), flows[at + 1].decode(), *flows[at + 2 : at + 5])
            for at in range(0, len(flows), 5)
        ),
    )

"""Slots of the upstream accounts on Redis: `<prefix>{m:<model>}:pace`."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store.pacing import (
    BACK_OFF_MAX_MS,
    GRACE_US,
    LEAD_US,
    WAITING_TTL_MS,
    ClaimResult,
    Grant,
    PacedAccount,
    QueueShare,
    SlotRequest,
)
from gateway.store.redis.pipeliner import Reply
from gateway.store.redis.scripts import ScriptRunner, load

CLAIM = load(
    "pacing/model",
    "pacing/claim",
    BACK_OFF_MAX_MS=BACK_OFF_MAX_MS,
    WAITING_TTL_MS=WAITING_TTL_MS,
    GRACE_US=GRACE_US,
    LEAD_US=LEAD_US,
)
BACK_OFF = load("pacing/model", "pacing/back_off", BACK_OFF_MAX_MS=BACK_OFF_MAX_MS)
GIVE_BACK = load("pacing/model", "pacing/give_back", BACK_OFF_MAX_MS=BACK_OFF_MAX_MS)


class RedisPace(ScriptRunner):
    async def claim(self, request: SlotRequest) -> ClaimResult:
        accounts = [(one.name, one.interval_us, one.floor_us) for one in request.accounts]
        args = {
            "worker": request.worker,
            "accounts": accounts,
            "waiting": list(request.waiting.items()),
            "report": request.report,
        }
        return _claimed(await self._run(CLAIM, self._model_keys(request.model), args))

    async def back_off(self, model: str, account: str, delay_ms: int) -> None:
        delay_us = min(delay_ms, BACK_OFF_MAX_MS) * 1000
        args = {"account": account, "delay_us": delay_us}
        await self._run(BACK_OFF, self._model_keys(model), args)

    async def give_back(self, model: str, account: PacedAccount, slot_us: int) -> None:
        args = {"account": account.name, "interval_us": account.interval_us, "slot_us": slot_us}
        await self._run(GIVE_BACK, self._model_keys(model), args)

    def _model_keys(self, model: str) -> tuple[str, ...]:
        return (f"{self._prefix}{{m:{model}}}:pace",)


def _claimed(reply: Sequence[Reply]) -> ClaimResult:
    tenant, account, slot_us, now_us, wait_us, virtual_time, free, shares = reply
    grant = None
    if tenant:
        grant = Grant(tenant.decode(), account.decode(), slot_us - now_us, slot_us)
    return ClaimResult(
        grant=grant,
        wait_us=wait_us,
        free_us={name.decode(): us for name, us in zip(free[::2], free[1::2], strict=True)},
        virtual_time=virtual_time,
        shares=tuple(
            QueueShare(shares[at].decode(), shares[at + 1].decode(), *shares[at + 2 : at + 5])
            for at in range(0, len(shares), 5)
        ),
    )

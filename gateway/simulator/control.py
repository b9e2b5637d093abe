"""The simulator's own API, below `/_simulator` on the same port.

GET  /state?log=N     settings, counters, waiting faults, the last N calls (1,000 unless given)
PUT  /settings        {"latency_s": 2}: replaces some settings; unknown ones are refused
GET  /faults          the kinds there are, and the waiting ones
POST /faults          {"kind": "Throttling.RateQuota", "count": 2}, or a list of such
DELETE /faults        drops the waiting faults
POST /reset           as when it was started; calls under way are cut
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, Router, delete, get, post, put

from gateway.simulator.faults import AFTER, BEFORE, IMAGE, Fault
from gateway.simulator.journal import KEPT_CALLS, REDACTED
from gateway.simulator.settings import Settings
from gateway.simulator.simulator import Simulator
from gateway.simulator.task_api import settle

AnyRequest = Request[Any, Any, Any]


def control_routes(simulator: Simulator) -> Router:
    """The handlers above; those that change something answer with the new state."""

    @get("/state", sync_to_thread=False)
    def state(request: AnyRequest) -> dict[str, Any]:
        settle(simulator)
        return snapshot(simulator, int(request.query_params.get("log", KEPT_CALLS)))

    @put("/settings")
    async def settings(request: AnyRequest) -> dict[str, Any]:
        simulator.configure(msgspec.json.decode(await request.body(), type=dict[str, Any]))
        return _shown(simulator.settings)

    @get("/faults", sync_to_thread=False)
    def fault_kinds() -> dict[str, Any]:
        files = [*simulator.replies.raw, *simulator.replies.errors]
        described = dict.fromkeys(files, "the call is answered with the file of this name")
        return {"kinds": described | BEFORE | AFTER | IMAGE, "waiting": _waiting(simulator)}

    @post("/faults", status_code=200)
    async def faults(request: AnyRequest) -> dict[str, Any]:
        wanted = msgspec.json.decode(await request.body(), type=Fault | list[Fault])
        for fault in wanted if isinstance(wanted, list) else [wanted]:
            simulator.faults.add(fault)
        return {"waiting": _waiting(simulator)}

    @delete("/faults", sync_to_thread=False, status_code=200)
    def no_faults() -> dict[str, Any]:
        simulator.faults.clear()
        return {"waiting": []}

    @post("/reset", sync_to_thread=False, status_code=200)
    def reset() -> dict[str, Any]:
        simulator.reset()
        return snapshot(simulator, 0)

    return Router(
        "/_simulator",
        route_handlers=[state, settings, fault_kinds, faults, no_faults, reset],
        exception_handlers={
            msgspec.MsgspecError: _bad_request,
            ValueError: _bad_request,
        },
    )


def snapshot(simulator: Simulator, log: int) -> dict[str, Any]:
    """Settings, counters, waiting faults and the last `log` calls."""
    return {
        "settings": _shown(simulator.settings),
        "faults_waiting": _waiting(simulator),
        **simulator.journal.as_json(log),
    }


def _waiting(simulator: Simulator) -> list[dict[str, Any]]:
    waiting: list[dict[str, Any]] = msgspec.to_builtins(simulator.faults.waiting())
    return waiting


def _shown(settings: Settings) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(settings)
    # Somebody may have pointed a real key at it.
    shown["api_keys"] = [REDACTED for _ in settings.api_keys]
    shown["accounts"] = sorted(set(settings.accounts.values()))
    return shown


def _bad_request(_: AnyRequest, fault: Exception) -> Response[dict[str, str]]:
    return Response({"error": str(fault)}, status_code=400)

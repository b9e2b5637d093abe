"""POST /v1/images/generations."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler

from gateway.api.auth import Authenticator
from gateway.api.body import read_body, to_image_request
from gateway.api.replies import json_response
from gateway.config import Tenant
from gateway.logs import prompt_facts, request_log
from gateway.pipeline import Outcome, Pipeline

LONGEST_LEAD_S = 1.0
PATHS = ["/v1/images/generations", "/images/generations"]


def image_routes(
    authenticate: Authenticator,
    pipeline: Pipeline,
    *,
    max_body_bytes: int,
    deadline_s: float,
    steady: Callable[[], float],
) -> list[HTTPRouteHandler]:
    """The handlers of the image endpoints."""

    @post(PATHS, status_code=200)
    async def generate(request: Request[Any, Any, Any]) -> Response[bytes]:
        started = steady()
        caller = authenticate(request.scope)
        body = await read_body(request.scope, request.receive, max_body_bytes)
        wanted = to_image_request(body)
        log = request_log(request.scope).bind(
            tenant=caller.tenant.name, key=caller.key.label, **prompt_facts(wanted.prompt)
        )
        allowed_s = patience_s(
            request.headers.get("x-stainless-read-timeout"), caller.tenant, deadline_s
        )
        outcome = await pipeline.serve(caller, wanted, started + allowed_s, log)
        return json_response(outcome.response, headers=notes(outcome))

    return [generate]


def patience_s(sdk_timeout: str | None, tenant: Tenant, default_s: float) -> float:
    """Seconds this request may take: the tenant's or the default, or the SDK's own if shorter.

    openai-python sends its read timeout as `x-stainless-read-timeout`. An answer after it is lost,
    and the SDK sends the request again, so the gateway gives up a little earlier.
    """
    allowed = tenant.deadline_s or default_s
    try:
        told = float(sdk_timeout or "")
    except ValueError:
        return allowed
    if not isfinite(told) or told <= 0:
        return allowed
    return min(allowed, told - min(told / 10, LONGEST_LEAD_S))


def notes(outcome: Outcome) -> dict[str, str]:
    """Headers on what became of the request's fields."""
    plan = outcome.plan
    headers = {"x-gateway-model": plan.model}
    if plan.size is not None:
        headers["x-gateway-size"] = str(plan.size)
    if plan.ignored:
        headers["x-gateway-ignored"] = ", ".join(plan.ignored)
    if plan.warnings:
        headers["x-gateway-warning"] = "; ".join(plan.warnings)
    return headers

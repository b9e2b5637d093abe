"""POST /v1/images/generations."""

from __future__ import annotations

from math import isfinite
from typing import Any

from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.types import Receive, Scope

from gateway.api.auth import Authenticator
from gateway.api.body import read_body, to_image_request
from gateway.api.connection import result_of
from gateway.api.replies import json_response
from gateway.config import Tenant
from gateway.exchange import exchange_of
from gateway.logs import prompt_facts
from gateway.pipeline import Job, Pipeline
from gateway.translate.request import Plan

LONGEST_LEAD_S = 1.0
PATHS = ["/v1/images/generations", "/images/generations"]


def image_routes(
    authenticate: Authenticator,
    pipeline: Pipeline,
    *,
    max_body_bytes: int,
    deadline_s: float,
) -> list[HTTPRouteHandler]:
    """The handlers of the image endpoints."""

    async def start(scope: Scope, receive: Receive) -> Job:
        """Everything up to the waiting, so that what is read here is not held meanwhile."""
        caller = authenticate(scope)
        wanted = to_image_request(await read_body(scope, receive, max_body_bytes))
        exchange = exchange_of(scope)
        exchange.log = exchange.log.bind(
            tenant=caller.tenant.name, key=caller.key.label, **prompt_facts(wanted.prompt)
        )
        told = dict(scope["headers"]).get(b"x-stainless-read-timeout")
        patience = patience_s(told, caller.tenant, deadline_s)
        return pipeline.start(caller, wanted, exchange, patience)

    @post(PATHS, status_code=200)
    async def generate(request: Request[Any, Any, Any]) -> Response[bytes]:
        job = await start(request.scope, request.receive)
        urls = await result_of(job.task, request.receive, job.patience_s, job.leave)
        response = await pipeline.deliver(job.plan, urls)
        return json_response(response, headers=notes(job.plan))

    return [generate]


def patience_s(sdk_timeout: bytes | None, tenant: Tenant, default_s: float) -> float:
    """Seconds this request may take: the tenant's or the default, or the SDK's own if shorter.

    openai-python sends its read timeout as `x-stainless-read-timeout`. An answer after it is lost,
    and the SDK sends the request again, so the gateway gives up a little earlier.
    """
    allowed = tenant.deadline_s or default_s
    try:
        told = float(sdk_timeout or b"")
    except ValueError:
        return allowed
    if not isfinite(told) or told <= 0:
        return allowed
    return min(allowed, told - min(told / 10, LONGEST_LEAD_S))


def notes(plan: Plan) -> dict[str, str]:
    """Headers on what became of the request's fields."""
    headers = {"x-gateway-model": plan.model}
    if plan.size is not None:
        headers["x-gateway-size"] = str(plan.size)
    if plan.ignored:
        headers["x-gateway-ignored"] = ", ".join(plan.ignored)
    if plan.warnings:
        headers["x-gateway-warning"] = "; ".join(plan.warnings)
    return headers

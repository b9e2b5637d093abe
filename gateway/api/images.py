"""POST /v1/images/generations."""

from __future__ import annotations

from math import isfinite
from typing import Any

from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.types import Receive, Scope

from gateway.api.answers import Answers
from gateway.api.auth import Authenticator
from gateway.api.body import parse_json, read_body, to_image_request
from gateway.api.connection import result_of
from gateway.caching import CacheControl, adoption_hash, idempotency
from gateway.config import Tenant
from gateway.errors import InvalidRequest
from gateway.exchange import exchange_of
from gateway.ledger import Idempotency
from gateway.logs import prompt_facts
from gateway.pipeline import Job, Pipeline, Wish
from gateway.tenants import Caller

PATHS = ["/v1/images/generations", "/images/generations"]
LONGEST_LEAD_S = 1.0
SHORTEST_TOLD_S = 0.1
"""No SDK that waits less could have its answer; the header is taken for a mistake."""
GRACE_S = 1.0
"""A generation that ends at its own deadline has better words for it than "not ready"."""
LONGEST_IDEMPOTENCY_KEY = 255


def image_routes(
    authenticate: Authenticator,
    pipeline: Pipeline,
    answers: Answers,
    *,
    max_body_bytes: int,
    deadline_s: float,
) -> list[HTTPRouteHandler]:
    """The handlers of the image endpoints."""

    async def start(scope: Scope, receive: Receive) -> Job:
        """Everything up to the waiting, so that what is read here is not held meanwhile."""
        exchange = exchange_of(scope)
        caller = authenticate(scope)
        exchange.tenant = caller.tenant.name
        body = await read_body(scope, receive, max_body_bytes)
        wanted = to_image_request(parse_json(body))
        exchange.log = exchange.log.bind(
            tenant=caller.tenant.name,
            key=caller.key.label,
            **prompt_facts(wanted.prompt, whole=caller.tenant.log_prompts),
        )
        wish = to_wish(dict(scope["headers"]), caller, body, deadline_s)
        # Nothing reads the headers from here on; an SDK's are 2.5 KiB, held while it waits.
        scope["headers"].clear()  # type: ignore[attr-defined]  # the server's own list
        return pipeline.start(caller, wanted, exchange, wish)

    @post(PATHS, status_code=200)
    async def generate(request: Request[Any, Any, Any]) -> Response[bytes]:
        job = await start(request.scope, request.receive)
        patience_s = job.wish.patience_s
        result = await result_of(job.task, request.receive, patience_s, job.leave)
        return await answers.answer(job, result, exchange_of(request.scope))

    return [generate]


def to_wish(headers: dict[bytes, bytes], caller: Caller, body: bytes, deadline_s: float) -> Wish:
    """What the headers say of caching, repeating and waiting.

    Raises:
        InvalidRequest: an Idempotency-Key that cannot be one.
    """
    tenant = caller.tenant
    allowed_s = tenant.deadline_s or deadline_s
    control = headers.get(b"cache-control")
    return Wish(
        adoption=adoption_hash(tenant.name, caller.key.hash, body),
        control=CacheControl.parse(control.decode("latin-1")) if control else CacheControl(),
        idempotency=to_idempotency(headers.get(b"idempotency-key"), tenant, body),
        is_retry=headers.get(b"x-stainless-retry-count", b"0") not in {b"0", b""},
        patience_s=patience_s(headers.get(b"x-stainless-read-timeout"), allowed_s + GRACE_S),
        deadline_s=allowed_s,
    )


def to_idempotency(key: bytes | None, tenant: Tenant, body: bytes) -> Idempotency | None:
    """The client's key for this request, if it sent one."""
    if key is None:
        return None
    text = key.decode("latin-1").strip()
    if not text or len(text) > LONGEST_IDEMPOTENCY_KEY or not text.isprintable():
        message = f"An Idempotency-Key has 1 to {LONGEST_IDEMPOTENCY_KEY} printable characters."
        raise InvalidRequest(message, code="invalid_idempotency_key")
    return idempotency(tenant.name, text, parse_json(body))


def patience_s(sdk_timeout: bytes | None, allowed_s: float) -> float:
    """Seconds the client waits: what it is allowed, or the SDK's own time-out if shorter.

    openai-python sends its read timeout as `x-stainless-read-timeout`. An answer after it is lost,
    and the SDK sends the request again, so the gateway gives up a little earlier.
    """
    try:
        told = float(sdk_timeout or b"")
    except ValueError:
        return allowed_s
    if not isfinite(told) or told < SHORTEST_TOLD_S:
        return allowed_s
    return min(allowed_s, told - min(told / 10, LONGEST_LEAD_S))

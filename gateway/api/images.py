"""POST /v1/images/generations."""

from __future__ import annotations

import asyncio
from math import isfinite

from litestar import asgi
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import ASGIRouteHandler
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from gateway.api.answers import Answers
from gateway.api.auth import Authenticator
from gateway.api.body import parse_json, read_body, to_image_request
from gateway.api.disconnect import watch
from gateway.api.errors import to_answer
from gateway.api.start_limiter import StartLimiter
from gateway.config import Tenant
from gateway.domain.errors import ClientGone, GatewayError, InvalidRequest
from gateway.observability.context import RequestContext, context_of
from gateway.observability.logs import prompt_facts
from gateway.requests.pending import Job, RequestOptions
from gateway.requests.pipeline import Pipeline
from gateway.results import Idempotency
from gateway.results.cache_policy import CacheControl, adoption_hash, idempotency
from gateway.tenants.keys import Caller

PATHS = frozenset({"/v1/images/generations", "/images/generations"})
LONGEST_LEAD_S = 1.0
SHORTEST_TOLD_S = 0.1
"""No SDK that waits less could have its answer; the header is taken for a mistake."""
GRACE_S = 1.0
"""A generation that ends at its own deadline has better words for it than "not ready"."""
LONGEST_IDEMPOTENCY_KEY = 255
ALLOWED = "OPTIONS, POST"


class ImageEndpoint:
    """An ASGI application of one route, which the envelope calls past the framework.

    Litestar's part of a request is 4.3 KiB as long as it waits, and a seventh of its time
    (docs/decisions/0008-one-route-past-the-framework.md).
    """

    def __init__(
        self,
        authenticate: Authenticator,
        pipeline: Pipeline,
        answers: Answers,
        *,
        max_body_bytes: int,
        deadline_s: float,
    ) -> None:
        self._authenticate = authenticate
        self._pipeline = pipeline
        self._answers = answers
        self._max_body_bytes = max_body_bytes
        self._deadline_s = deadline_s
        self._turnstile = StartLimiter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST, whatever becomes of it."""
        context = context_of(scope)
        try:
            job = await self._begin(scope, receive, context)
            stop_watching = watch(scope, receive, job.hang_up)
            try:
                # Thousands stand here at once: each frame below this one would be held by all.
                result = await job.answer
            except asyncio.CancelledError:
                job.leave()
                raise
            finally:
                stop_watching()
            answer = await self._answers.answer(job, result, context)
            await answer(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - the outermost place that can still answer
            await to_answer(error, context)(scope, receive, send)

    async def _begin(self, scope: Scope, receive: Receive, context: RequestContext) -> Job:
        """Everything up to the waiting, so that what is read here is not held meanwhile."""
        caller = self._authenticate(scope)
        context.tenant = caller.tenant.name
        try:
            return await self._begin_for(caller, scope, receive, context)
        except ClientGone:
            raise
        except GatewayError:
            await self._pipeline.attach_rate_limit_headers(caller, context)
            raise

    async def _begin_for(
        self, caller: Caller, scope: Scope, receive: Receive, context: RequestContext
    ) -> Job:
        body = await read_body(scope, receive, self._max_body_bytes)
        await self._turnstile.enter()
        wanted = to_image_request(parse_json(body))
        context.bind(
            tenant=caller.tenant.name,
            key=caller.key.label,
            **prompt_facts(wanted.prompt, whole=caller.tenant.log_prompts),
        )
        options = parse_options(dict(scope["headers"]), caller, body, self._deadline_s)
        # Nothing reads the headers from here on; an SDK's are 2.5 KiB, held while it waits.
        scope["headers"].clear()  # type: ignore[attr-defined]  # the server's own list
        return await self._pipeline.begin(caller, wanted, context, options)

    def route(self) -> ASGIRouteHandler:
        """For the framework: another method comes here, or the path with a slash at its end."""

        @asgi([*PATHS], copy_scope=False)
        async def images(scope: Scope, receive: Receive, send: Send) -> None:
            method = scope["method"]  # type: ignore[typeddict-item]
            if method == "POST":
                await self(scope, receive, send)
                return
            if method != "OPTIONS":
                raise MethodNotAllowedException(headers={"allow": ALLOWED})
            await ASGIResponse(status_code=204, headers={"allow": ALLOWED})(scope, receive, send)

        return images


def parse_options(
    headers: dict[bytes, bytes], caller: Caller, body: bytes, deadline_s: float
) -> RequestOptions:
    """What the headers say of caching, repeating and waiting.

    Raises:
        InvalidRequest: an Idempotency-Key that cannot be one.
    """
    tenant = caller.tenant
    allowed_s = tenant.deadline_s or deadline_s
    control = headers.get(b"cache-control")
    return RequestOptions(
        adoption=adoption_hash(tenant.name, caller.key.hash, body),
        control=CacheControl.parse(control.decode("latin-1")) if control else CacheControl(),
        idempotency=to_idempotency(headers.get(b"idempotency-key"), tenant, body),
        is_retry=headers.get(b"x-stainless-retry-count", b"0") not in {b"0", b""},
        client_timeout_s=client_timeout_s(
            headers.get(b"x-stainless-read-timeout"), allowed_s + GRACE_S
        ),
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


def client_timeout_s(sdk_timeout: bytes | None, allowed_s: float) -> float:
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

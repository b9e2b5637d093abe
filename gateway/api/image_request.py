"""From Litestar's request to what is asked: an image request in its body, options in its head."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, TypeVar, cast

import msgspec
from litestar import Request
from litestar.datastructures import State
from litestar.dto import AbstractDTO
from litestar.openapi.spec import Reference, Schema
from litestar.types import Middleware
from litestar.typing import FieldDefinition

from gateway.api.body import R, ReadBudget, parse_json, read_body, to_request
from gateway.api.openapi import SECURITY, operation_id
from gateway.api.paths import DEPLOYMENT
from gateway.api.start_limiter import StartLimiter
from gateway.config import Tenant
from gateway.domain.errors import InvalidRequest
from gateway.protocol.openai import ImageRequest
from gateway.requests.pipeline import RequestOptions
from gateway.results import Idempotency
from gateway.results.cache_policy import CacheControl, idempotency, retry_hash
from gateway.tenants.keys import Caller
from gateway.translate.fields import adapted

T = TypeVar("T")
READ_BUDGET = "read_budget"
START_LIMITER = "start_limiter"
LONGEST_LEAD_S = 1.0
SHORTEST_TOLD_S = 0.1
"""A shorter SDK time-out is taken for a mistake."""
GRACE_S = 1.0
"""The client's time ends so much after the generation's, whose error says more."""
LONGEST_SILENCE_S = 15.0
"""Many proxies end an answer that is silent for 60 s, some after 30 s."""
LONGEST_IDEMPOTENCY_KEY = 255


class GatewayRequest(Request[Caller, None, State]):
    """Litestar's request, whose body is read within the gateway's own bounds of size and time."""

    __slots__ = ("fields", "ignored")

    fields: dict[str, Any]
    """All of the body's fields, to tell two requests apart."""
    ignored: tuple[str, ...]
    """Names of fields that have no meaning here."""

    async def body(self) -> bytes:
        """The whole body, once. Raises as `read_body`, and InvalidRequest for none."""
        limit = cast("int", self.route_handler.resolve_request_max_body_size())
        budget: ReadBudget = self.route_handler.opt[READ_BUDGET]
        with budget.begin(self.user.tenant.name) as reading:
            body = await read_body(self.scope, self.receive, limit, reading)
            if not body:
                message = "The request has no body; send a JSON object."
                raise InvalidRequest(message, code="invalid_json")
            limiter: StartLimiter = self.route_handler.opt[START_LIMITER]
            await limiter.enter()
            return body


def take_fields(
    request: GatewayRequest, fields: dict[str, Any], kind: type[R], *, strict: bool = True
) -> R:
    """Check the fields; a form's are all text, so `strict` is for JSON. Raises InvalidRequest."""
    request.fields = fields
    deployment = request.path_params.get(DEPLOYMENT)
    if deployment is not None and fields.get("model") is None:
        fields["model"] = deployment
    if request.user.tenant.unknown_parameters == "refuse":
        request.ignored = ()
        return to_request(fields, kind, strict=strict)
    known, request.ignored = adapted(fields, kind)
    return to_request(known, kind, strict=False)


class OwnTypeDTO(AbstractDTO[T]):
    """Documents a type as it is; a subclass decodes it."""

    asgi_connection: GatewayRequest

    @classmethod
    def create_for_field_definition(cls, *_: object, **__: object) -> None:
        """Nothing to prepare: the type itself is decoded."""

    @classmethod
    def create_openapi_schema(
        cls,
        field_definition: FieldDefinition,
        handler_id: str,  # noqa: ARG003 - of the base class
        schema_creator: Any,  # noqa: ANN401 - Litestar's, and not public
    ) -> Reference | Schema:
        return cast("Reference | Schema", schema_creator.for_field_definition(field_definition))


class ImageRequestDTO(OwnTypeDTO[ImageRequest]):
    """Decodes a body more strictly than Litestar would, with OpenAI's words for refusals."""

    def decode_bytes(self, value: bytes) -> ImageRequest:
        """Raises InvalidRequest, whose `param` names the field at fault."""
        return take_fields(self.asgi_connection, parse_json(value), ImageRequest)


def body_options(
    middleware: Sequence[Middleware], max_body_bytes: int, read_budget: ReadBudget
) -> dict[str, Any]:
    """For handlers that take a `GatewayRequest`; Litestar deep-copies the options of routers."""
    return {
        "status_code": 200,
        "middleware": middleware,
        "request_class": GatewayRequest,
        "request_max_body_size": max_body_bytes,
        "return_dto": None,
        "opt": {START_LIMITER: StartLimiter(), READ_BUDGET: read_budget},
        "operation_id": operation_id,
        "security": SECURITY,
    }


def parse_options(
    lines: Sequence[tuple[bytes, bytes]],
    caller: Caller,
    body: dict[str, Any],
    deadline_s: float,
    *,
    streams: bool = False,
) -> RequestOptions:
    """What the headers ask for: cache, idempotency, retries and time-outs.

    `body` is what makes two requests the same, in any order of keys. Several Cache-Control lines
    are one list (RFC 9110, section 5.3). Raises InvalidRequest for a bad or second Idempotency-Key,
    or a Cache-Control that is too long.
    """
    headers = dict(lines)
    tenant = caller.tenant
    allowed_s = tenant.deadline_s or deadline_s
    control = b",".join(values_of(b"cache-control", lines))
    return RequestOptions(
        retry_key=retry_hash(tenant.name, caller.key.hash, canonical(body)),
        control=CacheControl.parse(control.decode("latin-1")) if control else CacheControl(),
        idempotency=to_idempotency(values_of(b"idempotency-key", lines), tenant, body),
        is_retry=headers.get(b"x-stainless-retry-count", b"0") not in {b"0", b""},
        client_timeout_s=allowed_s + GRACE_S
        if streams
        else client_timeout_s(headers.get(b"x-stainless-read-timeout"), allowed_s + GRACE_S),
        silence_s=silence_s(headers),
        deadline_s=allowed_s,
    )


def canonical(body: dict[str, Any]) -> bytes:
    """The same bytes for the same content."""
    return msgspec.json.encode(body, order="deterministic")


def values_of(name: bytes, lines: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    return [value for key, value in lines if key == name]


def to_idempotency(
    keys: Sequence[bytes], tenant: Tenant, body: dict[str, Any]
) -> Idempotency | None:
    texts = {key.decode("latin-1").strip() for key in keys}
    if not texts:
        return None
    if len(texts) > 1:
        message = "Two different Idempotency-Keys came with this request; send one."
        raise InvalidRequest(message, code="invalid_idempotency_key")
    (text,) = texts
    if not text or len(text) > LONGEST_IDEMPOTENCY_KEY or not text.isprintable():
        message = f"An Idempotency-Key has 1 to {LONGEST_IDEMPOTENCY_KEY} printable characters."
        raise InvalidRequest(message, code="invalid_idempotency_key")
    return idempotency(tenant.name, text, body)


def client_timeout_s(sdk_timeout: bytes | None, allowed_s: float) -> float:
    """Seconds the client waits: what it is allowed, or the SDK's own time-out if shorter.

    openai-python sends it as `x-stainless-read-timeout`, and repeats the request after it: the
    gateway gives up a little earlier.
    """
    told = told_s(sdk_timeout)
    return allowed_s if told is None else min(allowed_s, told - min(told / 10, LONGEST_LEAD_S))


def silence_s(headers: dict[bytes, bytes]) -> float:
    """Seconds for which a streamed answer may be silent.

    openai-python's read time-out restarts with each byte, openai-node's ends at the answer's head.
    """
    names = (b"x-stainless-read-timeout", b"x-stainless-timeout")
    told = [s for s in map(told_s, map(headers.get, names)) if s is not None]
    return min([LONGEST_SILENCE_S, *(s / 2 for s in told)])


def told_s(sdk_timeout: bytes | None) -> float | None:
    """None where the header can hardly be meant."""
    try:
        told = float(sdk_timeout or b"")
    except ValueError:
        return None
    return told if isfinite(told) and told >= SHORTEST_TOLD_S else None

"""Every failure as OpenAI's error object: the gateway's own, the framework's, and defects."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import msgspec
from litestar import Request, Response, route
from litestar.exceptions import HTTPException
from litestar.response.base import ASGIResponse
from litestar.types import ExceptionHandlersMap

from gateway.domain import errors
from gateway.domain.errors import GatewayError
from gateway.observability.context import RequestContext, context_of
from gateway.protocol.openai import ErrorDetail, ErrorResponse

AnyRequest = Request[Any, Any, Any]

BY_STATUS: dict[int, tuple[type[GatewayError], str]] = {
    400: (errors.InvalidRequest, "The request is malformed."),
    404: (
        errors.NotFound,
        "Nothing is at this path. Images are made at /v1/images/generations.",
    ),
    405: (errors.MethodNotAllowed, "This path does not take this method."),
    413: (errors.BodyTooLarge, "The request body is too large."),
    415: (
        errors.UnsupportedMediaType,
        "Send JSON, with Content-Type: application/json.",
    ),
    422: (errors.InvalidRequest, "The request is malformed."),
}

UNEXPECTED = (errors.InternalFault, "The gateway could not handle the request.")

encode = msgspec.json.Encoder().encode

read = partial(route, http_method=("GET", "HEAD"))
"""The decorator of handlers that load balancers may ask by HEAD: the server sends no body then."""


def json_response(
    body: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response[bytes]:
    """A JSON answer; msgspec alone, as Litestar's encoder supports far more than is needed."""
    return Response(
        encode(body), media_type="application/json", status_code=status, headers=headers
    )


def json_answer(
    body: object, status: int = 200, headers: dict[str, str] | None = None
) -> ASGIResponse:
    """The same for a route that is served past Litestar."""
    return ASGIResponse(
        body=encode(body), media_type="application/json", status_code=status, headers=headers
    )


def error_response(error: GatewayError, extra: dict[str, str] | None = None) -> Response[bytes]:
    """OpenAI's envelope, and the headers that its SDKs act on."""
    return json_response(to_body(error), error.status, retry_headers(error) | (extra or {}))


def to_body(error: GatewayError) -> ErrorResponse:
    """OpenAI's error object."""
    return ErrorResponse(ErrorDetail(error.message, error.type, error.param, error.code))


def to_answer(error: Exception, context: RequestContext) -> ASGIResponse:
    """What an image request that failed is answered, and noted as."""
    failure = error if isinstance(error, GatewayError) else defect(error, context)
    context.outcome = failure.label()
    return json_answer(to_body(failure), failure.status, retry_headers(failure))


def retry_headers(error: GatewayError) -> dict[str, str]:
    """`retry-after` in whole seconds and exact milliseconds, and the verdict on retrying at all."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None and error.should_retry is not False:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    return headers


def on_gateway_error(request: AnyRequest, error: GatewayError) -> Response[bytes]:
    """A failure with its own words."""
    context_of(request.scope).outcome = error.label()
    return error_response(error)


def on_framework_error(request: AnyRequest, error: HTTPException) -> Response[bytes]:
    """Litestar's refusals, in words of ours: its own may repeat what the caller sent."""
    kind, message = BY_STATUS.get(error.status_code, UNEXPECTED)
    context_of(request.scope).outcome = kind.label()
    allow = {k.lower(): v for k, v in (error.headers or {}).items() if k.lower() == "allow"}
    return error_response(kind(message), allow)


def on_defect(request: AnyRequest, error: Exception) -> Response[bytes]:
    """A bug: the client gets the request id, the log gets the rest."""
    context = context_of(request.scope)
    context.outcome = errors.InternalFault.label()
    return error_response(defect(error, context))


def defect(error: Exception, context: RequestContext) -> GatewayError:
    """Log the cause, which is nobody else's business."""
    context.log.error("defect", exc_info=error)
    message = "The gateway failed; its operator finds the cause under this request's x-request-id."
    return errors.InternalFault(message)


EXCEPTION_HANDLERS: ExceptionHandlersMap = {
    GatewayError: on_gateway_error,
    HTTPException: on_framework_error,
    Exception: on_defect,
}

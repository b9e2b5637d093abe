"""Every failure as an error object: the gateway's own, the framework's, and defects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
from litestar import Request, Response, route
from litestar.exceptions import HTTPException
from litestar.response.base import ASGIResponse
from litestar.types import ExceptionHandlersMap, Scope

from gateway.api.paths import is_native, unserved
from gateway.api.responses import JsonAnswer
from gateway.domain import errors
from gateway.domain.errors import GatewayError
from gateway.observability.context import context_of
from gateway.protocol.openai import ErrorDetail, ErrorResponse
from gateway.translate.native import to_error

AnyRequest = Request[Any, Any, Any]

BY_STATUS: dict[int, tuple[type[GatewayError], str]] = {
    400: (errors.InvalidRequest, "The request is malformed."),
    413: (errors.BodyTooLarge, "The request body is too large."),
    415: (
        errors.UnsupportedMediaType,
        "Send JSON, with Content-Type: application/json.",
    ),
    422: (errors.InvalidRequest, "The request is malformed."),
}

UNEXPECTED = (errors.InternalFault, "The gateway could not handle the request.")

read = partial(route, http_method=("GET", "HEAD"))
"""For handlers that load balancers may ask by HEAD: the server sends no body then."""


def error_response(
    error: GatewayError, headers: dict[str, str] | None = None
) -> Response[ErrorResponse]:
    """OpenAI's error object, and the headers that its SDKs act on."""
    return JsonAnswer(
        ErrorResponse(to_detail(error)),
        status_code=error.status,
        headers=retry_headers(error) | (headers or {}),
    )


def respond(
    scope: Scope, error: GatewayError, headers: dict[str, str] | None = None
) -> Response[Any]:
    """OpenAI's error object, or the vendor's below the vendor's own path."""
    response: Response[Any] = error_response(error, headers)
    if is_native(scope["path"]):
        response.content = to_error(error, context_of(scope).request_id)
    return response


def to_detail(error: GatewayError) -> ErrorDetail:
    return ErrorDetail(error.message, error.type, error.param, error.code)


def error_answer(scope: Scope, error: GatewayError) -> ASGIResponse:
    """An ASGI application, for an answer that no handler makes."""
    response = respond(scope, error)
    return ASGIResponse(
        body=msgspec.json.encode(response.content),
        status_code=error.status,
        headers=response.headers,
        media_type="application/json",
    )


def retry_headers(error: GatewayError) -> dict[str, str]:
    """`retry-after` in whole seconds and exact milliseconds, and whether to retry at all."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None and error.should_retry is not False:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    return headers


def on_gateway_error(request: AnyRequest, error: GatewayError) -> Response[Any]:
    context_of(request.scope).outcome = error.label()
    return respond(request.scope, error)


def on_framework_error(request: AnyRequest, error: HTTPException) -> Response[Any]:
    """Litestar's refusals in our words: its own may repeat what the caller sent."""
    allow = {k.lower(): v for k, v in (error.headers or {}).items() if k.lower() == "allow"}
    failure = to_gateway_error(
        request.scope["method"], request.scope["path"], error.status_code, allow
    )
    context_of(request.scope).outcome = failure.label()
    return respond(request.scope, failure, allow)


def to_gateway_error(method: str, path: str, status: int, allow: Mapping[str, str]) -> GatewayError:
    if status == 404:
        return unserved(method, path)
    if status == 405:
        return errors.MethodNotAllowed(f"This path takes {allow['allow']}, not {method}.")
    kind, message = BY_STATUS.get(status, UNEXPECTED)
    return kind(message)


def on_defect(request: AnyRequest, error: Exception) -> Response[Any]:
    """The client gets the request id, the log gets the cause."""
    context = context_of(request.scope)
    context.outcome = errors.InternalFault.label()
    context.log.error("defect", exc_info=error)
    message = "The gateway failed; its operator finds the cause under this request's x-request-id."
    return respond(request.scope, errors.InternalFault(message))


EXCEPTION_HANDLERS: ExceptionHandlersMap = {
    GatewayError: on_gateway_error,
    HTTPException: on_framework_error,
    Exception: on_defect,
}

"""From Litestar's request to the image request in its body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from litestar import Request
from litestar.datastructures import State
from litestar.dto import AbstractDTO
from litestar.openapi.spec import Reference, Schema
from litestar.types import Middleware
from litestar.typing import FieldDefinition

from gateway.api.body import R, parse_json, read_body, to_request
from gateway.api.openapi import SECURITY, operation_id
from gateway.api.paths import DEPLOYMENT
from gateway.api.read_budget import ReadBudget
from gateway.api.start_limiter import StartLimiter
from gateway.domain.errors import InvalidRequest
from gateway.protocol.openai import ImageRequest
from gateway.tenants.keys import Caller
from gateway.translate.lenient import adapted

T = TypeVar("T")
READ_BUDGET = "read_budget"
START_LIMITER = "start_limiter"


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

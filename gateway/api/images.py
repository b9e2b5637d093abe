"""POST /v1/images/generations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from litestar import Request, Response, post
from litestar.datastructures import State
from litestar.dto import AbstractDTO
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Reference, Schema
from litestar.params import JSONBody
from litestar.types import Middleware, Scope
from litestar.typing import FieldDefinition

from gateway.api.answers import Answers
from gateway.api.body import parse_json, read_body, to_image_request
from gateway.api.disconnect import watch
from gateway.api.openapi import IMAGE_ERRORS, SECURITY, error_responses, operation_id
from gateway.api.options import parse_options
from gateway.api.start_limiter import StartLimiter
from gateway.domain.errors import ClientGone, GatewayError, InvalidRequest
from gateway.observability.context import context_of
from gateway.observability.logs import prompt_facts
from gateway.protocol.openai import ImageRequest, ImagesResponse
from gateway.requests.client import Client
from gateway.requests.pipeline import Pipeline
from gateway.tenants.keys import Caller

GENERATIONS: Final = ["/v1/images/generations", "/images/generations"]
START_LIMITER = "start_limiter"


class GatewayRequest(Request[Caller, None, State]):
    """Litestar's request, whose body is read within the gateway's own bounds of size and time."""

    __slots__ = ("fields",)

    fields: dict[str, Any]
    """What was sent in the body, for whatever tells two requests apart."""

    async def body(self) -> bytes:
        """The whole body, once.

        Raises:
            UnsupportedMediaType, BodyTooLarge, BodyTimeout: it cannot be read.
            InvalidRequest: there is none.
        """
        limit = cast("int", self.route_handler.resolve_request_max_body_size())
        body = await read_body(self.scope, self.receive, limit)
        if not body:
            message = "The request has no body; send a JSON object."
            raise InvalidRequest(message, code="invalid_json")
        limiter: StartLimiter = self.route_handler.opt[START_LIMITER]
        await limiter.enter()
        return body


class ImageRequestDTO(AbstractDTO[ImageRequest]):
    """Decodes a body more strictly than Litestar would, and refuses it in words of OpenAI's."""

    asgi_connection: GatewayRequest

    def decode_bytes(self, value: bytes) -> ImageRequest:
        """Raises InvalidRequest: `param` names the field at fault."""
        fields = parse_json(value)
        self.asgi_connection.fields = fields
        return to_image_request(fields)

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
        """The type's own."""
        return cast("Reference | Schema", schema_creator.for_field_definition(field_definition))


class ImageRoutes:
    """The image endpoints."""

    def __init__(self, pipeline: Pipeline, answers: Answers, *, deadline_s: float) -> None:
        self._pipeline = pipeline
        self._answers = answers
        self._deadline_s = deadline_s

    def routes(
        self, middleware: Sequence[Middleware], max_body_bytes: int
    ) -> list[HTTPRouteHandler]:
        """The routes, for Litestar.

        Everything stands at the handlers: Litestar makes deep copies of what stands at a router.
        """

        @post(
            GENERATIONS,
            status_code=200,
            middleware=middleware,
            request_class=GatewayRequest,
            request_max_body_size=max_body_bytes,
            dto=ImageRequestDTO,
            return_dto=None,
            opt={START_LIMITER: StartLimiter()},
            operation_id=operation_id,
            summary="Make images",
            security=SECURITY,
            responses=error_responses(IMAGE_ERRORS),
        )
        async def create_image(
            data: JSONBody[ImageRequest], request: GatewayRequest
        ) -> Response[ImagesResponse]:
            """Make images from a prompt, as OpenAI's `images.generate` does."""
            return await self._generate(data, request)

        return [create_image]

    async def attach_rate_limit_headers(self, error: Exception, scope: Scope) -> None:
        """Litestar's hook: say where the caller's limits stand where its request never met them."""
        context, caller = context_of(scope), scope.get("user")
        is_refused = isinstance(error, GatewayError) and not isinstance(error, ClientGone)
        if is_refused and caller is not None and context.is_image_request:
            await self._pipeline.attach_rate_limit_headers(caller, context)

    async def _generate(
        self, wanted: ImageRequest, request: GatewayRequest
    ) -> Response[ImagesResponse]:
        caller, context = request.user, context_of(request.scope)
        context.bind(
            tenant=caller.tenant.name,
            key=caller.key.label,
            **prompt_facts(wanted.prompt, whole=caller.tenant.log_prompts),
        )
        options = parse_options(
            dict(request.scope["headers"]), caller, request.fields, self._deadline_s
        )
        plan = self._pipeline.plan(caller, wanted, context)
        # All of both has been read. A request may wait for minutes, and thousands do: an SDK's
        # headers are 2.5 KiB. What comes later, a middleware too, finds none of them.
        del request.fields
        request.scope["headers"].clear()  # type: ignore[attr-defined]  # the server's own list
        client = Client(context.answer_early)

        def hang_up() -> None:
            context.is_client_gone = True
            client.hang_up()

        stop_watching = watch(request.scope, request.receive, hang_up)
        try:
            result = await self._pipeline.serve(caller, plan, context, options, client)
        finally:
            stop_watching()
        return await self._answers.answer(result, context)

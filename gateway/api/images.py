"""POST /v1/images/generations and /v1/images/edits, and where else clients look for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, cast

from litestar import Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp, Receive, Scope, Send

from gateway.api.answers import Answers, Describe, plan_headers
from gateway.api.connection import watch
from gateway.api.edit_request import EDIT, EditReader
from gateway.api.event_stream import StreamedEvents, StreamedRequest
from gateway.api.image_request import GatewayRequest, ImageRequestDTO, parse_options
from gateway.api.openapi import IMAGE_ERRORS, error_responses
from gateway.api.paths import of_deployments, prefixed
from gateway.domain.errors import ClientGone, GatewayError
from gateway.domain.pictures import NO_INPUTS, Inputs
from gateway.observability.context import context_of
from gateway.observability.logs import prompt_facts
from gateway.protocol.openai import ImageEvent, ImageRequest, ImagesResponse
from gateway.requests.client import Client
from gateway.requests.pipeline import Pipeline, Result
from gateway.translate.request import SizePolicy

Serve = Callable[[Client], Awaitable[Result]]
GENERATIONS: Final = "/images/generations"
EDITS: Final = "/images/edits"


class ImageRoutes:
    def __init__(
        self, pipeline: Pipeline, answers: Answers, edits: EditReader, *, deadline_s: float
    ) -> None:
        self._pipeline = pipeline
        self._answers = answers
        self._edits = edits
        self._deadline_s = deadline_s

    def routes(self, options: dict[str, Any]) -> list[HTTPRouteHandler]:
        """`options` are those of `body_options`."""

        async def create_image(
            data: JSONBody[ImageRequest], request: GatewayRequest
        ) -> Response[ImagesResponse]:
            """Make images from a prompt, as OpenAI's `images.generate` does."""
            return await self.make(data, request)

        async def edit_image(request: GatewayRequest) -> Response[ImagesResponse]:
            """Make images from others and a prompt, as OpenAI's `images.edit` does."""
            wanted, inputs = await self._edits.read(request, EDIT)
            try:
                return await self.make(wanted, request, event="image_edit.completed", inputs=inputs)
            except BaseException:
                inputs.close()
                raise

        shared: dict[str, Any] = {**options, "responses": error_responses(IMAGE_ERRORS)}
        of_generations = {"dto": ImageRequestDTO, "summary": "Make images"}
        return [
            *at_every_path(GENERATIONS, create_image, shared | of_generations),
            *at_every_path(EDITS, edit_image, shared | {"summary": "Edit images"}),
        ]

    async def attach_rate_limit_headers(self, error: Exception, scope: Scope) -> None:
        """Litestar's hook: add the caller's limits to a request that failed before it met them."""
        context, caller = context_of(scope), scope.get("user")
        is_refused = isinstance(error, GatewayError) and not isinstance(error, ClientGone)
        if is_refused and caller is not None and context.is_image_request:
            await self._pipeline.attach_rate_limit_headers(caller, context)

    async def make(
        self,
        wanted: ImageRequest,
        request: GatewayRequest,
        *,
        size_policy: SizePolicy | None = None,
        describe: Describe | None = None,
        event: ImageEvent = "image_generation.completed",
        inputs: Inputs = NO_INPUTS,
    ) -> Response[Any]:
        """Serve a request whose body and pictures have been read. Raises GatewayError."""
        caller, context = request.user, context_of(request.scope)
        context.bind(
            tenant=caller.tenant.name,
            key=caller.key.label,
            **prompt_facts(wanted.prompt, whole=caller.tenant.log_prompts),
        )
        options = parse_options(
            list(request.scope["headers"]),
            caller,
            request.fields,
            self._deadline_s,
            streams=bool(wanted.stream),
        )
        plan = self._pipeline.plan(caller, wanted, context, size_policy, inputs)
        self._answers.require_convertible(plan)
        # All of both has been read. A request may wait for minutes, and thousands do: an SDK's
        # headers are 2.5 KiB. What comes later, a middleware too, finds none of them.
        del request.fields
        request.scope["headers"].clear()  # type: ignore[attr-defined]  # the server's own list
        serve = partial(self._pipeline.serve, caller, plan, context, options)
        if inputs is not NO_INPUTS:
            serve = partial(serve_and_close, inputs, serve)
        if wanted.stream:
            asked = StreamedRequest(
                serve=serve,
                event=event,
                plan=plan,
                cache_s=caller.tenant.cache.ttl_s,
                silence_s=options.silence_s,
            )
            headers = plan_headers(plan, request.ignored)
            return ServedImages(StreamedEvents(asked, self._answers, headers))
        return ServedImages(ServedRequest(serve, self._answers, describe, request.ignored))


async def serve_and_close(
    inputs: Inputs, serve: Callable[[Client], Awaitable[Result]], client: Client
) -> Result:
    """Serve an edit; once that has ended, nothing more of it is sent."""
    try:
        return await serve(client)
    finally:
        inputs.close()


def at_every_path(
    operation: str,
    handler: Callable[..., Awaitable[Response[ImagesResponse]]],
    settings: dict[str, Any],
) -> list[HTTPRouteHandler]:
    """The documented paths of an operation, OpenAI's and Azure's, and their synonyms."""
    documented, *others = prefixed(operation)
    azure, *more = of_deployments(operation)
    return [
        post([documented, azure], **settings)(handler),
        post([*others, *more], include_in_schema=False, **settings)(handler),
    ]


class ServedRequest:
    """An ASGI application: has a request served, then answers it, naming its `ignored` fields.

    A handler returns before the wait: thousands of waiting requests would each hold its frame.
    """

    __slots__ = ("_answers", "_describe", "_ignored", "_serve")

    def __init__(
        self, serve: Serve, answers: Answers, describe: Describe | None, ignored: Sequence[str]
    ) -> None:
        self._serve = serve
        self._answers = answers
        self._describe = describe
        self._ignored = ignored

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The work goes on if the client leaves. Raises GatewayError: why it has no images."""
        context = context_of(scope)
        client = Client(context.answer_early)

        def hang_up() -> None:
            context.is_client_gone = True
            client.hang_up()

        stop_watching = watch(scope, receive, hang_up)
        try:
            result = await self._serve(client)
        finally:
            stop_watching()
        answer = await self._answers.answer(result, context, self._describe, self._ignored)
        await answer(scope, receive, send)


class ServedImages(Response[ImagesResponse]):
    """For a handler to return: `app` serves the request and sends its answer."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(ImagesResponse(created=0, data=[]))
        self._app = app

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIResponse:  # noqa: ANN401 - Litestar's own
        """Litestar needs only an ASGI application."""
        return cast("ASGIResponse", self._app)

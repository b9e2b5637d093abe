"""Serving where Litestar sends answers, so that waiting requests hold no handler's frame (0008)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from litestar import Response
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from gateway.api.answers import Answers, Describe
from gateway.api.disconnect import watch
from gateway.observability.context import context_of
from gateway.protocol.openai import ImagesResponse
from gateway.requests.client import Client
from gateway.requests.pipeline import Result

AnyResponse = TypeVar("AnyResponse", bound=Response[Any])
Serve = Callable[[Client], Awaitable[Result]]


class ServedRequest:
    """An ASGI application: has a request served, then answers it, naming its `ignored` fields."""

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
        answer = await self._answers.answer(result, context, self._describe)
        await noted(answer, self._ignored).to_asgi_response()(scope, receive, send)


class ServedImages(Response[ImagesResponse]):
    def __init__(self, request: ServedRequest) -> None:
        super().__init__(ImagesResponse(created=0, data=[]))
        self._request = request

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIResponse:  # noqa: ANN401 - Litestar's own
        """Litestar needs only an ASGI application."""
        return cast("ASGIResponse", self._request)


def noted(answer: AnyResponse, ignored: Sequence[str]) -> AnyResponse:
    """The answer, naming fields that have no meaning here."""
    before = answer.headers.get("x-gateway-ignored")
    names = [*([before] if before else []), *ignored]
    if names:
        answer.headers["x-gateway-ignored"] = ", ".join(names)
    return answer

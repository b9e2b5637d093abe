"""GET and HEAD /v1/models and /v1/models/{id}: what this key may use, aliases included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litestar import Request, Response
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.types import Middleware

from gateway.api.errors import read
from gateway.api.openapi import MODEL_ERRORS, SECURITY, error_responses, operation_id
from gateway.api.paths import prefixed
from gateway.domain.catalogue import Catalogue, Choice
from gateway.protocol.openai import Model, ModelList
from gateway.tenants.keys import Caller, choose_model, usable


class Models:
    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def use(self, catalogue: Catalogue) -> None:
        """Follow a changed configuration, from the next request on."""
        self._catalogue = catalogue

    def routes(self, middleware: Sequence[Middleware]) -> list[HTTPRouteHandler]:
        async def list_models(request: Request[Caller, None, State]) -> Response[ModelList]:
            """The models that this key may use, aliases included."""
            models = [to_model(choice) for choice in usable(self._catalogue, request.user.tenant)]
            return Response(ModelList(models))

        async def retrieve_model(
            name: FromPath[str], request: Request[Caller, None, State]
        ) -> Response[Model]:
            """One model or alias that this key may use."""
            choice = choose_model(self._catalogue, request.user.tenant, name.lstrip("/"), "")
            return Response(to_model(choice))

        shared: dict[str, Any] = {
            "middleware": middleware,
            "operation_id": operation_id,
            "security": SECURITY,
            "responses": error_responses(MODEL_ERRORS),
        }
        documented, *others = prefixed("/models")
        # The SDKs send a slash inside an id as %2F, which arrives here decoded.
        one, *more = prefixed("/models/{name:path}")
        return [
            read(documented, summary="List models", **shared)(list_models),
            read(others, include_in_schema=False, **shared)(list_models),
            read(one, summary="A model", **shared)(retrieve_model),
            read(more, include_in_schema=False, **shared)(retrieve_model),
        ]


def to_model(choice: Choice) -> Model:
    """An alias has the age of the model behind it."""
    return Model(id=choice.requested, created=choice.model.created, owned_by=choice.model.owned_by)

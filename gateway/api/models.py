"""GET and HEAD /v1/models and /v1/models/{id}: what this key may use, aliases included."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response
from litestar.handlers import HTTPRouteHandler

from gateway.api.auth import Authenticator
from gateway.api.errors import json_response, read
from gateway.domain.catalogue import Catalogue, Choice
from gateway.protocol.openai import Model, ModelList
from gateway.tenants.keys import choose_model, usable


class Models:
    """The handlers of the model endpoints."""

    def __init__(self, authenticate: Authenticator, catalogue: Catalogue) -> None:
        self._authenticate = authenticate
        self._catalogue = catalogue

    def use(self, catalogue: Catalogue) -> None:
        """Follow a changed configuration, from the next request on."""
        self._catalogue = catalogue

    def routes(self) -> list[HTTPRouteHandler]:
        """The routes, for Litestar."""

        @read(["/v1/models", "/models"])
        async def list_models(request: Request[Any, Any, Any]) -> Response[bytes]:
            tenant = self._authenticate(request.scope).tenant
            models = [to_model(choice) for choice in usable(self._catalogue, tenant)]
            return json_response(ModelList(models))

        # The SDKs send a slash inside an id as %2F, which arrives here decoded.
        @read(["/v1/models/{name:path}", "/models/{name:path}"])
        async def retrieve_model(request: Request[Any, Any, Any]) -> Response[bytes]:
            tenant = self._authenticate(request.scope).tenant
            name: str = request.path_params["name"]
            return json_response(
                to_model(choose_model(self._catalogue, tenant, name.lstrip("/"), ""))
            )

        return [list_models, retrieve_model]


def to_model(choice: Choice) -> Model:
    """One entry as OpenAI shows it; an alias has the age of the model behind it."""
    return Model(id=choice.requested, created=choice.model.created, owned_by=choice.model.owned_by)

"""GET /v1/models and /v1/models/{id}: what this key may use, aliases included."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler

from gateway.api.auth import Authenticator
from gateway.api.replies import json_response
from gateway.catalogue import Catalogue, Choice
from gateway.protocol.openai import Model, ModelList
from gateway.tenants import choose_model, usable


def model_routes(authenticate: Authenticator, catalogue: Catalogue) -> list[HTTPRouteHandler]:
    """The handlers of the model endpoints."""

    @get(["/v1/models", "/models"])
    async def list_models(request: Request[Any, Any, Any]) -> Response[bytes]:
        tenant = authenticate(request.scope).tenant
        return json_response(ModelList([to_model(choice) for choice in usable(catalogue, tenant)]))

    # The SDKs send a slash inside an id as %2F, which arrives here decoded.
    @get(["/v1/models/{name:path}", "/models/{name:path}"])
    async def retrieve_model(request: Request[Any, Any, Any]) -> Response[bytes]:
        name: str = request.path_params["name"]
        tenant = authenticate(request.scope).tenant
        return json_response(to_model(choose_model(catalogue, tenant, name.lstrip("/"), "")))

    return [list_models, retrieve_model]


def to_model(choice: Choice) -> Model:
    """One entry as OpenAI shows it; an alias has the age of the model behind it."""
    return Model(id=choice.requested, created=choice.model.created, owned_by=choice.model.owned_by)

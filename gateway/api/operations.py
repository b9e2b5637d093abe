"""GET /healthz, /readyz: for whoever keeps the gateway running."""

from __future__ import annotations

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from gateway.api.replies import json_response


def operation_routes() -> list[HTTPRouteHandler]:
    """The handlers of the operations endpoints."""

    @get("/healthz")
    async def healthz() -> Response[bytes]:
        return json_response({"status": "ok"})

    @get("/readyz")
    async def readyz() -> Response[bytes]:
        return json_response({"status": "ready"})

    return [healthz, readyz]

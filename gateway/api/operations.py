"""GET /healthz, /readyz: for whoever keeps the gateway running."""

from __future__ import annotations

from collections.abc import Callable

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from gateway.api.replies import json_response
from gateway.store.base import Closable, StoreUnavailable


def operation_routes(store: Closable, degraded: Callable[[], bool]) -> list[HTTPRouteHandler]:
    """The handlers of the operations endpoints; `degraded` says that decisions are made alone."""

    @get("/healthz")
    async def healthz() -> Response[bytes]:
        return json_response({"status": "ok"})

    # A gateway without its store still serves, by its policy for that loss, so it stays ready:
    # taking every replica out of service would turn a partial failure into a whole one.
    @get("/readyz")
    async def readyz() -> Response[bytes]:
        parts = {"store": "ok"}
        try:
            await store.ping()
        except StoreUnavailable:
            parts["store"] = "unavailable"
        alone = degraded() or parts["store"] != "ok"
        return json_response({"status": "degraded" if alone else "ready", "parts": parts})

    return [healthz, readyz]

"""The application, assembled in one place; nothing happens at import."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic, time

import httpx
from litestar import Litestar
from litestar.types import ASGIApp

from gateway.api.auth import Authenticator
from gateway.api.envelope import Envelope
from gateway.api.images import image_routes
from gateway.api.models import model_routes
from gateway.api.operations import operation_routes
from gateway.api.replies import EXCEPTION_HANDLERS
from gateway.config import Config
from gateway.pipeline import Clock, Pipeline
from gateway.tenants import KeyRing
from gateway.upstream.accounts import Accounts
from gateway.upstream.client import DashScope, open_transport
from gateway.upstream.images import ImageFetcher


def create_app(
    config: Config,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
    clock: Clock | None = None,
) -> ASGIApp:
    """Wire everything up. Tests pass other parts in; production passes none."""
    clock = clock or Clock(time, monotonic)
    client = DashScope(config.upstream, transport or open_transport(config.upstream))
    fetcher = ImageFetcher(config.images)
    pipeline = Pipeline(
        config.catalogue,
        config.default_model,
        accounts=Accounts(config.accounts, clock.steady),
        client=client,
        fetcher=fetcher,
        clock=clock,
    )
    authenticate = Authenticator(KeyRing(config.tenants), clock.now)

    @asynccontextmanager
    async def connections(_: Litestar) -> AsyncIterator[None]:
        yield
        await client.aclose()
        await fetcher.aclose()

    app = Litestar(
        [
            *image_routes(
                authenticate,
                pipeline,
                max_body_bytes=config.max_body_bytes,
                deadline_s=config.upstream.deadline_s,
                steady=clock.steady,
            ),
            *model_routes(authenticate, config.catalogue),
            *operation_routes(),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[connections],
        openapi_config=None,
        logging_config=None,
    )
    return Envelope(app)

"""The application, assembled in one place; nothing happens at import."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import token_hex
from time import monotonic, time

import httpx
from litestar import Litestar
from litestar.types import ASGIApp

from gateway.admission import Admission
from gateway.api.auth import Authenticator
from gateway.api.envelope import Envelope
from gateway.api.images import image_routes
from gateway.api.models import model_routes
from gateway.api.operations import operation_routes
from gateway.api.replies import EXCEPTION_HANDLERS
from gateway.config import Config
from gateway.config import OnLoss as ConfiguredOnLoss
from gateway.generation import Clock, Generator
from gateway.limits import Limiter, Loss, OnLoss
from gateway.pacing import Alone, Pacer, QueueBounds
from gateway.pipeline import Pipeline
from gateway.store.base import Share, Store
from gateway.store.memory import MemoryStore
from gateway.store.redis import RedisStore, Timeouts
from gateway.tenants import KeyRing
from gateway.upstream.accounts import Accounts
from gateway.upstream.client import DashScope, open_transport
from gateway.upstream.images import ImageFetcher


def create_app(
    config: Config,
    *,
    store: Store | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    clock: Clock | None = None,
    share: Share = Share(),
) -> ASGIApp:
    """Wire everything up. Tests pass other parts in; production passes only its `share`.

    `share` is this worker's place among all, until the store tells it.
    """
    clock = clock or Clock(time, monotonic)
    store = store or open_store(config, clock)
    # Without Redis the store cannot be away, so nothing needs to stand in for it.
    fallback = None if isinstance(store, MemoryStore) else MemoryStore(clock.now)
    worker = token_hex(8)
    client = DashScope(config.upstream, transport or open_transport(config.upstream))
    fetcher = ImageFetcher(config.images)
    accounts = Accounts(config.accounts, config.catalogue, clock.steady)
    limiter = Limiter(store, worker=worker, fallback=fallback, on_loss=on_loss(config), share=share)
    pacer = Pacer(
        store,
        accounts,
        worker=worker,
        alone=Alone(fallback, lambda: limiter.share, clock.now) if fallback else None,
        bounds=QueueBounds(config.pacing.waiting_per_model, config.pacing.waiting_per_tenant),
    )
    pipeline = Pipeline(
        config.catalogue,
        config.default_model,
        admission=Admission(limiter, config.tenants),
        generator=Generator(accounts=accounts, pacer=pacer, client=client, clock=clock),
        fetcher=fetcher,
        clock=clock,
    )
    authenticate = Authenticator(KeyRing(config.tenants), clock.now)

    @asynccontextmanager
    async def connections(_: Litestar) -> AsyncIterator[None]:
        limiter.start()
        yield
        await pipeline.drain()
        for part in (pacer, limiter, client, fetcher, store):
            await part.aclose()

    app = Litestar(
        [
            *image_routes(
                authenticate,
                pipeline,
                max_body_bytes=config.max_body_bytes,
                deadline_s=config.upstream.deadline_s,
            ),
            *model_routes(authenticate, config.catalogue),
            *operation_routes(store, lambda: limiter.degraded or pacer.degraded),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[connections],
        openapi_config=None,
        logging_config=None,
    )
    return Envelope(app)


def open_store(config: Config, clock: Clock) -> Store:
    """Redis where one is configured, else this process."""
    if config.redis is None:
        return MemoryStore(clock.now)
    redis = config.redis
    timeouts = Timeouts(redis.connect_timeout_ms / 1000, redis.command_timeout_ms / 1000)
    return RedisStore(redis.url.reveal(), prefix=redis.prefix, timeouts=timeouts)


def on_loss(config: Config) -> OnLoss:
    """The limits' policy for when Redis is away."""
    policy = config.redis.on_loss if config.redis else ConfiguredOnLoss()
    return OnLoss(rates=Loss(policy.rates), budgets=Loss(policy.budgets))

"""The application, assembled in one place; nothing happens at import."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, tzinfo
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from secrets import token_hex
from time import monotonic, time

import httpx
import structlog
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.middleware import DefineMiddleware

from gateway.api.answers import Answers
from gateway.api.auth import Authenticator, KeyMiddleware
from gateway.api.body import ReadBudget
from gateway.api.cors import CorsMiddleware
from gateway.api.docs_page import docs_routes
from gateway.api.edit_request import EditReader
from gateway.api.errors import EXCEPTION_HANDLERS
from gateway.api.image_request import body_options
from gateway.api.images import ImageRoutes
from gateway.api.middleware import ImageRequests, Readiness, RequestMiddleware, log_answer
from gateway.api.models import Models
from gateway.api.native import NativeRoutes
from gateway.api.openapi import ApiDocument
from gateway.api.operations import health_routes, metrics_route
from gateway.config import Config, OnLoss
from gateway.config.reload import Reloader
from gateway.delivery import Converter, Delivery
from gateway.domain.clock import Clock, find_zone
from gateway.observability.logs import masker
from gateway.observability.metrics import Metrics
from gateway.observability.tracing import Tracer, open_tracer
from gateway.pacing import LocalFallback, Pacer
from gateway.protocol.openai import OutputFormat
from gateway.requests.calls import Generator
from gateway.requests.pipeline import Pipeline
from gateway.results import Ledger
from gateway.results.cached_images import CachedImages
from gateway.sampling import Sampler
from gateway.store.availability import Share
from gateway.store.images import ImageStore
from gateway.store.memory import MemoryStore
from gateway.store.memory.images import MemoryImages
from gateway.store.redis import RedisStore, Timeouts
from gateway.store.redis.images import RedisImages
from gateway.store.redis.scripts import LatencyObserver, ignore_latency
from gateway.tenants.admission import Admission, Books
from gateway.tenants.keys import KeyRing
from gateway.tenants.local_limits import LocalLimits
from gateway.tenants.usage_log import UsageLog
from gateway.upstream.accounts import Accounts
from gateway.upstream.client import DashScope
from gateway.upstream.images import ImageFetcher
from gateway.upstream.transport import open_transport

Store = MemoryStore | RedisStore


class Parts:
    """What a worker runs on, made from its configuration; tests pass some of them in."""

    def __init__(
        self,
        config: Config,
        *,
        store: Store | None,
        transport: httpx.AsyncBaseTransport | None,
        clock: Clock,
        share: Share,
    ) -> None:
        worker = token_hex(8)
        self.config = config
        self.clock = clock
        self.metrics = Metrics(installed_version())
        self.readiness = Readiness()
        self.tracer = open_tracer_for(config)
        self.reading = ReadBudget(config.reading)
        self.edits = EditReader(config.uploads, config.max_body_bytes)
        self.store = store or open_store(config, clock, self.metrics.store_seconds.observe)
        # Without Redis the store cannot be away, so nothing needs to stand in for it.
        spare = (
            None
            if isinstance(self.store, MemoryStore)
            else MemoryStore(clock.now, zone=zone_of(config))
        )
        self.usage = UsageLog(Path(config.usage_log)) if config.usage_log else None
        transport = transport or open_transport(config.upstream, config.proxies)
        self.client = DashScope(config.upstream, transport)
        self.fetcher = ImageFetcher(config.images, clock, config.proxies)
        self.converter = self._converter()
        self.delivery = self._delivery()
        self.accounts = Accounts(config.accounts, config.catalogue, clock.steady)
        self.local = LocalLimits(config.redis.on_loss if config.redis else OnLoss(), share)
        self.pacer = Pacer(
            self.store,
            self.accounts,
            worker=worker,
            fallback=LocalFallback(spare, lambda: self.local.share, clock.now) if spare else None,
            bounds=config.pacing,
            prepare=self._prepare,
        )
        self.ledger = Ledger(
            self.store, worker=worker, fallback=spare, local=self.local, now=clock.now
        )
        self.admission = self._admission()
        self.image_store = open_image_store(config, clock, self.metrics.store_seconds.observe)
        self.images = self._image_cache()
        self.pipeline = self._pipeline()
        self.sampler = Sampler(
            self.metrics,
            config.catalogue,
            config.tenants,
            accounts=self.accounts,
            pacer=self.pacer,
            ledger=self.ledger,
            admission=self.admission,
            degraded=self.degraded,
            now=clock.now,
        )

    def _prepare(self, model: str, account: str) -> None:
        route = self.accounts.routes(model).get(account)
        if route is not None:
            self.client.connect_soon(route.account)

    def _delivery(self) -> Delivery:
        return Delivery(
            self.fetcher,
            steady=self.clock.steady,
            budget_bytes=self.config.images.budget_bytes,
            sending=self.config.sending,
            converter=self.converter,
        )

    def _converter(self) -> Converter:
        def took(made: OutputFormat, seconds: float) -> None:
            self.metrics.conversion_seconds.labels(made).observe(seconds)

        images = self.config.images
        return Converter(
            images.conversion_threads,
            images.conversion_bytes,
            steady=self.clock.steady,
            took=took,
        )

    def _image_cache(self) -> CachedImages | None:
        settings = self.config.image_cache
        if settings is None or self.image_store is None:
            return None
        return CachedImages(
            self.image_store, self.ledger, settings, metrics=self.metrics, now=self.clock.now
        )

    def _admission(self) -> Admission:
        return Admission(
            self.config.tenants,
            metrics=self.metrics,
            usage=self.usage,
            now=self.clock.now,
            steady=self.clock.steady,
            books=Books(
                doubtful=self.config.unknown_outcome.book == "reserve",
                zone=self.config.budgets.time_zone,
            ),
        )

    def _pipeline(self) -> Pipeline:
        config, clock = self.config, self.clock
        return Pipeline(
            config.catalogue,
            config.default_model,
            admission=self.admission,
            ledger=self.ledger,
            generator=Generator(
                accounts=self.accounts,
                pacer=self.pacer,
                vendor=self.client,
                fetcher=self.fetcher,
                clock=clock,
                metrics=self.metrics,
            ),
            clock=clock,
        )

    def answers(self) -> Answers:
        return Answers(
            self.fetcher,
            self.delivery,
            ledger=self.ledger,
            images=self.images,
            clock=self.clock,
            metrics=self.metrics,
        )

    def apply(self, config: Config) -> None:
        """Follow a changed file; requests under way keep what they began with."""
        masker.hide(config.secrets())
        self.pipeline.use(config.catalogue, config.default_model)
        self.admission.use(config.tenants)
        self.accounts.use(config.accounts, config.catalogue)
        self.pacer.accounts_changed()
        self.sampler.use(config.catalogue, config.tenants)

    @asynccontextmanager
    async def lifespan(self, _: Litestar) -> AsyncIterator[None]:
        """Start what runs in the background; at the end finish what is under way, then close."""
        for background in (self.ledger, self.sampler):
            background.start()
        looking = asyncio.create_task(self._look_at_eviction())
        yield
        looking.cancel()
        await self.pipeline.drain(self.readiness.given_up)
        closing = (self.sampler, self.pacer, self.ledger, self.client, self.fetcher)
        for part in (*closing, self.store):
            await part.aclose()
        self.converter.close()
        if self.image_store is not None:
            await self.image_store.aclose()
        self.edits.close()
        if self.usage is not None:
            self.usage.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)

    async def _look_at_eviction(self) -> None:
        """Warn of a Redis that may forget limits, without holding up the start."""
        if isinstance(self.store, RedisStore):
            warning = await self.store.eviction_warning()
            if warning is not None:
                structlog.get_logger().warning("redis_may_evict", advice=warning)

    def health(self) -> list[HTTPRouteHandler]:
        return health_routes(
            self.store,
            self.readiness,
            self.degraded,
            has_reached=lambda: self.ledger.has_reached,
        )

    def degraded(self) -> dict[str, bool]:
        """Which functions decide without the store."""
        return {
            "limits": self.ledger.degraded,
            "pacing": self.pacer.degraded,
            "cache": self.ledger.degraded,
        }


def create_app(
    config: Config,
    *,
    path: Path | None = None,
    store: Store | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    clock: Clock | None = None,
    share: Share = Share(),
) -> RequestMiddleware:
    """`path` is the file to follow, `share` this worker's place at first; tests pass the others."""
    clock = clock or Clock(time, monotonic)
    parts = Parts(config, store=store, transport=transport, clock=clock, share=share)
    authenticate = Authenticator(KeyRing(config.tenants), clock.now, config.auth.header)
    models = Models(config.catalogue)

    def apply(changed: Config) -> None:
        authenticate.use(KeyRing(changed.tenants))
        models.use(changed.catalogue)
        parts.apply(changed)

    faults = parts.metrics.configuration_faults.set
    reloader = Reloader(path, config, apply, faults) if path else None
    keys = DefineMiddleware(KeyMiddleware, authenticate=authenticate)
    image_requests = ImageRequests(parts.metrics, parts.tracer)
    deadline_s = config.upstream.deadline_s
    images = ImageRoutes(parts.pipeline, parts.answers(), parts.edits, deadline_s=deadline_s)
    bodies = body_options([image_requests.middleware, keys], config.max_body_bytes, parts.reading)
    health = parts.health()
    figures = metrics_route(parts.metrics, config.metrics.networks())
    is_apart = config.metrics.listen is not None
    routes = [
        *images.routes(bodies),
        *NativeRoutes(images, parts.edits).routes(bodies),
        *models.routes([keys]),
        *health,
        *([] if is_apart else [figures]),
    ]
    app = Litestar(
        [
            *routes,
            ApiDocument(routes, installed_version(), config.auth.header).route(),
            *(docs_routes() if config.docs else ()),
        ],
        after_exception=[images.attach_rate_limit_headers],
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[parts.lifespan, *([following(reloader)] if reloader else [])],
        openapi_config=None,
        logging_config=None,
    )
    origins = config.cors.allow_origins
    served = CorsMiddleware(app, origins) if origins else app
    whole = RequestMiddleware(served, parts.readiness, (log_answer, image_requests.observe))
    if is_apart:
        beside = apart([*health, figures])
        whole.operations = RequestMiddleware(beside, parts.readiness, (log_answer,))
    return whole


def apart(routes: list[HTTPRouteHandler]) -> Litestar:
    """These routes alone, without the rest of the application."""
    return Litestar(
        routes, exception_handlers=EXCEPTION_HANDLERS, openapi_config=None, logging_config=None
    )


def following(reloader: Reloader) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    """Watch the file while the application runs, and on SIGHUP."""

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        reloader.start()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, reloader.trigger)
        yield
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # its default would end what still drains
        await reloader.aclose()

    return lifespan


def open_store(config: Config, clock: Clock, took: LatencyObserver = ignore_latency) -> Store:
    if config.redis is None:
        return MemoryStore(clock.now, zone=zone_of(config))
    redis = config.redis
    timeouts = Timeouts(redis.connect_timeout_ms / 1000, redis.command_timeout_ms / 1000)
    return RedisStore(
        redis.url.reveal(),
        prefix=redis.prefix,
        timeouts=timeouts,
        took=took,
        zone=zone_of(config),
    )


def zone_of(config: Config) -> tzinfo:
    return find_zone(config.budgets.time_zone) or UTC


def open_image_store(
    config: Config, clock: Clock, took: LatencyObserver = ignore_latency
) -> ImageStore | None:
    settings = config.image_cache
    if settings is None:
        return None
    if settings.url is None:
        return MemoryImages(clock.now)
    return RedisImages(settings.url.reveal(), prefix=settings.prefix, took=took)


def open_tracer_for(config: Config) -> Tracer | None:
    if config.otlp_endpoint is None:
        return None
    return open_tracer(config.otlp_endpoint, installed_version())


def installed_version() -> str:
    """The distribution's version; empty where the package runs without being installed."""
    try:
        return version("dashscope-image-gateway")
    except PackageNotFoundError:
        return ""

"""From a result to the answer on the wire: URLs, or the images themselves as base64."""

from __future__ import annotations

from litestar import Response

from gateway.api.replies import json_response
from gateway.api.streaming import StreamedImages
from gateway.catalogue import Size
from gateway.delivery import Delivery
from gateway.exchange import Exchange
from gateway.generation import Clock
from gateway.ledger import Done
from gateway.metrics import Metrics
from gateway.pipeline import Job, Result
from gateway.protocol.openai import Image, ImagesResponse
from gateway.translate.request import Plan
from gateway.translate.response import to_openai
from gateway.upstream.images import ImageFetcher


class Answers:
    """Makes the answers of image requests."""

    def __init__(
        self, fetcher: ImageFetcher, delivery: Delivery, *, clock: Clock, metrics: Metrics
    ) -> None:
        self._fetcher = fetcher
        self._delivery = delivery
        self._clock = clock
        self._metrics = metrics

    async def answer(self, job: Job, result: Result, exchange: Exchange) -> Response[bytes]:
        """The answer in the format asked for.

        Raises:
            ImageUnavailable: an image cannot be fetched, or its address is not allowed; none is
                left out.
        """
        plan, record = job.plan, result.record
        self._metrics.cache_results.labels(exchange.tenant, result.cache).inc()
        exchange.after_sent = job.delivered
        headers = notes(plan) | self._cache_notes(result)
        if plan.response_format == "b64_json":
            return await self._streamed(job, result, exchange, headers)
        for url in record.urls:
            self._fetcher.check(url)
        images = [Image(url=url) for url in record.urls]
        body = to_openai(images, created=record.created, size=plan.size)
        return json_response(body, headers=headers)

    async def _streamed(
        self, job: Job, result: Result, exchange: Exchange, headers: dict[str, str]
    ) -> StreamedImages:
        record = result.record

        def describe(images: list[Image], size: Size | None) -> ImagesResponse:
            return to_openai(images, created=record.created, size=size)

        delivery = await self._delivery.open(
            record.urls,
            describe,
            deadline=job.run.deadline,
            log=exchange.log,
        )
        return StreamedImages(delivery, headers)

    def _cache_notes(self, result: Result) -> dict[str, str]:
        life_s = max(0, round(result.record.life_s(self._clock.now())))
        headers = {"x-cache": result.cache, "x-image-expires-in": str(life_s)}
        if isinstance(result.place, Done):
            self._metrics.cache_age.observe(result.place.age_s)
            age_s = max(0, round(self._clock.now()) - result.record.created)
            headers["age"] = str(age_s)
        return headers


def notes(plan: Plan) -> dict[str, str]:
    """Headers on what became of the request's fields."""
    headers = {"x-gateway-model": plan.model}
    if plan.size is not None:
        headers["x-gateway-size"] = str(plan.size)
    if plan.ignored:
        headers["x-gateway-ignored"] = ", ".join(plan.ignored)
    if plan.warnings:
        headers["x-gateway-warning"] = "; ".join(plan.warnings)
    return headers

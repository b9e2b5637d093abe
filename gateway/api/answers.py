"""From a result to the answer on the wire: URLs, or the images themselves as base64."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from litestar.response.base import ASGIResponse
from msgspec import Struct
from msgspec.structs import replace

from gateway.api.responses import Base64Answer, Events, JsonAnswer
from gateway.delivery import (
    CopySink,
    Delivery,
    Encoding,
    OpenDelivery,
    ResultImages,
    in_events,
    in_one_answer,
    take,
)
from gateway.delivery.delivery import SENDING_S
from gateway.domain.catalogue import Size
from gateway.domain.clock import Clock
from gateway.domain.errors import GatewayError, ImageUnavailable, InvalidRequest, ServiceUnavailable
from gateway.observability.context import RequestContext
from gateway.observability.metrics import Metrics
from gateway.protocol.openai import Image, ImageCompleted, ImageEvent, ImagesResponse
from gateway.requests.client import Part
from gateway.requests.pipeline import Result
from gateway.results import Entry, Found, How, Lead, Ledger
from gateway.results.cache_policy import Record
from gateway.results.cached_images import CachedImages
from gateway.translate.request import Plan
from gateway.translate.response import to_event, to_openai
from gateway.upstream.images import ImageFetcher

FRESH_MS = 10_000
"""An image host may not yet show an image this long after it was made."""


class Describe(Protocol):
    """Makes the body of an answer."""

    def __call__(self, images: list[Image], /, *, created: int, size: Size | None) -> Struct: ...


class Answers:
    def __init__(
        self,
        fetcher: ImageFetcher,
        delivery: Delivery,
        *,
        ledger: Ledger,
        images: CachedImages | None,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._ledger = ledger
        self._images = images
        self._fetcher = fetcher
        self._delivery = delivery
        self._clock = clock
        self._metrics = metrics

    def require_convertible(self, plan: Plan) -> None:
        """Raises InvalidRequest for images too large to convert. Call it before paying for them."""
        wanted, size = plan.output_format, plan.size
        if wanted != "png" and size and not self._delivery.converter.takes(size, wanted):
            message = (
                f"Images of {size} are too large to be made {wanted} by this gateway. "
                "Send a smaller 'size', or 'output_format' as png."
            )
            raise InvalidRequest(message, param="output_format", code="unsupported_value")

    async def answer(
        self,
        result: Result,
        context: RequestContext,
        describe: Describe | None = None,
        ignored: Sequence[str] = (),
    ) -> ASGIResponse:
        """Sends the answer in the format asked for; `describe` makes the body of one with URLs.

        Raises ImageUnavailable if any image cannot be fetched, ServiceUnavailable without memory
        for it.
        """
        plan, record = result.plan, result.record
        headers = plan_headers(plan, ignored) | self.note(result, context)
        try:
            if plan.response_format == "b64_json":
                return await self._base64(result, context, headers)
            images = [Image(url=self._fetcher.checked(url)) for url in record.urls]
        except ImageUnavailable as error:
            await self.give_up(error, result)
            note_unclaimed(error, context)
            raise
        except ServiceUnavailable as error:
            note_unclaimed(error, context)
            raise
        describe = describe or partial(to_openai, quality=plan.quality)
        body = describe(images, created=record.created, size=plan.size)
        return JsonAnswer(body, headers=headers).to_asgi_response()

    async def _base64(
        self, result: Result, context: RequestContext, headers: dict[str, str]
    ) -> Base64Answer:
        plan, record = result.plan, result.record

        def describe(images: list[Image], size: Size | None) -> ImagesResponse:
            return to_openai(
                images,
                created=record.created,
                size=size,
                output_format=plan.output_format,
                quality=plan.quality,
            )

        async def hopeless(error: ImageUnavailable) -> None:
            await self.give_up(error, result)
            note_unclaimed(error, context)

        delivery = await self._delivery.open(
            replace(await self._images_of(result), encoding=encoding_of(plan)),
            in_one_answer(describe),
            deadline=result.deadline,
            log=context.log,
            copy_to=self.copy_sink(result.entry, result.place, result.cache_s, context),
        )

        def ended(delivery: OpenDelivery) -> None:
            self.sent(delivery, context)

        return Base64Answer(delivery, headers, Events(ended, hopeless))

    def sent(self, delivery: OpenDelivery, context: RequestContext) -> None:
        """Count what a delivery took, complete or not."""
        self._metrics.download_seconds.observe(delivery.download_s)
        self._metrics.download_bytes.inc(delivery.downloaded_bytes)
        context.record_timing("download", delivery.download_s)
        context.others_took(delivery.download_s + delivery.conversion_s + delivery.client_s)

    async def _images_of(self, result: Result) -> ResultImages:
        """The URLs, or the images if those are dead. Raises ImageUnavailable for neither."""
        place, images = result.place, self._images
        if images is None or not isinstance(place, Found) or not images.needs_bytes(result.record):
            return ResultImages(result.record.urls, is_fresh(result.place))
        budget = self._delivery.rooms.images
        most = min(images.most_bytes(result.entry), budget.total // 2)
        kept = 0
        await take(budget, most)
        try:
            found = await images.find(result.entry, place.id)
            if found is not None:
                kept = min(most, sum(map(len, found)))
        finally:
            budget.release(most - kept)
        if found is not None:
            return ResultImages(found, reserved=kept)
        if result.record.life_s(self._clock.now()) > 0:
            return ResultImages(result.record.urls)
        message = "A cached image is no longer held; try again for a new one."
        raise ImageUnavailable(message, for_good=True)

    async def give_up(self, error: ImageUnavailable, result: Result) -> None:
        """Forget a result that nobody can be given, lest every repeat fails until it ends.

        A retry then pays; the client of a request that has paid is told not to retry.
        """
        if error.for_good:
            place = result.place
            await self._ledger.discard(result.entry.scope, place.id)
            error.should_retry = isinstance(place, Found) and place.how is How.HIT

    async def open_events(
        self,
        images: Part | Result,
        event: ImageEvent,
        context: RequestContext,
        *,
        plan: Plan,
        has_begun: bool,
        copy_to: CopySink | None,
    ) -> OpenDelivery:
        """Open images as one event each. Raises ImageUnavailable if one cannot be had."""
        if isinstance(images, Part):
            created, found = int(self._clock.now()), ResultImages(images.urls, fresh=True)
        else:
            created, found = images.record.created, await self._images_of(images)

        def describe(b64_json: str, size: Size | None) -> ImageCompleted:
            return to_event(
                event,
                b64_json,
                created=created,
                size=size,
                output_format=plan.output_format,
                quality=plan.quality,
            )

        deadline = images.deadline
        if has_begun:  # the client may have taken its time over those before
            deadline = max(deadline, self._clock.steady() + SENDING_S)
        return await self._delivery.open(
            replace(found, encoding=encoding_of(plan)),
            in_events(describe),
            deadline=deadline,
            log=context.log,
            copy_to=copy_to,
        )

    def copy_sink(
        self,
        entry: Entry,
        place: Found[Record] | Lead,
        cache_s: float,
        context: RequestContext,
    ) -> CopySink | None:
        """Where copies of sent images go, with a cache."""
        if self._images is None or not isinstance(place, Lead) or entry.cache_key is None:
            return None
        return self._images.keep(entry, place.id, cache_s, context.log)

    def note(self, result: Result, context: RequestContext) -> dict[str, str]:
        """Count and log where a result came from; returns the headers for it."""
        self._metrics.cache_results.labels(context.tenant, result.cache).inc()
        context.log_fields["cache"] = result.cache
        life_s = max(0, round(result.record.life_s(self._clock.now())))
        headers = {"x-cache": result.cache, "x-image-expires-in": str(life_s)}
        if isinstance(result.place, Found):
            self._metrics.cache_age.observe(result.place.age_ms / 1000)
            age_s = max(0, round(self._clock.now()) - result.record.created)
            headers["age"] = str(age_s)
        return headers


class ImageEvents:
    """Opens the images of one streamed request, some at a time."""

    def __init__(
        self,
        answers: Answers,
        event: ImageEvent,
        plan: Plan,
        cache_s: float,
        context: RequestContext,
    ) -> None:
        self._answers = answers
        self._event = event
        self._plan = plan
        self._cache_s = cache_s
        self._context = context
        self._sink: CopySink | None = None
        """One for all: only all images together are worth keeping."""

    async def open(self, images: Part | Result, *, has_begun: bool) -> OpenDelivery:
        """Raises ImageUnavailable if one of them cannot be had."""
        place = images.lead if isinstance(images, Part) else images.place
        first = images.first if isinstance(images, Part) else 0
        self._sink = self._sink or self._answers.copy_sink(
            images.entry, place, self._cache_s, self._context
        )
        return await self._answers.open_events(
            images,
            self._event,
            self._context,
            plan=self._plan,
            has_begun=has_begun,
            copy_to=None if self._sink is None else self._sink.starting_at(first),
        )

    def sent(self, delivery: OpenDelivery) -> None:
        self._answers.sent(delivery, self._context)


def encoding_of(plan: Plan) -> Encoding:
    return Encoding(plan.output_format, plan.output_compression)


def note_unclaimed(error: GatewayError, context: RequestContext) -> None:
    """A retry is given these paid images, also one that is not marked as a retry."""
    if not (isinstance(error, ImageUnavailable) and error.for_good):
        context.is_client_gone = True


def is_fresh(place: Found[Record] | Lead) -> bool:
    """Whether a result was made while this request, or its first attempt, waited for it."""
    if isinstance(place, Lead) or place.how is How.JOINED:
        return True
    return place.how is not How.HIT and place.age_ms < FRESH_MS


def plan_headers(plan: Plan, ignored: Sequence[str] = ()) -> dict[str, str]:
    """Headers on what became of the request's fields; `ignored` ones are not even known."""
    headers = {"x-gateway-model": plan.model}
    if plan.size is not None:
        headers["x-gateway-size"] = str(plan.size)
    if plan.ignored or ignored:
        headers["x-gateway-ignored"] = ", ".join([*plan.ignored, *ignored])
    if plan.warnings:
        headers["x-gateway-warning"] = "; ".join(plan.warnings)
    return headers

"""The upstream calls of one image request: accounts, slots, attempts, and missing images."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from gateway.domain.clock import Clock
from gateway.domain.errors import (
    GatewayError,
    IncompleteResult,
    ServiceUnavailable,
    UpstreamAmbiguous,
    UpstreamThrottled,
)
from gateway.observability.metrics import Metrics
from gateway.pacing import NoSlot, Pacer, Slot
from gateway.protocol.dashscope import GenerationRequest
from gateway.requests.client import Client, Stopped
from gateway.tenants.admission import Ticket
from gateway.translate.failure import Remedy, UpstreamFailure
from gateway.translate.request import remaining
from gateway.translate.response import image_urls, split_surplus
from gateway.upstream.accounts import THROTTLED_S, Accounts, Route
from gateway.upstream.client import DashScope
from gateway.upstream.images import ImageFetcher
from gateway.upstream.retry import wait_s

TOP_UPS = 2
"""Further calls for images that an answer lacked; the vendor bills only what it delivers."""
SHOWN_MESSAGE = 500

KeepPart = Callable[[int, Sequence[str]], Awaitable[None]]
"""Called after each answer with the index of the call and all its URLs so far."""
NO_PARTS: Mapping[int, Sequence[str]] = MappingProxyType({})


class Work:
    """What the calls of one request share."""

    __slots__ = ("client", "deadline", "in_flight", "keep", "parts", "plan", "slot_by", "ticket")

    def __init__(
        self,
        ticket: Ticket,
        client: Client,
        *,
        slot_by: float,
        deadline: float,
        parts: Mapping[int, Sequence[str]],
        keep: KeepPart,
    ) -> None:
        self.plan = ticket.plan
        self.ticket = ticket
        self.client = client
        self.slot_by = slot_by
        """A call that has no slot by then is refused: the rest is for making the images."""
        self.deadline = deadline
        self.parts = parts
        """What was paid for before, by the index of the call."""
        self.keep = keep
        self.in_flight = 0
        """Calls that the vendor may be working on."""

    def has(self, index: int) -> bool:
        """Whether all images of a call were paid for before."""
        wanted = self.plan.calls[index].parameters.n or 1
        return len(self.parts.get(index, ())) >= wanted

    def is_under_way(self) -> bool:
        """Whether something is being made, or may have been."""
        return bool(self.in_flight or self.ticket.images or self.ticket.doubtful)


class Generator:
    """Makes the upstream calls of requests."""

    def __init__(
        self,
        *,
        accounts: Accounts,
        pacer: Pacer,
        vendor: DashScope,
        fetcher: ImageFetcher,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._accounts = accounts
        self._pacer = pacer
        self._vendor = vendor
        self._fetcher = fetcher
        self._clock = clock
        self._metrics = metrics

    def generate(self, work: Work) -> Awaitable[list[str]]:
        """All image URLs, in the order of the calls; a plain function, as a frame costs memory.

        Raises, when awaited: GatewayError why a call failed for good, with unsent calls held back;
        Stopped for the request's own obstacle, with every sent call answered.
        """
        if len(work.plan.calls) == 1:
            return self._complete(0, work)
        return self._complete_all(work)

    async def _complete_all(self, work: Work) -> list[str]:
        tasks = [
            asyncio.create_task(self._complete(index, work))
            for index in range(len(work.plan.calls))
        ]
        try:
            results = await asyncio.gather(*tasks, return_exceptions=True)
        except asyncio.CancelledError:
            await asyncio.wait(tasks)
            raise
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            # A failure of the vendor's is everybody's; being stopped is only this request's.
            raise min(errors, key=lambda error: isinstance(error, Stopped))
        return [url for urls in results if isinstance(urls, list) for url in urls]

    async def _require_delivery(self, work: Work) -> None:
        """Raises Stopped where the images would have to be downloaded, and cannot be."""
        if work.plan.response_format == "b64_json":
            try:
                await self._fetcher.require_hosts()
            except GatewayError as error:
                raise Stopped(error) from None

    async def _complete(self, index: int, work: Work) -> list[str]:
        """One call's images, less those paid for before; asks again for what an answer lacked."""
        call = work.plan.calls[index]
        wanted = call.parameters.n or 1
        urls = list(work.parts.get(index, ()))[:wanted]
        try:
            await self._require_delivery(work)
            for _ in range(1 + TOP_UPS):
                if len(urls) == wanted:
                    return urls
                found = await self._send(remaining(call, len(urls)), index, work)
                found = [self._fetcher.checked(url) for url in found]
                urls += [url for url in dict.fromkeys(found) if url not in urls]
                del urls[wanted:]
                await work.keep(index, urls)
                if not found:
                    break
            if len(urls) < wanted:
                raise IncompleteResult(
                    f"The image service returned {len(urls)} of {wanted} images."
                )
        except GatewayError as error:
            work.client.abort(error)
            raise
        except Stopped as stopped:
            work.client.abort(stopped.error)
            raise
        return urls

    async def _send(self, call: GenerationRequest, index: int, work: Work) -> list[str]:
        """One successful upstream call, over accounts and attempts."""
        family = work.plan.family
        tried: set[str] = set()
        attempt = 0
        while True:
            self._left_s(work)
            since = self._clock.steady()
            try:
                slot = await self._slot(call.model, index, work, tried)
            except NoSlot as late:
                raise Stopped(too_late(late)) from None
            finally:
                self._note_wait(work, since)
            route = self._route(call.model, slot, work)
            if route is None:
                continue
            attempt += 1
            name = route.account.name
            try:
                return await self._attempt(route, slot, call, work)
            except UpstreamFailure as failure:
                tried.add(name)
                wait = self._wait_s(failure, call.model, attempt, tried, work)
                if wait is None:
                    raise shown(failure) from failure
                self._metrics.retries.labels(name, family, failure.remedy.value).inc()
            await work.client.sleep(wait)

    def _slot(self, model: str, index: int, work: Work, tried: set[str]) -> Awaitable[Slot]:
        """The next slot of a fit account; no frame, as thousands wait.

        Raises, when awaited: NoSlot, GatewayError for a full queue, Stopped as `Client.wait`.
        """
        return self._pacer.slot(
            work.plan.family,
            work.ticket.tenant,
            accounts=self._accounts.untried(model, tried),
            deadline=work.slot_by,
            calls=sum(not work.has(one) for one in range(index, len(work.plan.calls))),
            wait=work.client.wait,
        )

    def _note_wait(self, work: Work, since: float) -> None:
        waited_s = self._clock.steady() - since
        self._metrics.queue_seconds.labels(work.plan.family).observe(waited_s)
        work.ticket.context.record_timing("queue", waited_s)

    def _route(self, model: str, slot: Slot, work: Work) -> Route | None:
        """The account of a slot, if it is still there and its breaker lets a call through."""
        try:
            work.client.check()  # it may have left in the moment in which the slot came
        except Stopped:
            self._pacer.give_back(work.plan.family, slot)
            raise
        route = None
        try:
            route = self._accounts.admit(model, slot.account, self._left_s(work))
        finally:
            if route is None:
                self._pacer.sent(work.plan.family, slot)
        return route

    async def _attempt(
        self, route: Route, slot: Slot, call: GenerationRequest, work: Work
    ) -> list[str]:
        name, family, context = route.account.name, work.plan.family, work.ticket.context
        wanted = call.parameters.n or 1
        sent = partial(self._pacer.sent, family, slot)
        work.in_flight += 1
        try:
            with context.phase("upstream", self._metrics.upstream_seconds.labels(name, family)):
                left_s = work.deadline - self._clock.steady()
                reply = await self._vendor.generate(
                    route.account, call, left_s, sent, work.plan.inputs
                )
        except UpstreamFailure as failure:
            self._metrics.upstream_calls.labels(name, family, failure.label).inc()
            if isinstance(failure.error, UpstreamAmbiguous):
                work.ticket.doubt(wanted, name)
            await self._learn(route, call.model, failure, work)
            raise
        except BaseException:
            work.ticket.doubt(wanted, name)  # given up in the middle, at the end of the process
            route.breaker.abandoned()
            raise
        finally:
            work.in_flight -= 1
            sent()
        self._accounts.record(route, None)
        self._metrics.upstream_calls.labels(name, family, "ok").inc()
        urls, surplus = split_surplus(image_urls(reply), wanted)
        if surplus:
            self._metrics.surplus_images.labels(name, family).inc(surplus)
            context.log.warning("surplus_images", account=name, surplus=surplus)
        note_id(work, reply.request_id)
        context.log.info(
            "upstream_answered",
            account=name,
            images=len(urls),
            asked=wanted,
            upstream_request_id=reply.request_id,
        )
        work.ticket.book(len(urls), name)
        return urls

    async def _learn(self, route: Route, model: str, failure: UpstreamFailure, work: Work) -> None:
        """Remember what a failure says of the account; all workers back off from a full one."""
        family = work.plan.family
        self._accounts.record(route, failure, of_snapshot=model != family)
        note_id(work, failure.request_id)
        cause = failure.__cause__  # some print the whole request by `repr`, our key in it
        work.ticket.context.log.warning(
            "upstream_failed",
            account=route.account.name,
            status=failure.status,
            code=failure.code,
            answered_by=failure.source.value,
            upstream_message=failure.message,
            upstream_request_id=failure.request_id,
            remedy=failure.remedy.value,
            cause=None if cause is None else f"{type(cause).__name__}: {cause}"[:SHOWN_MESSAGE],
        )
        if failure.remedy is Remedy.THROTTLED:
            rest_s = failure.error.retry_after_s or THROTTLED_S
            await self._pacer.back_off(family, route.account.name, rest_s)

    def _wait_s(
        self, failure: UpstreamFailure, model: str, attempt: int, tried: set[str], work: Work
    ) -> float | None:
        """Seconds until the next attempt; 0 where another account is ready."""
        other = self._accounts.has_other(model, tried)
        left_s = work.deadline - self._clock.steady()
        return wait_s(failure, attempt, self._clock.chance(), left_s, other_account=other)

    def _left_s(self, work: Work) -> float:
        left = work.deadline - self._clock.steady()
        if left <= 0:
            message = "The deadline passed before the image service could be asked."
            raise Stopped(ServiceUnavailable(message))
        return left


def too_late(late: NoSlot) -> GatewayError:
    message = "The image service's own rate limit leaves no room for this request in time."
    return UpstreamThrottled(message, retry_after_s=late.retry_after_s)


def note_id(work: Work, upstream_id: str | None) -> None:
    if upstream_id:
        work.ticket.context.upstream_ids += (upstream_id,)


def shown(failure: UpstreamFailure) -> GatewayError:
    """The error for the client; for a full account with the time to come back."""
    if failure.remedy is Remedy.THROTTLED and failure.error.retry_after_s is None:
        failure.error.retry_after_s = THROTTLED_S
    return failure.error

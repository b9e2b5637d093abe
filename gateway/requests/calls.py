"""The upstream calls behind one image request: accounts, slots, attempts, and what was missing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, cast

from gateway.domain.clock import Clock
from gateway.domain.errors import (
    ClientGone,
    GatewayError,
    IncompleteResult,
    ServiceUnavailable,
    UpstreamThrottled,
)
from gateway.observability.context import RequestContext
from gateway.observability.metrics import Metrics
from gateway.pacing import NoSlot, Pacer, Ready, Slot, Waiter
from gateway.protocol.dashscope import GenerationRequest
from gateway.translate.failure import Remedy, UpstreamFailure
from gateway.translate.request import Plan, remaining
from gateway.translate.response import image_urls, split_surplus
from gateway.upstream.accounts import THROTTLED_S, Accounts, Route
from gateway.upstream.client import DashScope
from gateway.upstream.images import ImageFetcher
from gateway.upstream.retry import wait_s

TOP_UPS = 2
"""Further calls for images that an answer lacked; the vendor bills only what it delivers."""
SHOWN_MESSAGE = 500


First = Slot | Exception | None
"""What waiting for a first slot came to; None: nobody has waited."""
Keep = Callable[[int, Sequence[str]], Awaitable[None]]
"""Told, after each answer, what the call of an index has brought so far."""


async def keep_nothing(_index: int, _urls: Sequence[str]) -> None:
    """For a request whose images nobody else could use."""


NO_PARTS: Mapping[int, Sequence[str]] = MappingProxyType({})


class Run:
    """What the calls of one request share."""

    __slots__ = (
        "_unsent",
        "context",
        "deadline",
        "failed",
        "generated",
        "keep",
        "left",
        "parts",
        "queued_at",
        "sent",
        "slot_by",
        "tenant",
    )

    def __init__(
        self, tenant: str, context: RequestContext, *, slot_by: float, deadline: float
    ) -> None:
        self.tenant = tenant
        self.context = context
        self.parts = NO_PARTS
        """What was paid for before, by the index of the call."""
        self.keep: Keep = keep_nothing
        self.queued_at = 0.0
        self.slot_by = slot_by
        """A call that could not start before this would not be done by the deadline."""
        self.deadline = deadline
        self.generated = 0
        self.failed: GatewayError | None = None
        self.left = False
        """Whether its caller waits no longer."""
        self.sent = False
        """Whether a call went out that may have been billed."""
        self._unsent: set[asyncio.Task[Any]] | None = None
        """Calls that have not been sent, and so may be given up at no cost."""

    def sending(self) -> None:
        """The current call is on its way, or over: it cannot be given up any more."""
        if self._unsent:
            self._unsent.discard(current_call())

    def pausing(self) -> None:
        """The current call failed without a trace and will be sent again."""
        self.may_give_up([current_call()])

    def may_give_up(self, calls: Iterable[asyncio.Task[Any]]) -> None:
        """These have not been sent."""
        self._unsent = (self._unsent or set()).union(calls)

    def give_up(self) -> None:
        """Send nothing further."""
        for task in self._unsent or ():
            task.cancel()


class Generator:
    """Makes the upstream calls of requests. All state is in its parts."""

    def __init__(
        self,
        *,
        accounts: Accounts,
        pacer: Pacer,
        client: DashScope,
        fetcher: ImageFetcher,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._accounts = accounts
        self._pacer = pacer
        self._client = client
        self._fetcher = fetcher
        self._clock = clock
        self._metrics = metrics

    async def require_delivery(self, plan: Plan) -> None:
        """Ask, before anything is paid for, whether its images could be handed over.

        Raises:
            ImageHostsUnreachable: they would have to be downloaded, and cannot be.
        """
        if plan.response_format == "b64_json":
            await self._fetcher.require_hosts()

    def join(self, plan: Plan, run: Run, ready: Ready) -> Waiter | None:
        """Wait for the first slot of a request of one call, at no more cost than a row in a queue.

        `ready` is told the outcome, for `generate`; None is returned if it was told at once.
        """
        run.queued_at = self._clock.steady()
        try:
            return self._pacer.join(
                plan.family,
                run.tenant,
                accounts=self._accounts.untried(plan.model, ()),
                deadline=run.slot_by,
                ready=ready,
            )
        except (GatewayError, NoSlot) as error:
            ready(error)
            return None

    def leave(self, plan: Plan, waiter: Waiter) -> None:
        """Wait no longer."""
        self._pacer.leave(plan.family, waiter)

    async def generate(self, plan: Plan, run: Run, first: First = None) -> list[str]:
        """All image URLs, in the order of the calls; `first` is what a `join` came to.

        Raises:
            GatewayError: why a call failed for good; the calls not yet sent are then held back.
        """
        if len(plan.calls) == 1:
            return await self._complete(plan, 0, run, first)
        run.sending()
        tasks = [
            asyncio.create_task(self._complete(plan, index, run))
            for index in range(len(plan.calls))
        ]
        run.may_give_up(tasks)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, GatewayError):
                raise result
        if run.failed is not None:
            raise run.failed
        return [url for urls in results if isinstance(urls, list) for url in urls]

    async def _complete(self, plan: Plan, index: int, run: Run, first: First = None) -> list[str]:
        """One call's images, less those paid for before; asks again for what an answer lacked."""
        call = plan.calls[index]
        wanted = call.parameters.n or 1
        urls = list(run.parts.get(index, ()))[:wanted]
        if len(urls) == wanted:
            return urls
        try:
            for _ in range(1 + TOP_UPS):
                rest, slots = remaining(call, len(urls)), len(plan.calls) - index
                found = await self._send(rest, plan.family, run, slots, first)
                first = None
                urls += [url for url in dict.fromkeys(found) if url not in urls]
                del urls[wanted:]
                await run.keep(index, urls)
                if len(urls) == wanted:
                    return urls
                run.context.log.warning("incomplete_answer", wanted=wanted, received=len(urls))
                if not found:
                    break
            raise IncompleteResult(f"The image service returned {len(urls)} of {wanted} images.")
        except GatewayError as error:
            run.failed = run.failed or error
            run.sending()
            run.give_up()
            raise

    async def _send(
        self, call: GenerationRequest, family: str, run: Run, slots: int, first: First
    ) -> list[str]:
        """One successful upstream call, over accounts and attempts."""
        tried: set[str] = set()
        attempt = 0
        while True:
            if first is None:
                slot = await self._slot(call.model, family, run, tried, slots)
            else:
                slot, first = self._joined(first, run, family), None
            route = self._route(call.model, family, run, slot)
            if route is None:
                continue
            attempt += 1
            name = route.account.name
            try:
                urls = await self._attempt(route, slot, call, family, run)
            except UpstreamFailure as failure:
                tried.add(name)
                wait = self._wait_s(failure, call.model, attempt, tried, run)
                if wait is None:
                    raise shown(failure) from failure
                self._metrics.retries.labels(name, family, failure.remedy.value).inc()
            else:
                run.generated += len(urls)
                return urls
            run.pausing()
            await asyncio.sleep(wait)

    async def _slot(self, model: str, family: str, run: Run, tried: set[str], slots: int) -> Slot:
        """The next slot of the accounts that are fit for the call."""
        self._left_s(run)
        names = self._accounts.untried(model, tried)
        with run.context.phase("queue", self._metrics.queue_seconds.labels(family)):
            try:
                return await self._pacer.slot(
                    family, run.tenant, accounts=names, deadline=run.slot_by, calls=slots
                )
            except NoSlot as late:
                raise too_late(late) from None

    def _joined(self, first: Slot | Exception, run: Run, family: str) -> Slot:
        """What waiting in the queue came to."""
        external_wait_s = self._clock.steady() - run.queued_at
        self._metrics.queue_seconds.labels(family).observe(external_wait_s)
        run.context.record_timing("queue", external_wait_s)
        if isinstance(first, Slot):
            return first
        raise too_late(first) if isinstance(first, NoSlot) else first

    def _route(self, model: str, family: str, run: Run, slot: Slot) -> Route | None:
        """The account of a slot, if its breaker lets a call through and it is still there."""
        if run.left:
            self._pacer.give_back(family, slot)
            raise ClientGone("The client closed the connection.")
        route = None
        try:
            route = self._accounts.admit(model, slot.account, self._left_s(run))
        finally:
            if route is None:
                self._pacer.sent(family, slot)
        return route

    async def _attempt(
        self, route: Route, slot: Slot, call: GenerationRequest, family: str, run: Run
    ) -> list[str]:
        name = route.account.name
        run.sending()
        run.sent = True
        sent = partial(self._pacer.sent, family, slot)
        try:
            with run.context.phase("upstream", self._metrics.upstream_seconds.labels(name, family)):
                left_s = run.deadline - self._clock.steady()
                reply = await self._client.generate(route.account, call, left_s, sent)
        except UpstreamFailure as failure:
            self._metrics.upstream_calls.labels(name, family, failure.label).inc()
            await self._learn(route, call.model, family, failure, run)
            raise
        except BaseException:
            route.breaker.abandoned()
            raise
        finally:
            sent()
        self._accounts.record(route, None)
        self._metrics.upstream_calls.labels(name, family, "ok").inc()
        urls, surplus = split_surplus(image_urls(reply), call.parameters.n or 1)
        if surplus:
            self._metrics.surplus_images.labels(name, family).inc(surplus)
            run.context.log.warning("surplus_images", account=name, surplus=surplus)
        note_id(run, reply.request_id)
        run.context.log.info(
            "upstream_answered",
            account=name,
            images=len(urls),
            upstream_request_id=reply.request_id,
        )
        return urls

    async def _learn(
        self, route: Route, model: str, family: str, failure: UpstreamFailure, run: Run
    ) -> None:
        """Remember what a failure says of the account; everyone backs off from a full one."""
        self._accounts.record(route, failure, of_snapshot=model != family)
        note_id(run, failure.request_id)
        cause = failure.__cause__  # some print the whole request by `repr`, our key in it
        run.context.log.warning(
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
        self, failure: UpstreamFailure, model: str, attempt: int, tried: set[str], run: Run
    ) -> float | None:
        """Seconds until the next attempt, none of them where another account stands ready."""
        other = self._accounts.has_other(model, tried)
        left_s = run.deadline - self._clock.steady()
        return wait_s(failure, attempt, self._clock.chance(), left_s, other_account=other)

    def _left_s(self, run: Run) -> float:
        left = run.deadline - self._clock.steady()
        if left <= 0:
            raise ServiceUnavailable("The deadline passed before the image service could be asked.")
        return left


def too_late(late: NoSlot) -> GatewayError:
    """The error for a call that would have to wait for too long."""
    message = "The image service's own rate limit leaves no room for this request in time."
    return UpstreamThrottled(message, retry_after_s=late.retry_after_s)


def note_id(run: Run, upstream_id: str | None) -> None:
    """For the request's log line."""
    if upstream_id:
        run.context.upstream_ids += (upstream_id,)


def current_call() -> asyncio.Task[Any]:
    """The task that this runs in, which `Generator.generate` made."""
    return cast("asyncio.Task[Any]", asyncio.current_task())


def shown(failure: UpstreamFailure) -> GatewayError:
    """The error for the client; of a full account, with the time to come back."""
    if failure.remedy is Remedy.THROTTLED and failure.error.retry_after_s is None:
        failure.error.retry_after_s = THROTTLED_S
    return failure.error

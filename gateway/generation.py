"""The upstream calls behind one image request: accounts, slots, attempts, and what was missing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import random
from typing import cast

from msgspec import Struct

from gateway.errors import (
    GatewayError,
    IncompleteResult,
    ServiceUnavailable,
    UpstreamThrottled,
)
from gateway.exchange import Exchange
from gateway.metrics import Metrics
from gateway.pacing import NoSlot, Pacer
from gateway.protocol.dashscope import GenerationRequest
from gateway.translate.failure import Remedy, UpstreamFailure
from gateway.translate.request import Plan, remaining
from gateway.translate.response import image_urls
from gateway.upstream.accounts import THROTTLED_S, Accounts, Route
from gateway.upstream.client import DashScope
from gateway.upstream.retry import wait_s

TOP_UPS = 2
"""Further calls for images that an answer lacked; the vendor bills only what it delivers."""
SHOWN_MESSAGE = 500


class Clock(Struct, frozen=True):
    """Time and chance, so that tests can hold both: Unix seconds, steady seconds, [0, 1).

    `steady` counts as the event loop does.
    """

    now: Callable[[], float]
    steady: Callable[[], float]
    chance: Callable[[], float] = random


Keep = Callable[[int, Sequence[str]], Awaitable[None]]
"""Told, after each answer, what the call of an index has brought so far."""


async def keep_nothing(_index: int, _urls: Sequence[str]) -> None:
    """For a request whose images nobody else could use."""


class Run:
    """What the calls of one request share."""

    def __init__(self, tenant: str, exchange: Exchange, *, slot_by: float, deadline: float) -> None:
        self.tenant = tenant
        self.log = exchange.log
        self.exchange = exchange
        self.parts: Mapping[int, Sequence[str]] = {}
        """What was paid for before, by the index of the call."""
        self.keep: Keep = keep_nothing
        self.slot_by = slot_by
        """A call that could not start before this would not be done by the deadline."""
        self.deadline = deadline
        self.generated = 0
        self.failed: GatewayError | None = None
        self.left = False
        """Whether its caller waits no longer."""
        self.sent = False
        """Whether a call went out that may have been billed."""
        self.unsent: set[asyncio.Task[list[str]]] = set()
        """Calls that have not been sent, and so may be given up at no cost."""

    def sending(self) -> None:
        """The current call is on its way, or over: it cannot be given up any more."""
        self.unsent.discard(current_call())

    def pausing(self) -> None:
        """The current call failed without a trace and will be sent again."""
        self.unsent.add(current_call())

    def give_up(self) -> None:
        """Send nothing further."""
        for task in self.unsent:
            task.cancel()


class Generator:
    """Makes the upstream calls of requests. All state is in its parts."""

    def __init__(
        self,
        *,
        accounts: Accounts,
        pacer: Pacer,
        client: DashScope,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._accounts = accounts
        self._pacer = pacer
        self._client = client
        self._clock = clock
        self._metrics = metrics

    async def generate(self, plan: Plan, run: Run) -> list[str]:
        """All image URLs, in the order of the calls.

        Raises:
            GatewayError: why a call failed for good; the calls not yet sent are then held back.
        """
        if len(plan.calls) == 1:
            return await self._complete(plan, 0, run)
        run.sending()
        tasks = [
            asyncio.create_task(self._complete(plan, index, run))
            for index in range(len(plan.calls))
        ]
        run.unsent.update(tasks)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, GatewayError):
                raise result
        if run.failed is not None:
            raise run.failed
        return [url for urls in results if isinstance(urls, list) for url in urls]

    async def _complete(self, plan: Plan, index: int, run: Run) -> list[str]:
        """One call's images, less those paid for before; asks again for what an answer lacked."""
        call = plan.calls[index]
        wanted = call.parameters.n or 1
        urls = list(run.parts.get(index, ()))[:wanted]
        if len(urls) == wanted:
            return urls
        try:
            for _ in range(1 + TOP_UPS):
                rest = remaining(call, len(urls))
                found = await self._send(rest, plan.family, run, slots=len(plan.calls) - index)
                urls += [url for url in dict.fromkeys(found) if url not in urls]
                del urls[wanted:]
                await run.keep(index, urls)
                if len(urls) == wanted:
                    return urls
                run.log.warning("incomplete_answer", wanted=wanted, received=len(urls))
                if not found:
                    break
            raise IncompleteResult(f"The image service returned {len(urls)} of {wanted} images.")
        except GatewayError as error:
            run.failed = run.failed or error
            run.sending()
            run.give_up()
            raise

    async def _send(self, call: GenerationRequest, family: str, run: Run, slots: int) -> list[str]:
        """One successful upstream call, over accounts and attempts."""
        tried: set[str] = set()
        attempt = 0
        while True:
            attempt += 1
            with run.exchange.phase("queue", self._metrics.queue_seconds.labels(family)):
                route = await self._route(call.model, run, tried, slots)
            name = route.account.name
            try:
                urls = await self._attempt(route, call, family, run)
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

    async def _route(self, model: str, run: Run, tried: set[str], slots: int) -> Route:
        """The account whose slot came first, among those fit for the call."""
        self._left_s(run)
        names = self._accounts.candidates(model, tried)
        try:
            name = await self._pacer.slot(
                model, run.tenant, accounts=names, deadline=run.slot_by, calls=slots
            )
        except NoSlot as late:
            message = "The image service's own rate limit leaves no room for this request in time."
            raise UpstreamThrottled(message, retry_after_s=late.retry_after_s) from None
        return self._accounts.admit(model, name, run.deadline - self._clock.steady())

    async def _attempt(
        self, route: Route, call: GenerationRequest, family: str, run: Run
    ) -> list[str]:
        left_s = self._left_s(run)
        name = route.account.name
        run.sending()
        run.sent = True
        try:
            with run.exchange.phase(
                "upstream", self._metrics.upstream_seconds.labels(name, family)
            ):
                reply = await self._client.generate(route.account, call, left_s)
        except UpstreamFailure as failure:
            self._metrics.upstream_calls.labels(name, family, failure.label).inc()
            await self._learn(route, call.model, failure, run)
            raise
        except BaseException:
            route.breaker.abandoned()
            raise
        self._accounts.record(route, None)
        self._metrics.upstream_calls.labels(name, family, "ok").inc()
        urls = image_urls(reply)
        note_id(run, reply.request_id)
        run.log.info(
            "upstream_answered",
            account=name,
            images=len(urls),
            upstream_request_id=reply.request_id,
        )
        return urls

    async def _learn(self, route: Route, model: str, failure: UpstreamFailure, run: Run) -> None:
        """Remember what a failure says of the account; everyone backs off from a full one."""
        self._accounts.record(route, failure)
        note_id(run, failure.request_id)
        cause = failure.__cause__  # some print the whole request by `repr`, our key in it
        run.log.warning(
            "upstream_failed",
            account=route.account.name,
            status=failure.status,
            code=failure.code,
            upstream_message=failure.message[:SHOWN_MESSAGE],
            upstream_request_id=failure.request_id,
            remedy=failure.remedy.value,
            cause=None if cause is None else f"{type(cause).__name__}: {cause}"[:SHOWN_MESSAGE],
        )
        if failure.remedy is Remedy.THROTTLED:
            rest_s = failure.error.retry_after_s or THROTTLED_S
            await self._pacer.back_off(model, route.account.name, rest_s)

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


def note_id(run: Run, upstream_id: str | None) -> None:
    """For the request's log line."""
    if upstream_id:
        run.exchange.upstream_ids.append(upstream_id)


def current_call() -> asyncio.Task[list[str]]:
    """The task that this runs in, which `Generator.generate` made."""
    return cast("asyncio.Task[list[str]]", asyncio.current_task())


def shown(failure: UpstreamFailure) -> GatewayError:
    """The error for the client; of a full account, with the time to come back."""
    if failure.remedy is Remedy.THROTTLED and failure.error.retry_after_s is None:
        failure.error.retry_after_s = THROTTLED_S
    return failure.error

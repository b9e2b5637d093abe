"""One image request from the caller's body to the answer: translate → call → deliver."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable
from random import random

from msgspec import Struct
from structlog.typing import FilteringBoundLogger

from gateway.catalogue import Catalogue, Size
from gateway.errors import GatewayError, IncompleteResult, ServiceUnavailable
from gateway.protocol.dashscope import GenerationRequest
from gateway.protocol.openai import Image, ImageRequest, ImagesResponse
from gateway.tenants import Caller, choose_model
from gateway.translate.failure import UpstreamFailure
from gateway.translate.request import Plan, remaining, to_dashscope
from gateway.translate.response import PNG_HEADER_BYTES, image_urls, png_size, to_openai
from gateway.upstream.accounts import Accounts, Route
from gateway.upstream.client import DashScope
from gateway.upstream.images import ImageFetcher
from gateway.upstream.retry import wait_s

TOP_UPS = 2
"""Further calls for images that an answer lacked; the vendor bills only what it delivered."""


class Clock(Struct, frozen=True):
    """Time and chance, so that tests can hold both: Unix seconds, steady seconds, [0, 1)."""

    now: Callable[[], float]
    steady: Callable[[], float]
    chance: Callable[[], float] = random


class Outcome(Struct, frozen=True):
    """An answer, and the plan that led to it."""

    response: ImagesResponse
    plan: Plan


class Run:
    """What the calls of one request share: when it must end, and whether anything was generated."""

    def __init__(self, deadline: float, log: FilteringBoundLogger) -> None:
        self.deadline = deadline
        self.log = log
        self.generated = 0
        self.failed: GatewayError | None = None


class Pipeline:
    """Serves image requests. All state is in its parts."""

    def __init__(
        self,
        catalogue: Catalogue,
        default_model: str,
        *,
        accounts: Accounts,
        client: DashScope,
        fetcher: ImageFetcher,
        clock: Clock,
    ) -> None:
        self._catalogue = catalogue
        self._default_model = default_model
        self._accounts = accounts
        self._client = client
        self._fetcher = fetcher
        self._clock = clock

    async def serve(
        self, caller: Caller, request: ImageRequest, deadline: float, log: FilteringBoundLogger
    ) -> Outcome:
        """Generate what was asked; `deadline` is on the steady clock.

        Raises:
            GatewayError: whatever went wrong, in words for the caller.
        """
        choice = choose_model(self._catalogue, caller.tenant, request.model, self._default_model)
        plan = to_dashscope(request, choice, caller.tenant.size_policy)
        run = Run(deadline, log)
        urls = await self._generate(plan, run)
        images, size = await self._deliver(plan, urls)
        created = int(self._clock.now())
        return Outcome(to_openai(images, created=created, size=size), plan)

    async def _generate(self, plan: Plan, run: Run) -> list[str]:
        """All URLs, in the order of the calls. One call's failure keeps the unsent ones back."""
        calls = [self._complete(call, run) for call in plan.calls]
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, GatewayError):
                raise result
        if run.failed is not None:
            raise after_payment(run.failed, run.generated)
        return [url for urls in results if isinstance(urls, list) for url in urls]

    async def _complete(self, call: GenerationRequest, run: Run) -> list[str]:
        """One call's images, asking again for those that an answer lacked."""
        urls: list[str] = []
        wanted = call.parameters.n or 1
        try:
            for _ in range(1 + TOP_UPS):
                found = await self._send(remaining(call, len(urls)), run)
                urls += found[: wanted - len(urls)]
                if len(urls) == wanted:
                    return urls
                run.log.warning("incomplete_answer", wanted=wanted, received=len(urls))
                if not found:
                    break
            raise IncompleteResult(f"The image service returned {len(urls)} of {wanted} images.")
        except GatewayError as error:
            run.failed = run.failed or error
            raise

    async def _send(self, call: GenerationRequest, run: Run) -> list[str]:
        """One successful upstream call, over accounts and attempts."""
        tried: set[str] = set()
        attempt = 0
        while True:
            attempt += 1
            left_s = self._left_s(run)
            route = self._accounts.pick(call.model, tried, left_s)
            try:
                urls = await self._attempt(route, call, run, left_s)
            except UpstreamFailure as failure:
                tried.add(route.account.name)
                wait = self._wait_s(failure, call.model, attempt, tried, run)
                if wait is None:
                    raise failure.error from failure
            else:
                run.generated += len(urls)
                return urls
            await asyncio.sleep(wait)

    async def _attempt(
        self, route: Route, call: GenerationRequest, run: Run, left_s: float
    ) -> list[str]:
        if run.failed is not None:
            raise run.failed
        try:
            reply = await self._client.generate(route.account, call, left_s)
        except UpstreamFailure as failure:
            self._accounts.record(route, failure)
            run.log.warning(
                "upstream_failed",
                account=route.account.name,
                status=failure.status,
                code=failure.code,
                upstream_message=failure.message[:500],
                upstream_request_id=failure.request_id,
                remedy=failure.remedy.value,
            )
            raise
        except BaseException:
            route.breaker.abandoned()
            raise
        self._accounts.record(route, None)
        urls = image_urls(reply)
        run.log.info(
            "upstream_answered",
            account=route.account.name,
            images=len(urls),
            upstream_request_id=reply.request_id,
        )
        return urls

    def _wait_s(
        self, failure: UpstreamFailure, model: str, attempt: int, tried: set[str], run: Run
    ) -> float | None:
        """Seconds until the next attempt, none of them where another account stands ready."""
        other = self._accounts.has_other(model, tried)
        return wait_s(
            failure, attempt, self._clock.chance(), self._left_s(run), other_account=other
        )

    def _left_s(self, run: Run) -> float:
        left = run.deadline - self._clock.steady()
        if left <= 0:
            raise ServiceUnavailable("The deadline passed before the image service could be asked.")
        return left

    async def _deliver(self, plan: Plan, urls: list[str]) -> tuple[list[Image], Size | None]:
        """The images in the format asked for, and their size as far as it is known."""
        if plan.response_format == "url":
            for url in urls:
                self._fetcher.check(url)
            return [Image(url=url) for url in urls], plan.size
        bodies = await asyncio.gather(*(self._fetcher.fetch(url) for url in urls))
        sizes = {png_size(body[:PNG_HEADER_BYTES]) for body in bodies}
        images = [Image(b64_json=b64encode(body).decode()) for body in bodies]
        return images, sizes.pop() if len(sizes) == 1 else None


def after_payment(error: GatewayError, generated: int) -> GatewayError:
    """The error to show; once images were paid for, SDKs must not repeat the request unasked."""
    if generated:
        error.should_retry = False
    return error

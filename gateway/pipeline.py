"""One image request from the caller's body to the answer: translate → admit → call → deliver."""

from __future__ import annotations

import asyncio
from base64 import b64encode

from msgspec import Struct

from gateway.admission import Admission
from gateway.catalogue import Catalogue, Size
from gateway.exchange import Exchange
from gateway.generation import Clock, Generator, Run
from gateway.protocol.openai import Image, ImageRequest, ImagesResponse
from gateway.tenants import Caller, choose_model
from gateway.translate.request import Plan, to_dashscope
from gateway.translate.response import PNG_HEADER_BYTES, png_size, to_openai
from gateway.upstream.images import ImageFetcher

GENERATION_S = 30.0
"""What a generation takes: a call whose slot comes later than this before the deadline is refused,
since its picture would be paid for and come too late."""


class Job(Struct, frozen=True):
    """A request under way, in a task of its own: what is paid for must outlive its caller."""

    plan: Plan
    run: Run
    task: asyncio.Task[list[str]]
    """Ends with the images' URLs, in order, or the GatewayError to show."""
    patience_s: float
    """How long its caller waits."""

    def leave(self) -> bool:
        """The caller waits no longer: send nothing more. Whether anything is under way."""
        self.run.give_up()
        return self.run.sent


class Pipeline:
    """Serves image requests. All state is in its parts."""

    def __init__(
        self,
        catalogue: Catalogue,
        default_model: str,
        *,
        admission: Admission,
        generator: Generator,
        fetcher: ImageFetcher,
        clock: Clock,
    ) -> None:
        self._catalogue = catalogue
        self._default_model = default_model
        self._admission = admission
        self._generator = generator
        self._fetcher = fetcher
        self._clock = clock
        self._running: set[asyncio.Task[list[str]]] = set()

    def start(
        self, caller: Caller, request: ImageRequest, exchange: Exchange, patience_s: float
    ) -> Job:
        """Translate a request and begin to generate; `patience_s` is how long its caller waits.

        Raises:
            GatewayError: it cannot be honoured; nothing was begun.
        """
        tenant = caller.tenant
        choice = choose_model(self._catalogue, tenant, request.model, self._default_model)
        plan = to_dashscope(request, choice, tenant.size_policy)
        now = self._clock.steady()
        run = Run(
            tenant.name,
            exchange,
            slot_by=now + patience_s - min(GENERATION_S, patience_s / 2),
            deadline=now + patience_s,
        )
        task = asyncio.create_task(self._generate(caller, plan, run, exchange))
        self._running.add(task)
        task.add_done_callback(self._ended)
        return Job(plan, run, task, patience_s)

    async def drain(self) -> None:
        """Wait for what is under way for callers that have left."""
        if self._running:
            await asyncio.wait(self._running)

    def _ended(self, task: asyncio.Task[list[str]]) -> None:
        """Let go of a task; a failure that nobody waits for any more has been logged already."""
        self._running.discard(task)
        if not task.cancelled():
            task.exception()

    async def _generate(
        self, caller: Caller, plan: Plan, run: Run, exchange: Exchange
    ) -> list[str]:
        held = await self._admission.admit(caller.tenant, plan, exchange)
        try:
            return await self._generator.generate(plan, run)
        finally:
            await self._admission.settle(held, run.generated)

    async def deliver(self, plan: Plan, urls: list[str]) -> ImagesResponse:
        """The answer in the format asked for.

        Raises:
            ImageUnavailable: an image cannot be fetched; none is left out.
        """
        images, size = await self._images(plan, urls)
        return to_openai(images, created=int(self._clock.now()), size=size)

    async def _images(self, plan: Plan, urls: list[str]) -> tuple[list[Image], Size | None]:
        """The images, and their size as far as it is known."""
        if plan.response_format == "url":
            for url in urls:
                self._fetcher.check(url)
            return [Image(url=url) for url in urls], plan.size
        bodies = await asyncio.gather(*(self._fetcher.fetch(url) for url in urls))
        sizes = {png_size(body[:PNG_HEADER_BYTES]) for body in bodies}
        images = [Image(b64_json=b64encode(body).decode()) for body in bodies]
        return images, sizes.pop() if len(sizes) == 1 else None

"""The client of a request, who may leave in the moment in which what it waits for has come."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from typing import Any

import httpx
import pytest

from gateway.app import Parts
from gateway.config import Images
from gateway.domain.catalogue import Rate
from gateway.domain.clock import Clock
from gateway.domain.errors import ClientGone, GatewayError
from gateway.observability.context import RequestContext
from gateway.protocol.openai import ImageRequest
from gateway.requests.client import Client, Stopped
from gateway.requests.pipeline import RequestOptions, Result
from gateway.store.availability import Share
from gateway.store.memory import MemoryStore
from gateway.tenants.keys import Caller
from tests.running import account, config_for, tenants
from tests.virtual_time import in_virtual_time

MODEL = "qwen-image-plus"
URL = "https://images.aliyuncs.com/a.png?Expires=9999999999"
ANSWER = {"output": {"choices": [{"message": {"role": "assistant", "content": [{"image": URL}]}}]}}


class Vendor(httpx.AsyncBaseTransport):
    """Answers at once, and notes when it was called."""

    def __init__(self) -> None:
        self.called_at: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.called_at.append(asyncio.get_running_loop().time())
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps(ANSWER).encode()))


class LeavesWithItsSlot(Client):
    """Hangs up when its slot has come and its request has not seen it."""

    def wait(self, future: asyncio.Future[Any]) -> asyncio.Future[Any]:
        future.add_done_callback(lambda _: self.hang_up())  # runs before what resumes the request
        return super().wait(future)


class House:
    """A worker's parts before an account of one call in ten seconds."""

    def __init__(self) -> None:
        clock = asyncio.get_running_loop().time
        self.vendor = Vendor()
        slow = account("https://vendor.example/api/v1", rates={"*": Rate(0.1)})
        self.config = config_for(slow, images=Images())
        self.parts = Parts(
            self.config,
            store=MemoryStore(clock),
            transport=self.vendor,
            clock=Clock(clock, clock, lambda: 0.0),
            share=Share(),
        )
        self._requests = 0

    async def serve(self, client: Client) -> Result:
        self._requests += 1
        tenant, *_ = tenants()
        caller, context = Caller(tenant, tenant.keys[0]), RequestContext(f"req_{self._requests}")
        request = ImageRequest(prompt=f"fox {self._requests}", model=MODEL)
        plan = self.parts.pipeline.plan(caller, request, context)
        options = RequestOptions(
            retry_key=str(self._requests), client_timeout_s=300.0, silence_s=15.0, deadline_s=300.0
        )
        return await self.parts.pipeline.serve(caller, plan, context, options, client)


def nothing(_: GatewayError) -> None:
    """No answer is wanted early."""


@in_virtual_time
async def test_a_slot_that_comes_as_its_client_leaves_goes_to_another() -> None:
    """Or a call would be paid for that nobody waits for."""
    house = House()
    leaving = asyncio.create_task(house.serve(LeavesWithItsSlot(nothing)))
    staying = asyncio.create_task(house.serve(Client(nothing)))

    with pytest.raises(ClientGone):
        await leaving
    assert (await staying).record.urls == (URL,)
    assert house.vendor.called_at == [0]


@in_virtual_time
async def test_a_client_that_has_left_frees_what_it_waited_with() -> None:
    """Without the garbage collector: the frames of a request hold its images."""
    leaving = Client(nothing)

    async def wait() -> weakref.ref[Stopped]:
        try:
            await leaving.wait(asyncio.get_running_loop().create_future())
        except Stopped as stopped:
            return weakref.ref(stopped)
        raise AssertionError("it came")

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    gc.disable()
    try:
        leaving.hang_up()
        stopped = await task
        await asyncio.sleep(0)  # the loop's own callback holds it until then
        assert stopped() is None
    finally:
        gc.enable()

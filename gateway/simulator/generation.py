"""The four generation paths, from bearer key to signed URLs.

The order is the vendor's as far as it is known: body limit, key, validation, rate, then the work.
Faults come last, so that only calls which would have succeeded meet them.
"""

from __future__ import annotations

import asyncio
import time
import uuid

import msgspec
from litestar.types import Receive, Scope, Send

from gateway.simulator import inputs, vendor
from gateway.simulator.faults import AFTER, Fault
from gateway.simulator.journal import KEPT_BODY_BYTES, Call
from gateway.simulator.models import Endpoint
from gateway.simulator.replies import Json, Refused
from gateway.simulator.results import generate
from gateway.simulator.simulator import Simulator
from gateway.simulator.tasks import Task
from gateway.simulator.validation import Generation, Rules, named_model, read_generation
from gateway.simulator.wire import (
    Answer,
    ClientGone,
    Cut,
    TooLarge,
    cut,
    header,
    is_gone,
    method,
    read_body,
    send_answer,
    wait_until_gone,
)

PATHS: dict[str, Endpoint] = {
    "/api/v1/services/aigc/multimodal-generation/generation": "sync",
    "/api/v1/services/aigc/image-generation/generation": "image-generation",
    "/api/v1/services/aigc/text2image/image-synthesis": "text2image",
    "/api/v1/services/aigc/image2image/image-synthesis": "image2image",
}

BASE64_FACTOR = 4
"""A body with a base64 image in it may be this many times larger: 64 MiB against 16."""
SLOW_S = 5.0
HUGE_BYTES = 32 * 1024 * 1024


class GenerationEndpoint:
    """An ASGI application for every path in `PATHS`."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one call, and writes down what became of it."""
        simulator, started = self._simulator, time.perf_counter()
        try:
            with simulator.journal.call(scope, str(uuid.uuid4()), simulator.clock()) as call:
                try:
                    answer = await self._answer(scope, receive, call)
                    call.status = answer.status
                except ClientGone:
                    call.client_gone = True
                    if call.outcome == "in flight":
                        call.outcome = "client gone"
                    return
                finally:
                    call.took_s = time.perf_counter() - started
        except Cut:
            await cut(scope, receive)
            return
        await send_answer(send, answer)

    async def _answer(self, scope: Scope, receive: Receive, call: Call) -> Answer:
        try:
            generation = await self._admit(scope, receive, call)
            return await self._perform(scope, receive, call, generation)
        except TooLarge:
            call.outcome = "413"
            self._simulator.journal.refused["413"] += 1
            return vendor.raw_answer(self._simulator.replies.raw["413"])
        except Refused as refused:
            return self._refusal(call, refused)

    def _refusal(self, call: Call, refused: Refused) -> Answer:
        simulator = self._simulator
        code = simulator.replies.errors[refused.name].body["code"]
        if call.outcome == "in flight":
            call.outcome = code
        simulator.journal.refused[code] += 1
        return vendor.refusal(
            refused, simulator.replies, call.request_id, call.at, simulator.settings
        )

    async def _admit(self, scope: Scope, receive: Receive, call: Call) -> Generation:
        """The call as the vendor would run it; raises `Refused`, `TooLarge` or `ClientGone`."""
        simulator, settings = self._simulator, self._simulator.settings
        body = await self._body(scope, receive)
        call.raw_body, call.model = body[:KEPT_BODY_BYTES], named_model(body)
        simulator.journal.calls[call.model] += 1
        if method(scope) != "POST":
            raise Refused("NotFound")
        call.account = vendor.account_of(scope, settings)
        if not header(scope, b"content-type").startswith("application/json"):
            raise Refused("InvalidParameter-body")
        rules = self._rules(scope)
        generation = read_generation(body, simulator.models, rules)
        call.inputs = [inputs.described(each) for each in generation.images]
        if not simulator.admits(call.account, generation.model.name):
            raise Refused("Throttling.RateQuota")
        return generation

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self._simulator.settings.max_body_bytes
        body = await read_body(scope, receive, limit * BASE64_FACTOR)
        if len(body) > limit and b";base64," not in body:
            raise TooLarge
        return body

    def _rules(self, scope: Scope) -> Rules:
        """What the path and the headers ask for; `Refused` when they contradict each other."""
        endpoint = endpoint_of(scope)
        wants_task = header(scope, b"x-dashscope-async").lower() == "enable"
        if endpoint == "sync" and wants_task:
            raise Refused("AccessDenied-asynchronous")
        if endpoint != "sync" and not wants_task:
            raise Refused("AccessDenied-synchronous")
        return Rules(
            endpoint=endpoint,
            resolves_oss=header(scope, b"x-dashscope-ossresourceresolve") == "enable",
            strict_parameters=self._simulator.settings.strict_parameters,
        )

    async def _perform(
        self, scope: Scope, receive: Receive, call: Call, generation: Generation
    ) -> Answer:
        fault = self._simulator.fault_for(generation.model.name, generation.prompt)
        if fault is not None:
            call.outcome = fault.kind
            if fault.kind not in AFTER:
                return await self._misbehave(fault, receive)
        if endpoint_of(scope) != "sync":
            return self._submit(scope, call, generation, fault)
        await self._work(generation, fault)
        call.client_gone = is_gone(scope)
        return self._finish(scope, call, generation, fault)

    async def _misbehave(self, fault: Fault, receive: Receive) -> Answer:
        """What happens in place of a generation."""
        if fault.kind == "hang":
            await self._hang(fault, receive)
        if fault.after_s:
            await self._simulator.sleep(fault.after_s)
        if fault.kind == "reset_before":
            raise Cut
        if fault.kind in self._simulator.replies.raw:
            return vendor.raw_answer(self._simulator.replies.raw[fault.kind])
        raise Refused(fault.kind, **({"message": fault.message} if fault.message else {}))

    async def _hang(self, fault: Fault, receive: Receive) -> None:
        try:
            await asyncio.wait_for(wait_until_gone(receive), fault.after_s)
        except TimeoutError:
            raise Cut from None
        raise ClientGone

    async def _work(self, generation: Generation, fault: Fault | None) -> None:
        delay_s = self._simulator.latency_s(generation.model.name)
        if fault is not None:
            default_s = SLOW_S if fault.kind == "slow" else 0.0
            delay_s += default_s if fault.after_s is None else fault.after_s
        if delay_s:
            await self._simulator.sleep(delay_s)

    def _finish(
        self, scope: Scope, call: Call, generation: Generation, fault: Fault | None
    ) -> Answer:
        simulator = self._simulator
        base = image_base(scope, simulator)
        body, call.images = generate(simulator, generation, call.request_id, base, fault)
        if fault is None:
            call.outcome = "generated"
        elif fault.kind == "reset_after_generation":
            raise Cut
        took_s = max(0.0, simulator.clock() - call.at)
        return _bent(vendor.answer(body, call.request_id, call.at, took_s), body, fault)

    def _submit(
        self, scope: Scope, call: Call, generation: Generation, fault: Fault | None
    ) -> Answer:
        """Takes an asynchronous task on; `tasks` tells from the clock how far it is."""
        simulator = self._simulator
        scheduled = call.at + simulator.settings.task_pending_s
        task = Task(
            task_id=str(uuid.uuid4()),
            account=call.account,
            endpoint=endpoint_of(scope),
            generation=generation,
            base=image_base(scope, simulator),
            fault=fault,
            submitted=call.at,
            scheduled=scheduled,
            ends=scheduled + simulator.latency_s(generation.model.name),
        )
        simulator.tasks.add(task)
        call.outcome = fault.kind if fault else "submitted"
        facts = {"request_id": call.request_id, "task_id": task.task_id}
        body = simulator.replies.success("task-submitted", facts)
        return vendor.answer(body, call.request_id, call.at, 0.0)


def endpoint_of(scope: Scope) -> Endpoint:
    """Which of the four paths was called."""
    return PATHS[scope["path"].rstrip("/")]


def image_base(scope: Scope, simulator: Simulator) -> str:
    """Scheme and authority of result URLs: as set, else those the client used."""
    if simulator.settings.image_base:
        return simulator.settings.image_base.rstrip("/")
    return f"{scope['scheme']}://{header(scope, b'host')}"


def _bent(answer: Answer, body: Json, fault: Fault | None) -> Answer:
    """The answer, unless the fault spoils its text."""
    if fault is not None and fault.kind == "truncated_json":
        return Answer(answer.status, answer.headers, answer.body[: len(answer.body) // 2])
    if fault is not None and fault.kind == "huge_body":
        size = HUGE_BYTES if fault.size_bytes is None else fault.size_bytes
        text = msgspec.json.encode(body | {"padding": "x" * size})
        return Answer(answer.status, answer.headers, text)
    return answer

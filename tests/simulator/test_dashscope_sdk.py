"""The vendor's own SDK, which must not notice the difference."""

from __future__ import annotations

from typing import Any

import aiohttp
import dashscope
import httpx
import pytest
from dashscope import AioMultiModalConversation, ImageSynthesis, MultiModalConversation
from dashscope.aigc.image_generation import ImageGeneration
from dashscope.api_entities.dashscope_response import Message
from dashscope.v2 import Client
from dashscope.v2 import errors as v2

from tests.simulated import SimulatedDashScope
from tests.simulator.calls import Clock

MESSAGES = [{"role": "user", "content": [{"text": "a cat"}]}]


@pytest.fixture(autouse=True)
def _pointed_at_the_simulator(sim: SimulatedDashScope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", sim.base_url)
    monkeypatch.setattr(dashscope, "api_key", "sk-test")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def image_in(output: Any) -> str:
    url: str = output["choices"][0]["message"]["content"][0]["image"]
    return url


def call(**options: Any) -> Any:
    return MultiModalConversation.call(
        **{"model": "qwen-image-2.0-pro", "messages": MESSAGES, **options}
    )


def test_a_synchronous_call(sim: SimulatedDashScope, http: httpx.Client) -> None:
    """With every parameter the vendor's samples pass."""
    answer = call(
        result_format="message",
        stream=False,
        n=2,
        size="1024*1024",
        negative_prompt=" ",
        prompt_extend=True,
        watermark=False,
        seed=7,
    )
    assert answer.status_code == 200
    assert len(answer.output.choices[0].message.content) == 2
    assert answer.usage["image_count"] == 2
    assert http.get(image_in(answer.output)).headers["content-type"] == "image/png"
    received = sim.state()["log"][0]
    assert received["headers"]["content-type"] == "application/json; charset=utf-8"
    assert received["body"]["parameters"]["result_format"] == "message"


def test_an_edit(sim: SimulatedDashScope) -> None:
    """Images beside the text."""
    content = [{"image": "https://example.com/cat.png"}, {"text": "a hat on it"}]
    messages = [{"role": "user", "content": content}]
    answer = call(model="qwen-image-edit-plus", messages=messages)
    assert answer.status_code == 200
    assert image_in(answer.output)


def test_a_refused_call_carries_the_vendors_words() -> None:
    """Status, code, message and request id."""
    answer = call(model="qwen-image-plus", size="1024*1024")
    assert (answer.status_code, answer.code) == (400, "InvalidParameter")
    assert answer.message.startswith("The size does not match the allowed size 1664*928,")
    assert len(answer.request_id) == 36


def test_a_missing_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK sends `Bearer ` with nothing after it."""
    answer = call(api_key="")
    assert (answer.status_code, answer.code) == (401, "InvalidApiKey")


def test_a_proxys_error_page_is_an_unknown_code(sim: SimulatedDashScope) -> None:
    """As the SDK treats anything that is not JSON."""
    sim.fault("html_502")
    answer = call()
    assert (answer.status_code, answer.code) == (502, "Unknown")


def test_a_reset_connection_is_tried_again_by_the_sdk(sim: SimulatedDashScope) -> None:
    """Which is why a gateway should not use it: the first call was paid too."""
    sim.fault("reset_after_generation")
    assert call().status_code == 200
    assert sim.state()["paid"] == {"qwen-image-2.0-pro": 2}


async def test_an_asyncio_call() -> None:
    """Over aiohttp."""
    async with aiohttp.ClientSession() as session:
        answer: Any = await AioMultiModalConversation.call(
            model="qwen-image-2.0-pro", messages=MESSAGES, size="1024*1024", session=session
        )
    assert answer.status_code == 200
    assert image_in(answer.output)


def test_image_synthesis_submits_and_waits(http: httpx.Client) -> None:
    """The older task path, polled until it is done."""
    answer = ImageSynthesis.call(model="qwen-image-plus", prompt="a cat", size="1328*1328")
    assert answer.status_code == 200
    assert answer.output.task_status == "SUCCEEDED"
    assert answer.usage.image_count == 1
    assert http.get(answer.output.results[0].url).status_code == 200


def test_image_generation_in_steps(sim: SimulatedDashScope, clock: Clock) -> None:
    """Submitted, fetched while it waits and runs, then waited for."""
    sim.configure(task_pending_s=5, latency_s=20)
    message = Message(role="user", content=[{"text": "a cat"}])
    task: Any = ImageGeneration.async_call(model="qwen-image-3.0", messages=[message], n=2)
    assert task.output.task_status == "PENDING"
    clock.advance(6)
    assert ImageGeneration.fetch(task).output.task_status == "RUNNING"
    clock.advance(20)
    done = ImageGeneration.wait(task)
    assert done.output.task_status == "SUCCEEDED"
    assert len(done.output.choices[0].message.content) == 2


def test_image_generation_cancelled_and_listed(sim: SimulatedDashScope) -> None:
    """Only while it waits."""
    sim.configure(task_pending_s=5)
    message = Message(role="user", content=[{"text": "a cat"}])
    task: Any = ImageGeneration.async_call(model="wan2.6-t2i", messages=[message], n=1)
    assert ImageGeneration.cancel(task).status_code == 200
    assert ImageGeneration.fetch(task).output.task_status == "CANCELED"
    listed = ImageGeneration.list()
    assert listed.output["data"][0]["task_id"] == task.output.task_id


def test_image_generation_called_at_once() -> None:
    """On the synchronous path, as for wan2.6."""
    message = Message(role="user", content=[{"text": "a cat"}])
    answer: Any = ImageGeneration.call(model="wan2.6-t2i", messages=[message], n=1)
    assert answer.status_code == 200
    assert image_in(answer.output)


@pytest.fixture
def second_version(sim: SimulatedDashScope) -> Any:
    with Client(api_key="sk-test", base_url=sim.base_url) as client:
        yield client


def test_the_second_version_generates(
    sim: SimulatedDashScope, second_version: Any, http: httpx.Client
) -> None:
    """`1280x1280` becomes `1280*1280` on its way."""
    job = second_version.images.generate(model="wan2.6-t2i", prompt="a cat", size="1280x1280", n=1)
    assert http.get(job.image_urls[0]).status_code == 200
    assert sim.state()["log"][0]["body"]["parameters"]["size"] == "1280*1280"


@pytest.mark.slow
def test_the_second_version_uses_tasks_for_older_models(second_version: Any) -> None:
    """Submitted and polled behind one call."""
    job = second_version.images.generate(model="qwen-image-plus", prompt="a cat", size="1328x1328")
    assert job.succeeded
    assert len(job.image_urls) == 1


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("DataInspectionFailed", v2.ContentFilterError),
        ("Arrearage", v2.PermissionDeniedError),
        ("InvalidApiKey", v2.AuthenticationError),
        ("200_with_code", v2.InternalServerError),
        ("413", v2.RequestTooLargeError),
    ],
)
def test_the_second_version_knows_the_errors(
    sim: SimulatedDashScope, second_version: Any, kind: str, error: type[Exception]
) -> None:
    """Each reaches the class the SDK has for it."""
    sim.fault(kind, count=None)
    with pytest.raises(error):
        second_version.images.generate(model="wan2.6-t2i", prompt="a cat", n=1)


def test_the_second_version_tries_a_throttled_call_again(
    sim: SimulatedDashScope, second_version: Any
) -> None:
    """And takes Retry-After at its word."""
    sim.configure(retry_after_s=0)
    sim.fault("Throttling.RateQuota")
    job = second_version.images.generate(model="wan2.6-t2i", prompt="a cat", n=1)
    assert len(job.image_urls) == 1
    assert sim.state()["refused"] == {"Throttling.RateQuota": 1}

"""The vendor's own SDK with the gateway as its base URL: the same road in the vendor's own form."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import dashscope
import httpx
import pytest
from dashscope import AioMultiModalConversation, ImageSynthesis, MultiModalConversation
from dashscope.aigc.image_generation import ImageGeneration
from dashscope.api_entities.dashscope_response import Message
from dashscope.v2 import Client as SecondVersion
from dashscope.v2 import errors as v2
from msgspec.structs import replace

from gateway.config import Limits, Upstream
from gateway.domain import errors
from gateway.domain.errors import GatewayError
from gateway.domain.prices import Money
from gateway.translate.native import CODES, code_of
from tests.running import (
    ACME,
    EXPIRED,
    LIMITED,
    UPSTREAM_KEY,
    Client,
    HeldClock,
    Logs,
    account,
    config_for,
    tenants,
    until,
)
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

PATH: Final = "/api/v1/services/aigc/multimodal-generation/generation"
MODEL: Final = "qwen-image-2.0"
MESSAGES: Final[Any] = [{"role": "user", "content": [{"text": "a cat"}]}]

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


Call = Callable[..., Any]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, gateway: Client) -> Call:
    """The first version's call, pointed at the gateway as at the vendor."""
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{gateway.url}/api/v1")
    monkeypatch.setattr(dashscope, "api_key", ACME)

    def with_options(**options: Any) -> Any:
        return MultiModalConversation.call(**{"model": MODEL, "messages": MESSAGES, **options})

    return with_options


def body(**parameters: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": {"messages": MESSAGES}, "parameters": parameters}


def post(gateway: Client, json: object, **headers: str) -> httpx.Response:
    """By no SDK."""
    named = {"authorization": f"Bearer {ACME}"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    return gateway.http.post(gateway.url + PATH, json=json, headers=named)


def urls(answer: Any) -> list[str]:
    return [item["image"] for item in answer.output.choices[0].message.content]


def paid(simulator: SimulatedDashScope) -> int:
    return sum(simulator.state(log=0)["paid"].values())


def calls(simulator: SimulatedDashScope) -> int:
    return sum(simulator.state(log=0)["calls"].values())


class TestGeneration:
    def test_with_every_parameter_that_the_vendor_s_samples_pass(
        self, call: Call, simulator: SimulatedDashScope, http: httpx.Client
    ) -> None:
        """The tenant's key goes in, the account's goes out."""
        simulator.configure(api_keys=[UPSTREAM_KEY])
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
        assert re.fullmatch(r"req_[0-9a-f]{32}", answer.request_id)
        assert answer.output.choices[0].finish_reason == "stop"
        assert answer.usage["image_count"] == 2
        assert (answer.usage["width"], answer.usage["height"]) == (1024, 1024)
        assert [http.get(url).headers["content-type"] for url in urls(answer)] == ["image/png"] * 2
        [sent] = simulator.state()["log"]
        assert sent["body"]["parameters"]["seed"] == 7
        assert sent["body"]["parameters"]["negative_prompt"] == " "

    def test_with_nothing_but_a_text(self, call: Call, simulator: SimulatedDashScope) -> None:
        """Without `n` one image is made, on models too whose own default is four."""
        answer = call(model="wan2.6-t2i")

        assert len(urls(answer)) == 1
        assert paid(simulator) == 1

    def test_what_the_third_series_alone_has(
        self, call: Call, simulator: SimulatedDashScope
    ) -> None:
        own = {"prompt_extend_mode": "agent", "enable_thinking": False}
        answer = call(model="qwen-image-3.0", **own)
        refused = call(model=MODEL, **own)

        assert answer.status_code == 200
        [sent] = simulator.state()["log"]
        assert own.items() <= sent["body"]["parameters"].items()
        assert (refused.status_code, refused.code) == (400, "InvalidParameter")
        assert "has no 'prompt_extend_mode'" in refused.message

    def test_more_than_one_call_makes(self, call: Call, simulator: SimulatedDashScope) -> None:
        answer = call(model="qwen-image-plus", n=3, size="1328*1328")

        assert len(set(urls(answer))) == 3
        assert calls(simulator) == 3

    def test_by_an_alias(self, call: Call, simulator: SimulatedDashScope) -> None:
        """One that hands images over as base64 to OpenAI's clients."""
        answer = call(model="gpt-image-1")

        assert urls(answer)[0].startswith("http")
        assert simulator.state()["log"][0]["body"]["model"] == "qwen-image-2.0-pro"

    async def test_by_asyncio(self, gateway: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dashscope, "base_http_api_url", f"{gateway.url}/api/v1")
        async with aiohttp.ClientSession() as session:
            answer: Any = await AioMultiModalConversation.call(
                model=MODEL, messages=MESSAGES, api_key=ACME, session=session
            )

        assert answer.status_code == 200
        assert len(urls(answer)) == 1

    def test_by_the_call_for_wan_models(self, call: Call) -> None:
        message = Message(role="user", content=[{"text": "a cat"}])
        answer: Any = ImageGeneration.call(model="wan2.6-t2i", messages=[message], n=2)

        assert answer.status_code == 200
        assert len(urls(answer)) == 2

    def test_by_the_second_version(self, gateway: Client, simulator: SimulatedDashScope) -> None:
        """Its typed result has no place for images: its own raw answer has them."""
        with SecondVersion(api_key=ACME, base_url=f"{gateway.url}/api/v1") as client:
            client.multimodal.chat.create(
                model=MODEL, messages=MESSAGES, n=1, parameters={"size": "1024*1024"}
            )
            job = client.images.generate(model="wan2.6-t2i", prompt="a cat", size="1280x1280", n=1)

        assert len(job.image_urls) == 1
        assert paid(simulator) == 2


class TestSharedRoad:
    """Limits, cache, idempotency, books: there is one gateway behind both paths."""

    @pytest.fixture(autouse=True)
    def _now(self, clock: HeldClock) -> None:
        clock.now = time.time()  # the vendor's, so that its URLs live

    def test_one_limit(self, start: Start, simulator: SimulatedDashScope) -> None:
        limits = Limits(requests_per_minute=10, images_per_minute=3)
        tight = tuple(replace(each, limits=limits) for each in tenants())
        gateway = start(config_for(account(simulator.base_url), tenants=tight))
        gateway.generate(model=MODEL, n=2)

        passed = post(gateway, body())
        refused = post(gateway, body())

        assert passed.headers["x-ratelimit-remaining-images"] == "0"
        assert refused.status_code == 429
        assert refused.json()["code"] == "Throttling.RateQuota"
        assert 0 < int(refused.headers["retry-after"]) <= 61
        assert paid(simulator) == 3

    def test_one_budget(self, start: Start, simulator: SimulatedDashScope) -> None:
        limits = Limits(spend_per_month=Money.parse("0.3"))
        poor = tuple(replace(each, limits=limits) for each in tenants())
        gateway = start(config_for(account(simulator.base_url), tenants=poor))

        first, second = post(gateway, body()), post(gateway, body())

        assert first.status_code == 200
        assert (second.status_code, second.json()["code"]) == (429, "Throttling.AllocationQuota")
        assert second.headers["x-should-retry"] == "false"

    def test_one_cache(self, gateway: Client, simulator: SimulatedDashScope) -> None:
        made = gateway.generate("a cat", model=MODEL, seed=7, size="1024x1024")
        found = post(gateway, body(seed=7, size="1024*1024"))

        content = found.json()["output"]["choices"][0]["message"]["content"]
        assert [each["image"] for each in content] == [each["url"] for each in made.json()["data"]]
        assert found.headers["x-cache"] == "hit"
        assert paid(simulator) == 1

    def test_an_idempotency_key(self, call: Call, simulator: SimulatedDashScope) -> None:
        """The SDK sends whatever headers it is given."""
        key = {"headers": {"Idempotency-Key": "k1"}}
        first, second = call(**key), call(**key)
        other = call(**key, seed=8)

        assert urls(first) == urls(second)
        assert (other.status_code, other.code) == (422, "InvalidParameter")
        assert paid(simulator) == 1

    def test_a_client_that_left_is_given_what_was_made(
        self, gateway: Client, simulator: SimulatedDashScope, logs: Logs
    ) -> None:
        simulator.configure(latency_s=0.4)
        with pytest.raises(httpx.ReadTimeout):
            gateway.http.post(
                gateway.url + PATH,
                json=body(),
                headers={"authorization": f"Bearer {ACME}"},
                timeout=0.2,
            )
        until(lambda: logs.named("answered"))
        again = post(gateway, body())

        assert again.status_code == 200
        assert again.headers["x-cache"] in {"joined", "replayed"}
        assert paid(simulator) == 1

    def test_its_metrics(self, gateway: Client) -> None:
        post(gateway, body(n=2))
        text = gateway.http.get(f"{gateway.url}/metrics").text

        labels = f'model="{MODEL}",outcome="ok",tenant="acme"'
        assert f"gateway_requests_total{{{labels}}} 1.0" in text
        assert re.search(rf'gateway_images_total{{model="{MODEL}",.*}} 2.0', text)


MANY_TEXTS: Final = [{"role": "user", "content": [{"text": "a cat"}, {"text": "a dog"}]}]
WRONG: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "two messages": ({"messages": MESSAGES * 2}, "exactly one message"),
    "two texts": ({"messages": MANY_TEXTS}, "exactly one text"),
    "no text": ({"messages": [{"role": "user", "content": []}]}, "exactly one text"),
    "an empty text": ({"messages": [{"role": "user", "content": [{"text": " "}]}]}, "empty"),
    "another role": (
        {"messages": [{"role": "system", "content": [{"text": "a cat"}]}]},
        "'input.messages[0].role' must be one of user",
    ),
    "a video": (
        {"messages": [{"role": "user", "content": [{"video": "v"}]}]},
        "'input.messages[0].content[0]' has an unknown field",
    ),
    "text for a list": (
        {"messages": [{"role": "user", "content": "a cat"}]},
        "'input.messages[0].content' must be a list, not text",
    ),
    "a prompt": ({"prompt": "a cat"}, "'input' has an unknown field"),
}
PARAMETERS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "an illegal size": ({"size": "100*100"}, "of 100*100. Send a 'size' of an area of 262144"),
    "OpenAI's form of a size": ({"size": "1024x1024"}, "WIDTH*HEIGHT"),
    "a keyword for a size": ({"size": "2K"}, "WIDTH*HEIGHT"),
    "too many": ({"n": 11}, "'parameters.n' must be a whole number from 1 to 10"),
    "text for a number": ({"n": "2"}, "'parameters.n' must be a whole number"),
    "a seed out of range": ({"seed": -1}, "'parameters.seed' must be a whole number from 0"),
    "an unknown one": ({"enable_sequential": True}, "Unknown parameter: 'enable_sequential'"),
    "another format": ({"result_format": "text"}, "'parameters.result_format' must be one of"),
}


class TestRefusals:
    """In the vendor's own form, before anything is paid."""

    @pytest.fixture(autouse=True)
    def _nothing_is_paid(self, simulator: SimulatedDashScope) -> Any:
        yield
        assert calls(simulator) == 0

    @pytest.mark.parametrize("what", WRONG)
    def test_messages(self, what: str, gateway: Client) -> None:
        wrong, words = WRONG[what]
        self.is_refused(post(gateway, {**body(), "input": wrong}), words)

    @pytest.mark.parametrize("what", PARAMETERS)
    def test_parameters(self, what: str, gateway: Client) -> None:
        wrong, words = PARAMETERS[what]
        self.is_refused(post(gateway, body(**wrong)), words)

    @pytest.mark.parametrize("wrong", [{"input": {}}, {"model": MODEL}, {**body(), "user": "u"}])
    def test_the_body_itself(self, wrong: dict[str, Any], gateway: Client) -> None:
        self.is_refused(post(gateway, wrong), "arameter")

    def is_refused(self, answer: httpx.Response, words: str) -> None:
        refused = answer.json()
        assert (answer.status_code, refused["code"]) == (400, "InvalidParameter")
        assert words in refused["message"]
        assert refused["request_id"] == answer.headers["x-request-id"]
        assert set(refused) == {"code", "message", "request_id"}

    @pytest.mark.parametrize(
        ("key", "model", "refusal"),
        [
            ("", MODEL, (401, "InvalidApiKey")),
            ("sk-none", MODEL, (401, "InvalidApiKey")),
            (EXPIRED, MODEL, (401, "InvalidApiKey")),
            (LIMITED, MODEL, (403, "Model.AccessDenied")),
            (ACME, "qwen-image-9", (404, "ModelNotFound")),
            (ACME, "wan2.6-image", (404, "ModelNotFound")),
        ],
    )
    def test_keys_and_models(
        self, key: str, model: str, refusal: tuple[int, str], call: Call
    ) -> None:
        """By the tenant's rights; a model that is not in the catalogue has no price."""
        answer = call(api_key=key, model=model)

        assert (answer.status_code, answer.code) == refusal
        assert answer.request_id.startswith("req_")

    def test_asynchronous_calls(self, call: Call, gateway: Client) -> None:
        asked = post(gateway, body(), x_dashscope_async="enable")
        message = Message(role="user", content=[{"text": "a cat"}])
        by_the_sdk: Any = ImageGeneration.async_call(model="wan2.6-t2i", messages=[message])
        older: Any = ImageSynthesis.async_call(model="qwen-image-plus", prompt="a cat")

        assert (asked.status_code, asked.json()["code"]) == (403, "AccessDenied")
        assert "does not support asynchronous calls" in asked.json()["message"]
        for answer in (by_the_sdk, older):
            assert (answer.status_code, answer.code) == (403, "AccessDenied")
            assert "MultiModalConversation.call" in answer.message

    def test_streamed_calls(self, call: Call) -> None:
        [answer] = call(stream=True)

        assert (answer.status_code, answer.code) == (403, "AccessDenied")
        assert "does not support streamed calls" in answer.message

    def test_uploads(self, gateway: Client) -> None:
        """The SDK asks for one where a text is the path of a file."""
        answer = gateway.http.get(f"{gateway.url}/api/v1/uploads?action=getPolicy&model={MODEL}")

        assert (answer.status_code, answer.json()["code"]) == (404, "NotFound")

    def test_another_method_and_a_large_body(self, gateway: Client) -> None:
        got = gateway.http.get(gateway.url + PATH)
        large = post(gateway, {**body(), "input": {"messages": ["x" * 200_000]}})

        assert (got.status_code, got.json()["code"]) == (405, "UnsupportedOperation")
        assert (large.status_code, large.json()["code"]) == (413, "BadRequest.TooLarge")


def test_a_lenient_tenant_is_told_what_was_ignored(
    start: Start, simulator: SimulatedDashScope
) -> None:
    """What nobody knows the price of is never passed on."""
    lenient = tuple(replace(each, unknown_parameters="ignore") for each in tenants())
    gateway = start(config_for(account(simulator.base_url), tenants=lenient))

    answer = post(gateway, {**body(enable_sequential=True, seed="7"), "user": "u"})

    assert answer.status_code == 200
    assert answer.headers["x-gateway-ignored"] == "user, enable_sequential"
    [sent] = simulator.state()["log"]
    assert "enable_sequential" not in sent["body"]["parameters"]
    assert sent["body"]["parameters"]["seed"] == 7


class TestFailures:
    @pytest.mark.parametrize(
        ("kind", "status", "code"),
        [
            ("DataInspectionFailed", 400, "DataInspectionFailed"),
            ("Arrearage", 429, "Arrearage"),
            ("InternalError", 502, "InternalError"),
            ("ModelServingError", 503, "ModelServingError"),
            ("InvalidApiKey", 502, "InternalError"),
            ("html_502", 502, "InternalError"),
            ("reset_after_generation", 502, "InternalError"),
            ("RequestTimeOut", 504, "RequestTimeOut"),
        ],
    )
    def test_the_first_version_is_told(
        self, kind: str, status: int, code: str, call: Call, simulator: SimulatedDashScope
    ) -> None:
        """The gateway's own account is never the caller's concern."""
        simulator.fault(kind, count=None)
        answer = call()

        assert (answer.status_code, answer.code) == (status, code)
        assert paid(simulator) <= 1

    @pytest.mark.parametrize(
        ("kind", "error", "sends"),
        [
            ("DataInspectionFailed", v2.ContentFilterError, 1),
            ("Arrearage", v2.PermissionDeniedError, 1),
            ("reset_after_generation", v2.InternalServerError, 1),
            ("html_502", v2.InternalServerError, 1),
            ("RequestTimeOut", v2.GatewayTimeoutError, 1),
        ],
    )
    def test_the_second_version_raises_its_own_error_and_repeats_nothing(
        self,
        kind: str,
        error: type[Exception],
        sends: int,
        gateway: Client,
        simulator: SimulatedDashScope,
    ) -> None:
        """It repeats a 5xx by itself, unless it is told not to."""
        simulator.fault(kind, count=None)
        with (
            SecondVersion(api_key=ACME, base_url=f"{gateway.url}/api/v1") as client,
            pytest.raises(error),
        ):
            client.multimodal.chat.create(model=MODEL, messages=MESSAGES)

        assert calls(simulator) == sends
        assert paid(simulator) <= 1

    @pytest.mark.slow
    def test_an_answer_that_comes_early(self, start: Start, simulator: SimulatedDashScope) -> None:
        """While the work goes on."""
        gateway = start(config_for(account(simulator.base_url), upstream=Upstream(deadline_s=2)))
        simulator.configure(latency_s=0.8)
        answer = post(gateway, body(), x_stainless_read_timeout="0.3")

        assert (answer.status_code, answer.json()["code"]) == (504, "RequestTimeOut")
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        until(lambda: paid(simulator))


def each_error(kind: type[GatewayError] = GatewayError) -> list[type[GatewayError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in each_error(child))]


def test_each_error_has_a_word_of_the_vendor_s_and_no_word_is_for_nothing() -> None:
    known = {kind for kind in each_error() if kind.__module__ == errors.__name__}

    assert all(code_of(kind) for kind in known)
    assert set(CODES) <= known

"""Unmodified OpenAI SDKs against the gateway: each version in an environment of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from gateway.config import Upstream
from gateway.domain.catalogue import Alias
from gateway.requests import calls as generation
from gateway.upstream import retry
from tests.peers.run import PEERS, run_peer, run_script
from tests.running import ACME, LIMITED, HeldClock, RunningGateway, account, config_for
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.peers

SLASHED: Final = "openai/dall-e-3"
PYTHON_PEERS: Final = [peer for peer in PEERS if peer != "openai-node"]
EACH_PEER: Final = [pytest.param(peer, marks=pytest.mark.xdist_group(peer)) for peer in PEERS]

Json = dict[str, Any]


def generate(prompt: str = "a fox", *, fetch: bool = False, **args: Any) -> Json:
    args = {"model": "qwen-image-2.0", "prompt": prompt, **args}
    return {"method": "images.generate", "args": args, "fetch": fetch}


def with_key(key: str, **args: Any) -> Json:
    return generate(extra_headers={"Authorization": f"Bearer {key}"}, **args)


CALLS: Final[dict[str, Json]] = {
    "url": generate("a url", fetch=True, response_format="url", size="1024x1024"),
    "b64_json": generate("inline", response_format="b64_json", size="1024x1024"),
    "gpt-image-1": generate("by alias", model="gpt-image-1", size="1536x1024"),
    "seven": generate("seven together", n=7, size="512x512", extra_body={"seed": 1}),
    "seven on plus": generate("seven apart", model="qwen-image-plus", n=7),
    "extra_body": generate("extras", extra_body={"negative_prompt": "dogs", "watermark": True}),
    "pictures": generate(
        "pictures", model="qwen-image-plus", n=3, fetch=True, extra_body={"seed": 1}
    ),
    "streamed": generate(
        "pictures", model="qwen-image-plus", n=3, stream=True, extra_body={"seed": 1}
    ),
    "streamed, refused": generate("[simulate:DataInspectionFailed] streamed", stream=True),
    "models": {"method": "models.list"},
    "model": {"method": "models.retrieve", "id": "qwen-image-plus"},
    "slashed model": {"method": "models.retrieve", "id": SLASHED},
    "no such model": {"method": "models.retrieve", "id": "no/such"},
    "bad size": generate(size="x"),
    "bad n": generate(n=11),
    "unknown field": generate(extra_body={"steps": 20}),
    "moderation": generate("[simulate:DataInspectionFailed]"),
    "wrong key": with_key("sk-wrong"),
    "forbidden": with_key(LIMITED),
    "unknown model": generate(model="no-such-model"),
    "too large": generate("x" * (1024 * 1024)),
    "not JSON": generate(extra_headers={"Content-Type": "text/plain"}),
    "throttled": generate("[simulate:Throttling.RateQuota]"),
    "no credit": generate("[simulate:Arrearage]"),
    "failed": generate("[simulate:InternalError]"),
    "lost": generate("[simulate:truncated_json]"),
    "overloaded": generate("[simulate:ModelUnavailable]"),
    "timed out": generate("[simulate:empty_504]"),
}

# Class, status, code, type and param, as the SDK gives them to its user.
FAILURES: Final[dict[str, tuple[str, int, str, str, str | None]]] = {
    "no such model": (
        "NotFoundError", 404, "model_not_found", "invalid_request_error", "model",
    ),
    "bad size": ("BadRequestError", 400, "invalid_value", "invalid_request_error", "size"),
    "bad n": ("BadRequestError", 400, "invalid_value", "invalid_request_error", "n"),
    "unknown field": (
        "BadRequestError", 400, "unknown_parameter", "invalid_request_error", "steps",
    ),
    "moderation": (
        "BadRequestError", 400, "moderation_blocked", "image_generation_user_error", None,
    ),
    "wrong key": ("AuthenticationError", 401, "invalid_api_key", "invalid_request_error", None),
    "forbidden": (
        "PermissionDeniedError", 403, "model_not_allowed", "invalid_request_error", "model",
    ),
    "unknown model": (
        "NotFoundError", 404, "model_not_found", "invalid_request_error", "model",
    ),
    "too large": ("APIStatusError", 413, "request_too_large", "invalid_request_error", None),
    "not JSON": (
        "APIStatusError", 415, "unsupported_media_type", "invalid_request_error", None,
    ),
    "throttled": ("RateLimitError", 429, "rate_limit_exceeded", "rate_limit_error", None),
    "no credit": ("RateLimitError", 429, "insufficient_quota", "insufficient_quota", None),
    "failed": ("InternalServerError", 502, "upstream_error", "server_error", None),
    "lost": ("InternalServerError", 502, "upstream_outcome_unknown", "server_error", None),
    "overloaded": (
        "InternalServerError", 503, "server_is_overloaded", "service_unavailable_error", None,
    ),
    "timed out": ("InternalServerError", 504, "upstream_timeout", "server_error", None),
}  # fmt: skip


class Served:
    """A gateway, the vendor behind it, and what each SDK got from them."""

    def __init__(self, gateway: RunningGateway, simulator: SimulatedDashScope) -> None:
        self.url = gateway.url
        self.simulator = simulator
        self._gateway = gateway
        self._replies: dict[str, dict[str, Json]] = {}
        self._logs: dict[str, list[Json]] = {}

    def restart(self, **changes: Any) -> None:
        """Both as if just started: no breaker is open, no call remembered."""
        self.simulator.reset()
        aliases = {SLASHED: Alias("qwen-image-2.0")}
        config = config_for(account(self.simulator.base_url), aliases=aliases, **changes)
        self._gateway.use(config, HeldClock().clock())

    def replies(self, peer: str) -> dict[str, Json]:
        """Every call of CALLS, made once per SDK and without retries."""
        if peer not in self._replies:
            self.restart()
            found = run_peer(peer, self.scenario("/v1", list(CALLS.values()), concurrency=8))
            self._replies[peer] = dict(zip(CALLS, found, strict=True))
            self._logs[peer] = self.simulator.state()["log"]
        return self._replies[peer]

    def scenario(self, root: str, calls: list[Json], **more: Any) -> Json:
        return {
            "base_url": self.url + root,
            "api_key": ACME,
            "timeout": 30,
            "calls": calls,
            **more,
        }

    def upstream_calls(self, prompt: str, peer: str | None = None) -> list[Json]:
        """Parameters of the vendor's calls for a prompt: since the start, or for CALLS."""
        log = self._logs[peer] if peer else self.simulator.state()["log"]
        bodies = [call["body"] for call in log]
        return [
            body["parameters"]
            for body in bodies
            if body["input"]["messages"][0]["content"][0]["text"] == prompt
        ]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    gateway = RunningGateway()
    with SimulatedDashScope(render="plain") as simulator, pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "FIRST_WAIT_S", 0.01)
        patch.setattr(generation, "THROTTLED_S", 0.05)
        yield Served(gateway, simulator)
        gateway.close()


@pytest.mark.parametrize("peer", EACH_PEER)
def test_an_image_by_url(peer: str, served: Served) -> None:
    """The URL opens without any key, and is the PNG that was asked for."""
    reply = served.replies(peer)["url"]

    assert reply["ok"], reply
    assert reply["request_id"].startswith("req_")
    assert reply["request_id"] == reply["headers"]["x-request-id"]
    assert reply["type_of_created"] in {"int", "number"}
    [image] = reply["data"]
    assert image["raw_keys"] == ["url"]
    assert image["fetched"]["status"] == 200
    assert image["fetched"]["png_size"] == [1024, 1024]


@pytest.mark.parametrize("peer", EACH_PEER)
@pytest.mark.parametrize(
    ("call", "size"), [("b64_json", [1024, 1024]), ("gpt-image-1", [1536, 1024])]
)
def test_an_image_inline(peer: str, call: str, size: list[int], served: Served) -> None:
    """Asked for, or because that is what the users of the alias expect."""
    reply = served.replies(peer)[call]

    assert reply["ok"], reply
    [image] = reply["data"]
    assert image["raw_keys"] == ["b64_json"]
    assert image["png_size"] == size


@pytest.mark.parametrize("peer", EACH_PEER)
def test_seven_images_on_a_model_that_makes_six_at_a_time(peer: str, served: Served) -> None:
    reply = served.replies(peer)["seven"]

    assert len({image["url"] for image in reply["data"]}) == 7
    asked = served.upstream_calls("seven together", peer)
    assert sorted((each["n"], each["seed"]) for each in asked) == [(3, 5), (4, 1)]


@pytest.mark.parametrize("peer", EACH_PEER)
def test_seven_images_on_a_model_that_makes_one_at_a_time(peer: str, served: Served) -> None:
    reply = served.replies(peer)["seven on plus"]

    assert len({image["url"] for image in reply["data"]}) == 7
    assert [each["n"] for each in served.upstream_calls("seven apart", peer)] == [1] * 7


@pytest.mark.parametrize("peer", EACH_PEER)
def test_a_stream(peer: str, served: Served) -> None:
    """Each event as the SDK's own type, and the vendor's pictures in them."""
    reply = served.replies(peer)["streamed"]

    assert reply["ok"], reply
    assert {event["type"] for event in reply["events"]} == {"image_generation.completed"}
    assert {event["total_tokens"] for event in reply["events"]} == {0}
    if peer != "openai-node":
        assert {event["class"] for event in reply["events"]} == {"ImageGenCompletedEvent"}
    made = [image["fetched"]["sha256"] for image in served.replies(peer)["pictures"]["data"]]
    assert sorted(event["b64_sha256"] for event in reply["events"]) == sorted(made)


@pytest.mark.parametrize("peer", EACH_PEER)
def test_a_stream_that_fails_at_once_is_raised_as_ever(peer: str, served: Served) -> None:
    reply = served.replies(peer)["streamed, refused"]

    assert (reply["class"], reply["status"]) == ("BadRequestError", 400)
    assert reply["code"] == "moderation_blocked"


@pytest.mark.parametrize("peer", EACH_PEER)
def test_a_stream_that_fails_between_events_raises_there(peer: str, served: Served) -> None:
    """What came before is the user's; the SDK repeats nothing."""
    served.restart()
    served.simulator.fault("InternalError", model="qwen-image-plus")
    call = generate("cut", model="qwen-image-plus", n=3, stream=True)

    [reply] = run_peer(peer, served.scenario("/v1", [call], max_retries=2))

    assert len(reply["events"]) == 2
    assert reply["class"] == "APIError"
    assert (reply["code"], reply["type"]) == ("upstream_error", "server_error")
    assert reply["attempts"] == 1


@pytest.mark.parametrize("peer", EACH_PEER)
def test_keys_beyond_openai_s_reach_the_vendor(peer: str, served: Served) -> None:
    assert served.replies(peer)["extra_body"]["ok"]
    [asked] = served.upstream_calls("extras", peer)
    assert (asked["negative_prompt"], asked["watermark"]) == ("dogs", True)


@pytest.mark.parametrize("peer", EACH_PEER)
def test_models(peer: str, served: Served) -> None:
    """Listed, and retrieved even where the id has a slash, which arrives as %2F."""
    replies = served.replies(peer)

    assert {"qwen-image-2.0-pro", "qwen-image", "gpt-image-1", SLASHED} <= set(
        replies["models"]["ids"]
    )
    assert replies["model"]["id"] == "qwen-image-plus"
    assert replies["slashed model"]["id"] == SLASHED


@pytest.mark.parametrize("peer", EACH_PEER)
@pytest.mark.parametrize("call", FAILURES)
def test_each_error_is_raised_as_the_sdk_defines_it(peer: str, call: str, served: Served) -> None:
    """With the class, code and param that its users act on, and the request's id."""
    reply = served.replies(peer)[call]
    name, *facts = FAILURES[call]

    assert not reply["ok"]
    if peer == "openai-node" and name == "APIStatusError":
        name = "APIError"
    assert reply["class"] == name
    assert [reply["status"], reply["code"], reply["type"], reply["param"]] == facts
    assert reply["request_id"].startswith("req_")
    assert reply["attempts"] == 1


RETRIES: Final[dict[str, int]] = {
    # Attempts of the SDK, of the three it makes for a 429 or a 5xx.
    "[simulate:truncated_json]": 1,
    "[simulate:reset_after_generation]": 1,
    "[simulate:empty_504]": 1,
    "[simulate:Arrearage]": 1,
    "[simulate:InvalidApiKey]": 1,
    "[simulate:DataInspectionFailed]": 1,
    "[simulate:empty_choices]": 1,
    "[simulate:Throttling.AllocationQuota]": 3,
}


@pytest.mark.parametrize("peer", EACH_PEER)
def test_the_sdk_repeats_what_is_safe_and_nothing_else(peer: str, served: Served) -> None:
    """x-should-retry stops the SDK's own retries, each of which would be paid again."""
    served.restart()
    # The SDKs wait as they are told: a tenth of a second, which is more than the gateway waits.
    served.simulator.configure(retry_after_s=0.1)
    calls = [generate(prompt) for prompt in RETRIES]

    found = run_peer(peer, served.scenario("", calls, max_retries=2, concurrency=8))

    assert {p: r["attempts"] for p, r in zip(RETRIES, found, strict=True)} == RETRIES
    for prompt, attempts in RETRIES.items():
        per_request = retry.ATTEMPTS if "Throttling" in prompt else 1
        assert len(served.upstream_calls(prompt)) == attempts * per_request
    assert sum(served.simulator.state(log=0)["paid"].values()) <= 2


@pytest.mark.parametrize("peer", EACH_PEER)
def test_the_sdk_waits_as_long_as_it_is_told(peer: str, served: Served) -> None:
    """By its own rule it would come back after half a second."""
    # Less than the vendor wants to be waited for, so the gateway passes that on at once.
    served.restart(upstream=Upstream(deadline_s=1.0))
    served.simulator.configure(retry_after_s=1.2)
    call = generate("[simulate:Throttling.RateQuota]")

    [reply] = run_peer(peer, served.scenario("/v1", [call], max_retries=1))

    assert reply["class"] == "RateLimitError"
    assert reply["attempts"] == 2
    assert float(reply["headers"]["retry-after-ms"]) <= 1200
    assert reply["elapsed_s"] >= 1.0


@pytest.mark.parametrize("peer", EACH_PEER)
def test_the_sdk_s_retries_of_a_slow_generation_cost_nothing(peer: str, served: Served) -> None:
    """Its time-out is shorter than the generation: every attempt is for the same one image."""
    served.restart()
    served.simulator.configure(latency_s=2.5)

    [reply] = run_peer(peer, served.scenario("/v1", [generate("slow")], max_retries=2, timeout=1.5))

    assert reply["ok"], reply
    assert reply["attempts"] > 1
    assert len(served.upstream_calls("slow")) == 1
    assert sum(served.simulator.state(log=0)["paid"].values()) == 1


@pytest.mark.parametrize("peer", EACH_PEER)
def test_a_stream_outlasts_the_sdk_s_time_out(peer: str, served: Served) -> None:
    """Which counts from byte to byte, or until the head: comments come often enough for it.

    Node's says so only where the call has one of its own.
    """
    served.restart()
    served.simulator.configure(latency_s=2.5)
    call = generate("slow", stream=True, timeout=1)

    [reply] = run_peer(peer, served.scenario("/v1", [call], max_retries=2))

    assert len(reply["events"]) == 1, reply
    assert reply["attempts"] == 1


STRICT = """
import base64, json, sys, openai
url, key, slashed = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, _strict_response_validation=True)
for size in ("1024x1024", "1328x1328", "512x512", "auto"):
    for form in ("url", "b64_json"):
        made = client.images.generate(
            prompt="strict", model="qwen-image-2.0", size=size, response_format=form
        )
        assert type(made) is openai.types.ImagesResponse and len(made.data) == 1
        again = openai.types.ImagesResponse(**made.to_dict())
        assert again.data[0].to_dict() == made.data[0].to_dict()
    for event in client.images.generate(
        prompt="strict", model="qwen-image-2.0", size=size, n=2, stream=True
    ):
        assert type(event) is openai.types.ImageGenCompletedEvent
        openai.types.ImageGenCompletedEvent(**event.to_dict())
assert all(type(model) is openai.types.Model for model in client.models.list())
print(json.dumps({"id": client.models.retrieve(slashed).id, "version": openai.VERSION}))
"""


@pytest.mark.parametrize("peer", PYTHON_PEERS)
def test_answers_pass_the_sdk_s_strict_validation(peer: str, served: Served) -> None:
    """Which rejects unknown enums, a float `created`, a partial `usage`."""
    served.restart()
    told = run_script(peer, STRICT, f"{served.url}/v1", ACME, SLASHED)

    assert told["id"] == SLASHED
    assert told["version"].split(".")[0] == peer.removeprefix("openai-")


@pytest.mark.parametrize("peer", EACH_PEER)
@pytest.mark.parametrize("root", ["", "/v1", "/openai/v1"])
def test_azure_s_client(peer: str, root: str, served: Served) -> None:
    """Given the host or a base URL: a deployment in the path, the key in `api-key`."""
    served.restart()
    calls = [
        generate("azure", model="gpt-image-1", size="1024x1024"),
        generate("azure", model="no-such-deployment"),
        {"method": "models.list"},
    ]
    made, missing, models = run_peer(peer, served.scenario(root, calls, azure="2025-04-01-preview"))

    assert made["ok"], made
    assert made["headers"]["x-gateway-model"] == "qwen-image-2.0-pro"
    assert made["data"][0]["png_size"] == [1024, 1024]
    assert (missing["class"], missing["code"]) == ("NotFoundError", "model_not_found")
    assert "gpt-image-1" in models["ids"]

"""An app developer's first calls: keys, models, sizes, formats, and what the answer tells."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.domain.catalogue import Alias
from tests.running import (
    ACME,
    EXPIRED,
    LIMITED,
    NOW,
    OTHER_ACME,
    STRICT,
    Client,
    account,
    config_for,
    key_of,
)
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

PATH = "/v1/images/generations"


def sent(simulator: SimulatedDashScope) -> list[dict[str, Any]]:
    return [call["body"] for call in simulator.state()["log"]]


def error(answer: httpx.Response) -> tuple[int, str, str | None]:
    told = answer.json()["error"]
    return answer.status_code, told["code"], told["param"]


def test_a_url_opens_without_a_key(gateway: Client) -> None:
    answer = gateway.generate(model="qwen-image-2.0", size="1024x1024")

    [image] = answer.json()["data"]
    picture = httpx.get(image["url"], trust_env=False)
    assert picture.content[:8] == b"\x89PNG\r\n\x1a\n"
    assert answer.json()["created"] == NOW
    assert answer.json()["size"] == "1024x1024"


@pytest.mark.parametrize("path", [PATH, "/images/generations", PATH + "/"])
def test_with_or_without_v1(path: str, gateway: Client) -> None:
    """SDK users often leave it out of the base URL."""
    assert gateway.ask("POST", path, json={"prompt": "a fox"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {ACME}"},
        {"authorization": f"bearer {ACME}"},
        {"authorization": f"Bearer {OTHER_ACME}"},
        {"api-key": ACME},
        {"api-key": ACME, "authorization": f"Bearer {ACME}"},
    ],
)
def test_a_key_opens(headers: dict[str, str], gateway: Client) -> None:
    answer = gateway.ask("POST", PATH, key=None, headers=headers, json={"prompt": "a fox"})

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {key_of('nobody')}"},
        {"authorization": f"Bearer {EXPIRED}"},
        {"authorization": f"Basic {ACME}"},
        {"authorization": ACME},
        {"api-key": f"Bearer {ACME}"},
        {"x-api-key": ACME},
        {"cookie": f"api-key={ACME}"},
        {"authorization": f"Bearer {ACME}", "api-key": OTHER_ACME},
        {"authorization": f"Bearer {ACME}", "api-key": "sk-of-a-proxy"},
    ],
)
def test_no_other_key_opens(
    headers: dict[str, str], gateway: Client, simulator: SimulatedDashScope
) -> None:
    """None, an unknown or expired one, another scheme, or two that differ."""
    answer = gateway.ask("POST", PATH, key=None, headers=headers, json={"prompt": "a fox"})

    assert error(answer) == (401, "invalid_api_key", None)
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert ACME not in answer.text
    assert sent(simulator) == []


def test_a_key_in_the_query_does_not_count(gateway: Client) -> None:
    """It would stand in every log on the way."""
    answer = gateway.ask("POST", f"{PATH}?api-key={ACME}", key=None, json={"prompt": "a fox"})

    assert answer.status_code == 401


def test_the_key_is_asked_for_before_the_body_is_read(gateway: Client) -> None:
    answer = gateway.ask("POST", PATH, key=None, content=b"x" * 2_000_000)

    assert answer.status_code == 401


def test_another_tenant_s_models_are_forbidden(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    assert error(gateway.generate(model="qwen-image-2.0", key=LIMITED)) == (
        403, "model_not_allowed", "model",
    )  # fmt: skip
    assert error(gateway.generate(model="gpt-image-1", key=LIMITED))[0] == 403
    assert sent(simulator) == []
    assert gateway.generate(model="qwen-image-plus", key=LIMITED).status_code == 200
    assert gateway.generate(model="dall-e-3", key=LIMITED).status_code == 200


def test_the_list_of_models_is_the_tenant_s_own(gateway: Client) -> None:
    everything = gateway.ask("GET", "/v1/models").json()["data"]
    little = gateway.ask("GET", "/models", key=LIMITED).json()["data"]

    assert {"qwen-image-2.0-pro", "gpt-image-1"} < {model["id"] for model in everything}
    assert [model["id"] for model in little] == ["qwen-image-plus", "dall-e-2", "dall-e-3"]


@pytest.mark.parametrize(
    ("name", "key", "status"),
    [
        ("qwen-image-plus", LIMITED, 200),
        ("qwen-image-2.0", LIMITED, 403),
        ("dall-e-3", LIMITED, 200),
        ("none", ACME, 404),
        ("qwen-image-2.0-pro-2026-06-22", ACME, 200),
        ("vendor%2Fmine", ACME, 200),
        ("vendor/mine", ACME, 200),
        ("vendor%2Fother", ACME, 404),
    ],
)
def test_one_model(
    name: str, key: str, status: int, start: Start, simulator: SimulatedDashScope
) -> None:
    """With the slash of its id escaped, as the SDKs do, or not."""
    aliases = {"vendor/mine": Alias("qwen-image")}
    gateway = start(config_for(account(simulator.base_url), aliases=aliases))

    answer = gateway.ask("GET", f"/v1/models/{name}", key=key)

    assert answer.status_code == status
    if status == 200:
        assert answer.json()["id"] == name.replace("%2F", "/")
        assert answer.json()["object"] == "model"


def test_models_need_a_key(gateway: Client) -> None:
    for path in ("/v1/models", "/v1/models/qwen-image", "/models"):
        assert gateway.ask("GET", path, key=None).status_code == 401


def test_health_needs_none(gateway: Client) -> None:
    assert gateway.ask("GET", "/healthz", key=None).json() == {"status": "ok"}
    assert gateway.ask("GET", "/readyz", key=None).status_code == 200


@pytest.mark.parametrize(
    ("key", "model", "leads_to"),
    [
        (ACME, None, "qwen-image-2.0-pro"),
        (ACME, "", "qwen-image-2.0-pro"),
        (LIMITED, None, "qwen-image-plus"),
        (ACME, "dall-e-2", "qwen-image-2.0"),
        (ACME, "chatgpt-image-latest", "qwen-image-2.0-pro"),
        (ACME, "qwen-image-max-2025-12-30", "qwen-image-max-2025-12-30"),
    ],
)
def test_the_model_that_answers(
    key: str, model: str | None, leads_to: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """The answer says which one it was."""
    answer = gateway.generate(key=key, model=model)

    assert answer.headers["x-gateway-model"] == leads_to
    assert [body["model"] for body in sent(simulator)] == [leads_to]


@pytest.mark.parametrize("model", ["gpt-4o", "qwen-image-9", "qwen-image-edits", "x" * 500])
def test_an_unknown_model_is_not_found(
    model: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    assert error(gateway.generate(model=model)) == (404, "model_not_found", "model")
    assert sent(simulator) == []


@pytest.mark.parametrize(
    ("model", "asked", "form"),
    [
        ("gpt-image-1", None, "b64_json"),
        ("gpt-image-1", "url", "url"),
        ("dall-e-3", None, "url"),
        ("dall-e-3", "b64_json", "b64_json"),
        ("qwen-image-2.0", None, "url"),
        ("qwen-image-2.0", "b64_json", "b64_json"),
    ],
)
def test_the_format_is_as_asked_or_as_the_name_s_users_expect(
    model: str, asked: str | None, form: str, gateway: Client
) -> None:
    answer = gateway.generate(model=model, response_format=asked, n=2, size="512x512")

    assert [list(image) for image in answer.json()["data"]] == [[form], [form]]


@pytest.mark.parametrize(
    ("model", "asked", "given"),
    [
        ("qwen-image-2.0", "1024x1024", "1024x1024"),
        ("qwen-image-2.0", "256x256", "512x512"),
        ("qwen-image-2.0", None, "2048x2048"),
        ("qwen-image-2.0", "auto", "2048x2048"),
        ("qwen-image-plus", "1024x1024", "1328x1328"),
        ("qwen-image-plus", "512x512", "1328x1328"),
        ("qwen-image", "1792x1024", "1664x928"),
    ],
)
def test_the_size_that_was_sent_is_told(
    model: str, asked: str | None, given: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """In a header, and in the body where every published schema allows the value."""
    answer = gateway.generate(model=model, size=asked)

    assert answer.headers["x-gateway-size"] == given
    assert sent(simulator)[0]["parameters"]["size"] == given.replace("x", "*")
    assert answer.json().get("size") == (given if given == "1024x1024" else None)


def test_an_open_webui_default_is_mapped_and_not_refused(gateway: Client) -> None:
    """It sends 512x512 whatever the model."""
    assert gateway.generate(model="dall-e-2", size="512x512", n=1).status_code == 200


def test_a_strict_tenant_is_refused_instead(gateway: Client, simulator: SimulatedDashScope) -> None:
    refused = gateway.generate(model="qwen-image-plus", size="1024x1024", key=STRICT)

    assert error(refused) == (400, "invalid_value", "size")
    assert "1328x1328" in refused.json()["error"]["message"]
    assert sent(simulator) == []
    legal = gateway.generate(model="qwen-image-plus", size="1328x1328", key=STRICT)
    assert legal.status_code == 200


def test_fields_without_effect_are_named(gateway: Client) -> None:
    answer = gateway.generate(quality="hd", style="vivid", user="jane", moderation="low")

    assert answer.headers["x-gateway-ignored"] == "quality, style, moderation, user"
    assert "x-gateway-ignored" not in gateway.generate().headers


def test_a_prompt_over_the_documented_length_is_sent_and_warned_of(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    answer = gateway.generate("x" * 801)

    assert "prompt has 801 characters" in answer.headers["x-gateway-warning"]
    assert sent(simulator)[0]["input"]["messages"][0]["content"][0]["text"] == "x" * 801
    assert "x-gateway-warning" not in gateway.generate("x" * 800).headers


def test_nulls_are_absent(gateway: Client, simulator: SimulatedDashScope) -> None:
    """The Python SDK sends what its user passed as None."""
    names = ("n", "size", "quality", "response_format", "user", "seed", "model")

    assert gateway.post({"prompt": "a fox", **dict.fromkeys(names)}).status_code == 200
    gateway.generate()
    first, second = sent(simulator)
    assert first == second


def test_a_seed_repeats_an_image(gateway: Client) -> None:
    def picture(seed: int) -> str:
        answer = gateway.generate(
            model="qwen-image-2.0", size="512x512", seed=seed, response_format="b64_json"
        )
        text: str = answer.json()["data"][0]["b64_json"]
        return text

    assert picture(7) == picture(7) != picture(8)


def test_the_upstream_request_id_is_in_the_log(
    gateway: Client, simulator: SimulatedDashScope, logs: Any
) -> None:
    """With the request's own: a complaint to the vendor needs both."""
    answer = gateway.generate("a private fox")

    [line] = logs.named("upstream_answered")
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["upstream_request_id"] == simulator.state()["log"][0]["request_id"]
    assert line["tenant"] == "acme"
    assert line["prompt_length"] == 13
    assert "private" not in repr(logs.lines)
    assert ACME not in repr(logs.lines)

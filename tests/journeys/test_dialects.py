"""Azure's paths, a key header of the operator's choice, and tenants that forgive foreign fields."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from gateway.config import Auth, Config
from tests.running import ACME, LIMITED, Client, account, config_for, tenants
from tests.simulated import SimulatedDashScope

Start = Callable[[Config], Client]
PROMPT = {"prompt": "a fox"}
DEPLOYED = "/openai/deployments/qwen-image-plus/images/generations"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/images/generations",
        "/images/generations",
        "/openai/images/generations",
        "/openai/v1/images/generations",
        "/openai/v1/images/generations?api-version=preview",
        "//v1//images/generations/",
    ],
)
def test_where_images_are_made(path: str, gateway: Client) -> None:
    answer = gateway.ask("POST", path, json={"model": "qwen-image", **PROMPT})

    assert answer.status_code == 200
    assert answer.headers["x-gateway-model"] == "qwen-image"


@pytest.mark.parametrize(
    ("path", "model"),
    [
        (f"{DEPLOYED}?api-version=2025-04-01-preview", "qwen-image-plus"),
        ("/openai/v1/deployments/dall-e-2/images/generations", "qwen-image-2.0"),
        ("/v1/deployments/qwen-image/images/generations", "qwen-image"),
        ("/deployments/qwen-image/images/generations", "qwen-image"),
    ],
)
def test_a_deployment_s_name_is_a_model_or_an_alias(path: str, model: str, gateway: Client) -> None:
    """Where the body has none: LiteLLM and others send none to Azure."""
    for body in (PROMPT, {**PROMPT, "model": None}):
        answer = gateway.ask("POST", path, key=None, json=body, headers={"api-key": ACME})

        assert answer.status_code == 200
        assert answer.headers["x-gateway-model"] == model


def test_the_body_s_own_model_comes_before_the_deployment_s(gateway: Client) -> None:
    answer = gateway.ask("POST", DEPLOYED, json={**PROMPT, "model": "qwen-image"})

    assert answer.headers["x-gateway-model"] == "qwen-image"


def test_a_deployment_that_is_none(gateway: Client) -> None:
    answer = gateway.ask("POST", "/openai/deployments/gpt-4/images/generations", json=PROMPT)

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_two_deployments_are_two_requests(gateway: Client) -> None:
    """An idempotency key that comes again with another deployment comes with another body."""
    headers = {"idempotency-key": "k1"}
    first = gateway.ask("POST", DEPLOYED, json=PROMPT, headers=headers)
    other = gateway.ask("POST", DEPLOYED.replace("-plus", "-max"), json=PROMPT, headers=headers)

    assert first.status_code == 200
    assert other.status_code == 422


@pytest.mark.parametrize("both", [{"api-key": ACME, "authorization": f"Bearer {ACME}"}])
def test_one_key_in_both_headers_is_one_key(both: dict[str, str], gateway: Client) -> None:
    assert gateway.ask("POST", DEPLOYED, key=None, json=PROMPT, headers=both).status_code == 200


@pytest.mark.parametrize("prefix", ["/v1", "", "/openai", "/openai/v1"])
def test_the_models_are_listed_below_each_prefix(prefix: str, gateway: Client) -> None:
    listed = gateway.ask("GET", f"{prefix}/models?api-version=2024-10-21", key=ACME).json()
    one = gateway.ask("GET", f"{prefix}/models/qwen-image", key=ACME).json()

    assert one in listed["data"]


class TestOwnKeyHeader:
    @pytest.fixture
    def behind_a_proxy(self, start: Start, simulator: SimulatedDashScope) -> Client:
        auth = Auth(header="X-Gateway-Key")
        return start(config_for(account(simulator.base_url), auth=auth))

    @pytest.mark.parametrize("value", [ACME, f"Bearer {ACME}"])
    def test_it_is_the_only_one_that_is_read(self, value: str, behind_a_proxy: Client) -> None:
        """The proxy's own `Authorization` is none of the gateway's business."""
        headers = {"x-gateway-key": value, "authorization": "Bearer of-the-proxy"}

        answer = behind_a_proxy.ask("POST", DEPLOYED, key=None, json=PROMPT, headers=headers)

        assert answer.status_code == 200

    def test_the_usual_ones_open_nothing(self, behind_a_proxy: Client) -> None:
        answer = behind_a_proxy.ask("POST", DEPLOYED, json=PROMPT, headers={"api-key": ACME})

        assert answer.status_code == 401
        assert "x-gateway-key" in answer.json()["error"]["message"]

    def test_two_that_differ_are_refused(self, behind_a_proxy: Client) -> None:
        headers = [("x-gateway-key", ACME), ("x-gateway-key", LIMITED)]
        answer = behind_a_proxy.http.post(
            behind_a_proxy.url + DEPLOYED, json=PROMPT, headers=headers
        )

        assert answer.status_code == 401


class TestLenientTenant:
    @pytest.fixture
    def lenient(self, start: Start, simulator: SimulatedDashScope) -> Client:
        forgiving = tuple(replace(each, unknown_parameters="ignore") for each in tenants())
        return start(config_for(account(simulator.base_url), tenants=forgiving))

    def test_what_has_no_meaning_here_is_named(
        self, lenient: Client, simulator: SimulatedDashScope
    ) -> None:
        answer = lenient.generate(
            model="qwen-image-2.0",
            style="vivid",
            image_size="1024x1024",
            batch_size=2,
            seed="7",
            guidance_scale=4.5,
        )

        assert answer.status_code == 200
        assert answer.headers["x-gateway-ignored"] == "style, guidance_scale"
        assert len(answer.json()["data"]) == 2
        [call] = simulator.state()["log"]
        assert call["body"]["parameters"]["seed"] == 7
        assert call["body"]["parameters"]["size"] == "1024*1024"

    def test_what_is_wrong_stays_wrong(self, lenient: Client) -> None:
        """Only names are forgiven, and the types of what can be read."""
        answer = lenient.generate(n="many")

        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "n"

    def test_others_still_refuse(self, gateway: Client) -> None:
        answer = gateway.generate(guidance_scale=4.5)

        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "unknown_parameter"

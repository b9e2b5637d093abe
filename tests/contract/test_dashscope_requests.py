"""What the vendor is sent: the documented schema, every byte of it meant."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.running import UPSTREAM_KEY, Client
from tests.simulated import SimulatedDashScope


def sent(simulator: SimulatedDashScope) -> Any:
    [call] = simulator.state()["log"]
    return call


def test_the_documented_example(gateway: Client, simulator: SimulatedDashScope) -> None:
    """The vendor's own sample request, from the request that asks for the same."""
    prompt = "Healing-style hand-drawn poster featuring three puppies playing with a ball."

    gateway.generate(prompt, model="qwen-image-2.0-pro", n=1, negative_prompt="")

    assert sent(simulator)["body"] == {
        "model": "qwen-image-2.0-pro",
        "input": {"messages": [{"role": "user", "content": [{"text": prompt}]}]},
        "parameters": {
            "negative_prompt": "",
            "prompt_extend": True,
            "watermark": False,
            "size": "2048*2048",
            "n": 1,
        },
    }


def test_the_path_and_the_headers(gateway: Client, simulator: SimulatedDashScope) -> None:
    """Synchronous: the async header is answered with a 403 by these models."""
    simulator.configure(api_keys=[UPSTREAM_KEY])

    assert gateway.generate(headers={"x-dashscope-async": "enable", "x-mine": "1"}).is_success

    call = sent(simulator)
    assert call["path"] == "/api/v1/services/aigc/multimodal-generation/generation"
    assert set(call["headers"]) == {
        "accept",
        "accept-encoding",
        "authorization",
        "content-length",
        "content-type",
        "host",
        "user-agent",
    }
    assert call["headers"]["content-type"] == "application/json"


MODELS = [
    "qwen-image-2.0-pro",
    "qwen-image-2.0",
    "qwen-image-max",
    "qwen-image-plus",
    "qwen-image",
    "qwen-image-3.0-pro",
    "qwen-image-3.0",
    "z-image-turbo",
    "wan2.6-t2i",
    "wan2.7-image",
    "wan2.7-image-pro",
    "qwen-image-2.0-pro-2026-06-22",
    "qwen-image-max-2025-12-30",
    "qwen-image-plus-2026-01-09",
]


@pytest.mark.slow
@pytest.mark.parametrize("choice_per_image", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_takes_what_the_gateway_sends(
    model: str, choice_per_image: bool, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """With every parameter checked the way the vendor documents it for the model."""
    simulator.configure(strict_parameters=True, choice_per_image=choice_per_image)

    for size in (None, "1024x1024", "512x512", "3840x2160", "256x2048"):
        answer = gateway.generate(model=model, size=size, n=5)
        assert answer.status_code == 200, (size, answer.text, sent)
        assert len(answer.json()["data"]) == 5


@pytest.mark.parametrize("model", MODELS)
def test_n_is_always_explicit(model: str, gateway: Client, simulator: SimulatedDashScope) -> None:
    """Where it is absent, wan's default of 4 is billed four times."""
    gateway.generate(model=model)

    assert sent(simulator)["body"]["parameters"]["n"] == 1


def test_absent_parameters_are_left_out_and_never_null(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    gateway.generate(seed=None, negative_prompt=None, user=None)

    body = sent(simulator)["body"]
    assert None not in body["parameters"].values()
    assert set(body["parameters"]) == {"n", "prompt_extend", "size", "watermark"}


@pytest.mark.parametrize(
    "prompt",
    ["狐狸在雪地里", "🦊" * 300, 'quotes " and \\ and \n\t', "\u202e", "x" * 5000, "é\u0301"],
)
def test_a_prompt_arrives_as_it_was_written(
    prompt: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """Not trimmed, not normalised, not cut off."""
    assert gateway.generate(f" {prompt} ").status_code == 200

    content = sent(simulator)["body"]["input"]["messages"][0]["content"]
    assert content == [{"text": f" {prompt} "}]


def test_what_openai_alone_knows_is_not_sent(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """A user's id is nobody's business upstream."""
    gateway.generate(user="jane", safety_identifier="x", quality="hd", style="vivid")

    assert "jane" not in json.dumps(sent(simulator))

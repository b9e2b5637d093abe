"""What the tests of the simulator say to it, and how they read its answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from tests.simulated import SimulatedDashScope

SYNC = "/services/aigc/multimodal-generation/generation"
KEY = {"Authorization": "Bearer sk-test"}

Ask = Callable[..., httpx.Response]

START = 1_795_371_200.0


class Clock:
    """Time that stands still until told otherwise. Unix seconds."""

    def __init__(self) -> None:
        self.naps: list[float] = []
        self.restart()

    def restart(self) -> None:
        """The evening of 22 November 2026 in Greenwich, the 23rd in Beijing."""
        self.now = START
        self.naps.clear()

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    async def sleep(self, seconds: float) -> None:
        """Takes no time at all, but is written down."""
        self.naps.append(seconds)
        self.now += seconds


def request(prompt: str, model: str, parameters: dict[str, Any]) -> dict[str, Any]:
    content = [{"text": prompt}]
    return {
        "model": model,
        "input": {"messages": [{"role": "user", "content": content}]},
        "parameters": parameters,
    }


def urls_in(response: httpx.Response) -> list[str]:
    """Every image of a reply, whatever choice it is in."""
    assert response.status_code == 200, response.text
    return [
        item["image"]
        for choice in response.json()["output"]["choices"]
        for item in choice["message"]["content"]
        if "image" in item
    ]


def keys_of(node: Any) -> Any:
    """The shape of a JSON value: its keys, without what is in them."""
    if isinstance(node, dict):
        return {key: keys_of(value) for key, value in node.items()}
    return [keys_of(node[0])] if isinstance(node, list) and node else type(node).__name__


def wait_for(sim: SimulatedDashScope, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The state once `wanted` holds of it; the other thread may need a moment."""
    for _ in range(1000):
        state = sim.state()
        if wanted(state):
            return state
    raise AssertionError(f"it never came to that: {sim.state()}")

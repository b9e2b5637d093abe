from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.simulated import SimulatedDashScope
from tests.simulator.calls import KEY, SYNC, Ask, Clock, request


@pytest.fixture(scope="session")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def running(clock: Clock) -> Iterator[SimulatedDashScope]:
    with SimulatedDashScope(clock=clock, sleep=clock.sleep, render="plain") as simulator:
        yield simulator


@pytest.fixture
def sim(running: SimulatedDashScope, clock: Clock) -> Iterator[SimulatedDashScope]:
    """A simulator on a clock that stands still, as if just started."""
    clock.restart()
    yield running
    running.reset()


@pytest.fixture(scope="session")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=10) as client:
        yield client


@pytest.fixture
def ask(sim: SimulatedDashScope, http: httpx.Client) -> Ask:
    """Calls the synchronous path with a prompt, a model and parameters."""

    def call(
        prompt: str = "a cat", model: str = "qwen-image-2.0-pro", **parameters: Any
    ) -> httpx.Response:
        return http.post(sim.base_url + SYNC, headers=KEY, json=request(prompt, model, parameters))

    return call

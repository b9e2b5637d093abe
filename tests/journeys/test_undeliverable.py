"""Results that nobody can be given: forgotten where that is for good, kept where it may pass."""

from __future__ import annotations

from time import time
from typing import Any

import httpx
import pytest

from tests.running import Client, HeldClock, account, config_for
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.usefixtures("quick_retries")

ELSEWHERE = "https://images.evil.example"
KEY = {"idempotency-key": "one"}
REPEAT = {"x-stainless-retry-count": "1"}
ASKED: dict[str, Any] = {"model": "qwen-image-2.0", "size": "1024x1024"}


@pytest.fixture
def caching(start: Start, simulator: SimulatedDashScope, clock: HeldClock) -> Client:
    """A gateway for which the simulator's URLs are alive."""
    clock.now = time()
    return start(config_for(account(simulator.base_url)))


def ask(gateway: Client, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return gateway.generate(headers=headers, **{"response_format": "b64_json", **ASKED, **body})


def calls(simulator: SimulatedDashScope) -> int:
    return sum(simulator.state(log=0)["calls"].values())


def refused(answer: httpx.Response, *, retry: bool) -> bool:
    return (
        answer.status_code == 502
        and answer.json()["error"]["code"] == "image_unavailable"
        and answer.headers["x-should-retry"] == str(retry).lower()
    )


@pytest.mark.parametrize("headers", [{}, KEY])
@pytest.mark.parametrize(
    "kind", ["image_not_png", "image_expired", "image_oversized", "image_redirect"]
)
def test_what_is_no_image_is_not_kept(
    kind: str, headers: dict[str, str], caching: Client, simulator: SimulatedDashScope
) -> None:
    """The SDK is told not to pay again by itself; whoever repeats the request gets a new one."""
    simulator.fault(kind)

    assert refused(ask(caching, headers, seed=1), retry=False)
    assert ask(caching, headers, seed=1).status_code == 200
    assert calls(simulator) == 2


@pytest.mark.parametrize("headers", [{}, KEY, REPEAT])
@pytest.mark.parametrize("response_format", ["url", "b64_json"])
def test_an_address_that_is_not_allowed_is_never_a_result(
    response_format: str, headers: dict[str, str], caching: Client, simulator: SimulatedDashScope
) -> None:
    """Nor a part of one, which a retry would be given."""
    body = {"response_format": response_format, "seed": 1, "n": 2}
    simulator.configure(image_base=ELSEWHERE)
    assert refused(ask(caching, headers, **body), retry=False)
    simulator.configure(image_base=None)

    assert ask(caching, headers, **body).status_code == 200
    assert calls(simulator) == 2


@pytest.mark.parametrize(("first", "second"), [({}, REPEAT), ({}, {}), (KEY, KEY)])
@pytest.mark.parametrize("more", [{}, {"stream": True}, {"output_format": "jpeg"}])
def test_what_may_yet_come_is_kept_for_the_retry(
    more: dict[str, Any],
    first: dict[str, str],
    second: dict[str, str],
    caching: Client,
    simulator: SimulatedDashScope,
) -> None:
    """Which SDKs are told to make, and which pays nothing, marked as a retry or not."""
    simulator.fault("image_404", count=4)

    assert refused(ask(caching, first, **more), retry=True)
    assert ask(caching, second, **more).status_code == 200
    assert calls(simulator) == 1


def test_a_hit_that_is_gone_makes_room_for_a_new_one(
    caching: Client, simulator: SimulatedDashScope
) -> None:
    """The retry may pay: the request that found the result has paid nothing."""
    ask(caching, response_format="url", seed=1)
    simulator.fault("image_404")

    assert refused(ask(caching, seed=1), retry=True)
    again = ask(caching, seed=1)
    assert (again.status_code, again.headers["x-cache"]) == (200, "miss")
    assert calls(simulator) == 2

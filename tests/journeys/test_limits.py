"""Limits as clients see them: headers that are true, and refusals that say what to do."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest

from gateway.config import Limits, Redis, Tenant
from gateway.decoding import Secret
from tests.running import Client, HeldClock, account, config_for, tenants
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.usefixtures("quick_retries")

LIMITS = Limits(requests_per_minute=10, images_per_minute=20)
Limited = Callable[[Limits], Client]


@pytest.fixture(params=["in-process", "redis"])
def limited(
    request: pytest.FixtureRequest, start: Start, simulator: SimulatedDashScope, clock: HeldClock
) -> Limited:
    """Starts a gateway whose tenant acme has limits."""
    clock.now = time.time()  # the vendor's, so that its URLs live
    shared = request.param == "redis"
    redis = Redis(url=Secret(request.getfixturevalue("redis_url"))) if shared else None

    def with_limits(limits: Limits) -> Client:
        acme, *_ = tenants()
        tenant = Tenant(name="acme", keys=acme.keys, limits=limits)
        return start(config_for(account(simulator.base_url), tenants=(tenant,), redis=redis))

    return with_limits


def left(answer: httpx.Response) -> tuple[int, int]:
    """Requests and images, as the headers say."""
    names = ("x-ratelimit-remaining-requests", "x-ratelimit-remaining-images")
    requests, images = (int(answer.headers[name]) for name in names)
    return requests, images


def test_an_answer_says_what_is_left(limited: Limited) -> None:
    answer = limited(LIMITS).generate(model="qwen-image-2.0", n=2)

    assert answer.status_code == 200
    assert left(answer) == (9, 18)
    assert answer.headers["x-ratelimit-limit-requests"] == "10"
    assert answer.headers["x-ratelimit-limit-images"] == "20"
    assert 59 <= float(answer.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 61
    assert 59 <= int(answer.headers["x-ratelimit-reset-images"]) <= 61


def test_a_failure_says_that_its_images_came_back(
    limited: Limited, simulator: SimulatedDashScope
) -> None:
    """The request itself stays counted."""
    client = limited(LIMITS)
    simulator.fault("DataInspectionFailed")

    answer = client.generate(model="qwen-image-2.0", n=6)

    assert answer.status_code == 400
    assert left(answer) == (9, 20)
    assert answer.headers["x-ratelimit-reset-images"] == "0"


def test_images_that_were_not_made_come_back(
    limited: Limited, simulator: SimulatedDashScope
) -> None:
    """Of four calls one is refused; three images were paid for."""
    client = limited(LIMITS)
    simulator.fault("DataInspectionFailed")

    answer = client.generate(model="qwen-image-plus", n=4)

    assert answer.status_code == 400
    assert sum(simulator.state()["paid"].values()) == 3
    assert left(answer) == (9, 17)


def test_a_cache_hit_costs_a_request_and_no_image(limited: Limited) -> None:
    client = limited(LIMITS)

    made = client.generate(model="qwen-image-2.0", n=2, seed=7)
    found = client.generate(model="qwen-image-2.0", n=2, seed=7)

    assert found.headers["x-cache"] == "hit"
    assert (left(made), left(found)) == ((9, 18), (8, 18))


def test_base64_is_no_different(limited: Limited) -> None:
    """Its headers leave before its images are fetched."""
    client = limited(LIMITS)

    answer = client.generate(model="qwen-image-2.0", n=2, response_format="b64_json")

    assert left(answer) == (9, 18)


def test_a_refusal_says_when_and_counts_nothing(limited: Limited) -> None:
    client = limited(LIMITS)
    client.generate(model="qwen-image-2.0", n=6)
    client.generate(model="qwen-image-2.0", n=6)

    answer = client.generate(model="qwen-image-2.0", n=10)

    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert 58 <= int(answer.headers["retry-after"]) <= 61
    assert left(answer) == (8, 8)

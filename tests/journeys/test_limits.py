"""Limits as clients see them: headers that are true, and refusals that say what to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from gateway.config import Limits, Redis, Tenant
from gateway.config.decode import Secret
from gateway.domain.prices import Money
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


@pytest.mark.parametrize(
    ("status", "fields", "headers"),
    [
        (400, {"n": 0}, {}),
        (400, {"size": "huge"}, {}),
        (400, {"no_such_field": 1}, {}),
        (400, {}, {"idempotency-key": "x" * 300}),
        (404, {"model": "no-such-model"}, {}),
        (413, {"prompt": "x" * 2_000_000}, {}),
        (504, {"seed": 1}, {"cache-control": "only-if-cached"}),
    ],
)
def test_a_request_that_is_refused_before_its_limits_tells_them_too(
    limited: Limited, status: int, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    """It counts as nothing."""
    client = limited(LIMITS)
    client.generate(model="qwen-image-2.0", n=2)

    answer = client.generate(**{"model": "qwen-image-2.0", **fields}, headers=headers)

    assert answer.status_code == status
    assert left(answer) == (9, 18)
    assert answer.headers["x-ratelimit-limit-requests"] == "10"
    assert 58 <= int(answer.headers["x-ratelimit-reset-images"]) <= 61


def test_a_model_or_a_key_of_somebody_else_tells_them_too(limited: Limited) -> None:
    client = limited(LIMITS)
    first = {"idempotency-key": "mine"}
    client.generate(model="qwen-image-2.0", headers=first)

    conflict = client.generate("another", model="qwen-image-2.0", headers=first)
    nobody = client.generate(key="sk-gw-nobody")

    assert (conflict.status_code, left(conflict)) == (422, (9, 19))
    assert nobody.status_code == 401
    assert not [name for name in nobody.headers if name.startswith("x-ratelimit")]


TWO_IMAGES = Money(400_000)
"""What qwen-image-2.0 costs."""


def check_final(answer: httpx.Response, kind: str, code: str, param: str | None = None) -> str:
    """A 429 that no retry can mend, as the SDKs are told; its words."""
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (429, kind, code)
    assert error["param"] == param
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    return str(error["message"])


def test_a_request_larger_than_a_limit_says_how_many_fit(
    limited: Limited, simulator: SimulatedDashScope
) -> None:
    """It is a limit like others, but no wait helps; asking for fewer does."""
    client = limited(Limits(images_per_minute=4))

    answer = client.generate(model="qwen-image-2.0", n=5)

    message = check_final(answer, "rate_limit_error", "rate_limit_exceeded", "n")
    assert message == (
        "This request asks for 5 images, and this tenant may make 4 per minute: "
        "ask for at most 4 at a time."
    )
    assert sum(simulator.state()["paid"].values()) == 0
    assert client.generate(model="qwen-image-2.0", n=4).status_code == 200


@pytest.mark.parametrize(
    ("used", "n", "words"),
    [
        (0, 5, "asks for 5 images, and this tenant's whole budget is 4 per day: ask for at most 4"),
        (3, 2, "asks for 2 images, and this tenant's budget for today has 1 left: ask for fewer"),
        (4, 1, "budget of images per day is used up; it starts again at midnight UTC"),
    ],
)
def test_a_day_s_budget_that_is_too_small_says_what_fits(
    limited: Limited, simulator: SimulatedDashScope, used: int, n: int, words: str
) -> None:
    client = limited(Limits(images_per_day=4))
    if used:
        assert client.generate(model="qwen-image-2.0", n=used).status_code == 200

    answer = client.generate(model="qwen-image-2.0", n=n)

    param = None if used == 4 else "n"
    assert words in check_final(answer, "insufficient_quota", "insufficient_quota", param)
    assert sum(simulator.state()["paid"].values()) == used


@pytest.mark.parametrize(
    ("used", "n", "words"),
    [
        (0, 3, "alone costs more than this tenant's whole budget of spend per month: ask for"),
        (1, 2, "costs more than is left of this tenant's budget of spend per month: ask for"),
        (2, 1, "budget of spend per month is used up; it starts again with the next month (UTC)"),
    ],
)
def test_a_month_s_budget_that_is_too_small_says_what_to_do(
    limited: Limited, simulator: SimulatedDashScope, used: int, n: int, words: str
) -> None:
    client = limited(Limits(spend_per_month=TWO_IMAGES))
    if used:
        assert client.generate(model="qwen-image-2.0", n=used).status_code == 200

    answer = client.generate(model="qwen-image-2.0", n=n)

    assert words in check_final(answer, "insufficient_quota", "insufficient_quota")
    assert sum(simulator.state()["paid"].values()) == used

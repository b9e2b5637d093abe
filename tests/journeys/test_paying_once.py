"""A generation that ran is paid for: it is sent again only when certainly nothing was generated."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gateway.config import Upstream
from gateway.upstream.retry import ATTEMPTS
from tests.running import ACME, STRICT, Client, account, closed_port, config_for
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.usefixtures("quick_retries")

MODEL = "qwen-image-2.0"

Failure = tuple[int, str, str | None]


def paid(simulator: SimulatedDashScope) -> int:
    return sum(simulator.state(log=0)["paid"].values())


def calls(simulator: SimulatedDashScope) -> int:
    return sum(simulator.state(log=0)["calls"].values())


def failure(response: Any) -> Failure:
    code = response.json()["error"]["code"]
    return response.status_code, code, response.headers.get("x-should-retry")


AMBIGUOUS: dict[str, Failure] = {
    "reset_after_generation": (502, "upstream_outcome_unknown", "false"),
    "reset_before": (502, "upstream_outcome_unknown", "false"),
    "truncated_json": (502, "upstream_outcome_unknown", "false"),
    "huge_body": (502, "upstream_outcome_unknown", "false"),
    "not_json_200": (502, "upstream_outcome_unknown", "false"),
    "html_502": (502, "upstream_outcome_unknown", "false"),
    "envoy-503-connection-termination": (502, "upstream_outcome_unknown", "false"),
    "empty_504": (504, "upstream_timeout", "false"),
    "RequestTimeOut": (504, "upstream_timeout", "false"),
    "ResponseTimeout": (504, "upstream_timeout", "false"),
    "InternalError.Timeout": (504, "upstream_timeout", "false"),
    "ClientDisconnect": (502, "upstream_outcome_unknown", "false"),
    "APIConnectionError": (502, "upstream_outcome_unknown", "false"),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_an_ambiguous_failure_is_never_sent_again(
    kind: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """Nobody knows whether it was generated: neither the gateway nor the SDK may send it again."""
    simulator.fault(kind, count=None, size_bytes=3 * 1024 * 1024)

    answer = gateway.generate(model=MODEL)

    assert failure(answer) == AMBIGUOUS[kind]
    assert calls(simulator) == 1
    assert paid(simulator) <= 1


@pytest.mark.parametrize("kind", sorted(AMBIGUOUS))
def test_an_ambiguous_failure_is_not_taken_to_another_account(
    kind: str, start: Start, simulator: SimulatedDashScope, other_simulator: SimulatedDashScope
) -> None:
    """A second account would be a second bill."""
    gateway = start(two_accounts(simulator, other_simulator))
    simulator.fault(kind, size_bytes=3 * 1024 * 1024)

    answer = gateway.generate(model=MODEL)

    assert failure(answer) == AMBIGUOUS[kind]
    assert calls(other_simulator) == 0


def test_a_hanging_vendor_is_given_up_at_the_deadline_and_not_asked_again(
    start: Start, simulator: SimulatedDashScope
) -> None:
    config = config_for(account(simulator.base_url), upstream=Upstream(deadline_s=0.3))
    gateway = start(config)
    simulator.fault("hang", count=None)

    answer = gateway.generate(model=MODEL)

    assert failure(answer) == (504, "upstream_timeout", "false")
    assert calls(simulator) == 1


def test_a_tenant_may_have_a_shorter_deadline(start: Start, simulator: SimulatedDashScope) -> None:
    config = config_for(account(simulator.base_url))
    impatient = tuple(replace(tenant, deadline_s=0.3) for tenant in config.tenants)
    gateway = start(replace(config, tenants=impatient))
    simulator.fault("hang")

    assert failure(gateway.generate(model=MODEL)) == (504, "upstream_timeout", "false")
    assert calls(simulator) == 1


@pytest.mark.slow
def test_the_sdk_s_own_timeout_is_the_deadline_where_it_is_shorter(
    start: Start, simulator: SimulatedDashScope
) -> None:
    """Later it would be lost. The retry it is told to make is given what is being made."""
    gateway = start(config_for(account(simulator.base_url), upstream=Upstream(deadline_s=9)))
    simulator.configure(latency_s=2)
    told = {"x-stainless-read-timeout": "1.5"}

    first = gateway.generate(model=MODEL, headers=told)
    second = gateway.generate(
        model=MODEL, headers={"x-stainless-read-timeout": "9", "x-stainless-retry-count": "1"}
    )

    assert failure(first) == (504, "upstream_timeout", "true")
    assert first.elapsed.total_seconds() < 1.5
    assert second.status_code == 200
    assert second.headers["x-cache"] == "joined"
    assert calls(simulator) == 1


@pytest.mark.parametrize("told", ["nan", "inf", "-inf", "-1", "0", "soon", "", "1e999"])
def test_a_senseless_sdk_timeout_is_ignored(
    told: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    simulator.configure(latency_s=0.05)

    answer = gateway.generate(model=MODEL, headers={"x-stainless-read-timeout": told})

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "kind",
    [
        "Throttling",
        "Throttling.RateQuota",
        "Throttling.BurstRate",
        "limit_requests",
        "limit_burst_rate",
        "ModelServingError",
        "ModelServingError-500",
        "ModelUnavailable",
        "ServiceUnavailable",
        "envoy-503-remote-connection-failure",
    ],
)
def test_what_was_certainly_not_generated_is_sent_again(
    kind: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """The client sees only a success, and one image is paid."""
    simulator.fault(kind, count=2)

    answer = gateway.generate(model=MODEL)

    assert answer.status_code == 200
    assert calls(simulator) == 3
    assert paid(simulator) == 1


def test_the_gateway_gives_up_after_a_few_attempts(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    simulator.fault("Throttling.RateQuota", count=None)

    answer = gateway.generate(model=MODEL)

    assert failure(answer) == (429, "rate_limit_exceeded", None)
    assert calls(simulator) == ATTEMPTS


def test_a_throttled_client_is_told_how_long_to_wait(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """Without it the SDKs come back within a second, three times, to be throttled again."""
    simulator.fault("Throttling.RateQuota", count=None)

    answer = gateway.generate(model=MODEL)

    assert answer.status_code == 429
    assert float(answer.headers["retry-after-ms"]) > 0
    assert int(answer.headers["retry-after"]) >= 1


def test_the_vendor_s_own_retry_after_is_passed_on(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """Longer than what is left until the deadline, so the client gets it, and at once."""
    simulator.configure(retry_after_s=400.0)
    simulator.fault("Throttling.RateQuota", count=None)

    answer = gateway.generate(model=MODEL)

    assert answer.headers["retry-after"] == "400"
    assert answer.headers["retry-after-ms"] == "400000"
    assert calls(simulator) == 1


def test_a_retry_after_within_the_deadline_is_obeyed(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    simulator.configure(retry_after_s=0.2)
    simulator.fault("Throttling.RateQuota")

    answer = gateway.generate(model=MODEL)

    assert answer.status_code == 200
    assert answer.elapsed.total_seconds() >= 0.2


def test_an_exhausted_allocation_is_not_tried_again_before_it_recovers(
    start: Start, simulator: SimulatedDashScope
) -> None:
    """It recovers in a minute: with ten seconds left, the client is told so instead."""
    config = config_for(account(simulator.base_url), upstream=Upstream(deadline_s=10))
    gateway = start(config)
    simulator.fault("Throttling.AllocationQuota", count=None)

    answer = gateway.generate(model=MODEL)

    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "60"
    assert calls(simulator) == 1


@pytest.mark.parametrize(
    "kind",
    [
        "Arrearage",
        "CommodityNotPurchased",
        "PrepaidBillOverdue",
        "PostpaidBillOverdue",
        "AccessDenied.Unpurchased",
        "AllocationQuota.FreeTierOnly",
    ],
)
def test_an_unpaid_bill_is_not_worth_a_retry(
    kind: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """Neither the gateway nor an SDK tries again what only the operator can mend."""
    simulator.fault(kind, count=None)

    answer = gateway.generate(model=MODEL)

    assert failure(answer) == (429, "insufficient_quota", "false")
    assert answer.json()["error"]["type"] == "insufficient_quota"
    assert "retry-after" not in answer.headers
    assert calls(simulator) == 1


@pytest.mark.parametrize("kind", ["InvalidApiKey", "AccessDenied", "Workspace.AccessDenied"])
def test_a_refused_upstream_key_is_the_gateway_s_fault_and_not_the_caller_s(
    kind: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """A 401 would make the caller change a key that is right."""
    simulator.fault(kind, count=None)

    assert failure(gateway.generate(model=MODEL)) == (502, "upstream_account_error", "false")
    assert calls(simulator) == 1


@pytest.mark.parametrize("kind", ["DataInspectionFailed", "IPInfringementSuspect"])
def test_moderation_is_the_caller_s_and_final(
    kind: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """As a 5xx it would be sent again, and each try counts against the account."""
    simulator.fault(kind, count=None)

    answer = gateway.generate(model=MODEL)

    assert failure(answer) == (400, "moderation_blocked", "false")
    assert answer.json()["error"]["type"] == "image_generation_user_error"
    assert calls(simulator) == 1


def test_an_unreachable_vendor_is_tried_again_and_then_a_503(start: Start) -> None:
    """Nothing was sent, so both the gateway and the SDK may try again."""
    with closed_port() as port:
        gateway = start(config_for(account(f"http://127.0.0.1:{port}/api/v1")))
        answer = gateway.generate(model=MODEL)

    assert failure(answer) == (503, "upstream_unreachable", None)


def test_a_vendor_that_comes_back_is_reached_inside_the_same_request(
    start: Start, simulator: SimulatedDashScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that was refused is opened again: the name leads elsewhere meanwhile."""
    with closed_port() as port:
        away = account(f"http://127.0.0.1:{port}/api/v1", "away")
        gateway = start(config_for(away, account(simulator.base_url, "back")))
        answer = gateway.generate(model=MODEL)

    assert answer.status_code == 200
    assert paid(simulator) == 1


@pytest.mark.parametrize(
    "kind", ["Arrearage", "Throttling.RateQuota", "InvalidApiKey", "ModelUnavailable"]
)
def test_another_account_takes_over(
    kind: str, start: Start, simulator: SimulatedDashScope, other_simulator: SimulatedDashScope
) -> None:
    """Out of credit, throttled, refused or down: the next account in the file, at once."""
    gateway = start(two_accounts(simulator, other_simulator))
    simulator.fault(kind, count=None)

    answer = gateway.generate(model=MODEL)

    assert answer.status_code == 200
    assert (calls(simulator), calls(other_simulator)) == (1, 1)


def test_an_account_without_credit_is_left_alone_for_a_while(
    start: Start, simulator: SimulatedDashScope, other_simulator: SimulatedDashScope
) -> None:
    gateway = start(two_accounts(simulator, other_simulator))
    simulator.fault("Arrearage", count=None)

    statuses = [gateway.generate(model=MODEL).status_code for _ in range(3)]

    assert statuses == [200, 200, 200]
    assert (calls(simulator), calls(other_simulator)) == (1, 3)


def test_an_account_with_credit_again_is_used_again(
    start: Start, simulator: SimulatedDashScope, other_simulator: SimulatedDashScope, clock: Any
) -> None:
    gateway = start(two_accounts(simulator, other_simulator))
    simulator.fault("Arrearage")
    gateway.generate(model=MODEL)
    clock.ahead_s += 61

    gateway.generate(model=MODEL)

    assert (calls(simulator), calls(other_simulator)) == (2, 1)


def test_a_vendor_that_keeps_failing_is_left_alone(
    gateway: Client, simulator: SimulatedDashScope, clock: Any
) -> None:
    """The breaker opens, says when to come back, and closes with the first success."""
    simulator.fault("InternalError", count=10)
    for _ in range(10):
        assert failure(gateway.generate(model=MODEL))[0] == 502

    refused = gateway.generate(model=MODEL)
    clock.ahead_s += 1.1
    again = gateway.generate(model=MODEL)

    assert failure(refused) == (503, "service_unavailable", None)
    assert 0 < float(refused.headers["retry-after-ms"]) <= 1000
    assert calls(simulator) == 11
    assert again.status_code == 200


def test_the_breaker_of_one_model_leaves_the_others_alone(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    simulator.fault("InternalError", count=10, model="qwen-image-plus")
    for _ in range(10):
        gateway.generate(model="qwen-image-plus")

    assert gateway.generate(model="qwen-image-plus").status_code == 503
    assert gateway.generate(model=MODEL).status_code == 200


@pytest.mark.parametrize(
    "kind", ["DataInspectionFailed", "moderated-algo", "moderated-500", "aliyun-waf-405"]
)
def test_a_caller_s_mistakes_do_not_open_the_breaker(
    kind: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """Otherwise one tenant's forbidden prompts would lock all of them out."""
    simulator.fault(kind, count=12)
    for _ in range(12):
        assert gateway.generate(model=MODEL).headers["x-should-retry"] == "false"

    assert gateway.generate(model=MODEL).status_code == 200


def test_a_tenant_s_own_deadline_does_not_open_the_breaker(
    start: Start, simulator: SimulatedDashScope
) -> None:
    """Its calls are cut before the vendor could have answered; the others' are not."""
    config = config_for(account(simulator.base_url))
    tenants = tuple(
        replace(tenant, deadline_s=0.05) if tenant.name == "acme" else tenant
        for tenant in config.tenants
    )
    gateway = start(replace(config, tenants=tenants))
    simulator.configure(latency_s=0.3)
    for _ in range(12):
        assert gateway.generate(model=MODEL).status_code == 504

    assert gateway.generate(model=MODEL, size="1024x1024", key=STRICT).status_code == 200


def test_a_retry_pays_only_for_what_is_missing(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """Nine of ten were generated before the tenth was refused."""
    simulator.configure(latency_s=0.1)
    simulator.fault("InternalError", count=1, after_s=0.3)

    first = gateway.generate(model="qwen-image-plus", n=10)
    before = paid(simulator)
    second = gateway.generate(
        model="qwen-image-plus", n=10, headers={"x-stainless-retry-count": "1"}
    )

    assert failure(first)[:2] == (502, "upstream_error")
    assert (before, paid(simulator)) == (9, 10)
    assert len({image["url"] for image in second.json()["data"]}) == 10


def test_a_failure_keeps_back_the_calls_that_were_not_sent_yet(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """Throttled calls wait for their turn; once one is refused for good, none is sent any more."""
    simulator.configure(retry_after_s=0.5)
    simulator.fault("Throttling.RateQuota", count=4)
    simulator.fault("DataInspectionFailed")

    answer = gateway.generate(model="qwen-image-plus", n=5)

    assert failure(answer) == (400, "moderation_blocked", "false")
    assert calls(simulator) == 5
    assert paid(simulator) == 0


def test_missing_images_are_asked_for_and_only_those(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """The vendor bills what it delivered; what it lacked is fetched with a seed of its own."""
    simulator.fault("fewer_images")

    answer = gateway.generate(model=MODEL, n=4, seed=7)

    assert len(answer.json()["data"]) == 4
    assert paid(simulator) == 4
    asked = [call["body"]["parameters"] for call in simulator.state()["log"]]
    assert [(each["n"], each["seed"]) for each in asked] == [(4, 7), (1, 10)]


def test_images_that_keep_missing_are_an_error_that_is_not_retried(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    simulator.configure(missing_images=5)

    answer = gateway.generate(model=MODEL, n=6)

    assert failure(answer) == (502, "incomplete_result", "false")
    assert calls(simulator) == 3
    assert paid(simulator) == 3


@pytest.mark.parametrize("kind", ["empty_choices", "null_image"])
def test_an_answer_without_images_is_not_asked_for_again(
    kind: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """Whether an empty answer is billed is not documented."""
    simulator.fault(kind, count=None)

    answer = gateway.generate(model=MODEL)

    assert failure(answer) == (502, "incomplete_result", "false")
    assert calls(simulator) == 1


def test_text_beside_the_images_is_passed_over(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    simulator.fault("text_content")

    assert len(gateway.generate(model=MODEL, n=2).json()["data"]) == 2


def test_a_200_with_a_code_is_a_failure(gateway: Client, simulator: SimulatedDashScope) -> None:
    simulator.fault("200_with_code", count=None)

    assert failure(gateway.generate(model=MODEL)) == (502, "upstream_error", None)
    assert calls(simulator) == 1


@pytest.mark.parametrize("kind", ["InternalError", "SystemError", "InternalError.Algo"])
def test_a_vendor_s_500_is_not_sent_again_by_the_gateway(
    kind: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """It is not billed, as documented, but how far it got is not: the client decides."""
    simulator.fault(kind, count=None)

    assert failure(gateway.generate(model=MODEL)) == (502, "upstream_error", None)
    assert calls(simulator) == 1


def test_a_client_that_hangs_up_does_not_break_the_gateway(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    import httpx  # noqa: PLC0415

    simulator.configure(latency_s=0.2)
    with pytest.raises(httpx.ReadTimeout):
        gateway.http.post(
            f"{gateway.url}/v1/images/generations",
            headers={"authorization": f"Bearer {ACME}"},
            json={"prompt": "a fox", "model": MODEL},
            timeout=0.05,
        )
    simulator.configure(latency_s=0.0)

    assert gateway.generate(model=MODEL).status_code == 200


def two_accounts(first: SimulatedDashScope, second: SimulatedDashScope) -> Any:
    return config_for(account(first.base_url, "first"), account(second.base_url, "second"))

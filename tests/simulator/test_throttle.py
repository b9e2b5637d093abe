from __future__ import annotations

import pytest

from gateway.simulator.settings import Rate
from gateway.simulator.throttle import FixedWindow, Mode, Spacing, Throttle, TokenBucket
from tests.simulated import SimulatedDashScope
from tests.simulator.calls import Ask, Clock


def test_a_token_bucket_lets_a_burst_through_then_refills_evenly() -> None:
    """Two a minute: two at once, then one each thirty seconds."""
    bucket = TokenBucket(Rate(2, 60))
    assert [bucket.admit(0) for _ in range(3)] == [True, True, False]
    assert not bucket.admit(29.9)
    assert bucket.admit(30)
    assert not bucket.admit(30)


def test_a_token_bucket_never_holds_more_than_its_burst() -> None:
    """However long nobody calls."""
    bucket = TokenBucket(Rate(2, 60, burst=1))
    assert [bucket.admit(0), bucket.admit(3600), bucket.admit(3600)] == [True, True, False]


def test_a_refill_is_whole_in_spite_of_rounding() -> None:
    """Sixty steps of a second are a minute."""
    bucket = TokenBucket(Rate(1, 60))
    assert bucket.admit(0.1)
    assert [bucket.admit(0.1 + second) for second in range(1, 61)] == [False] * 59 + [True]


def test_spacing_refuses_any_two_calls_too_close() -> None:
    """Within nine tenths of the even interval, the refused ones counting too."""
    spacing = Spacing(Rate(2, 60))
    assert [spacing.admit(t) for t in (0, 26.9, 53.8, 80.8)] == [True, False, False, True]


def test_a_fixed_window_starts_again_with_the_clock() -> None:
    """So two at the end of one and two at the start of the next all pass."""
    window = FixedWindow(Rate(2, 60))
    admitted = [window.admit(t) for t in (58, 59, 59.5, 60, 61, 62)]
    assert admitted == [True, True, False, True, True, False]


def test_accounts_and_models_are_counted_apart() -> None:
    """Limits hold per account and model."""
    throttle = Throttle()
    rate = Rate(1, 60)

    def admit(account: str, model: str, mode: Mode = "token_bucket") -> bool:
        return throttle.admit(account, model, mode, rate, 0)

    assert admit("a", "m")
    assert not admit("a", "m")
    assert admit("b", "m")
    assert admit("a", "n")
    assert admit("a", "m", "off")


def test_no_limit_holds_by_default(ask: Ask) -> None:
    """Tests of other things should not meet it."""
    assert {ask().status_code for _ in range(10)} == {200}


@pytest.mark.parametrize("mode", ["token_bucket", "fixed_window"])
def test_over_the_published_rate_is_429_without_retry_after(
    sim: SimulatedDashScope, ask: Ask, clock: Clock, mode: str
) -> None:
    """The vendor's own message, and nothing that tells when to come back."""
    sim.configure(throttle=mode)
    statuses = [ask().status_code for _ in range(3)]
    refused = ask()
    assert statuses == [200, 200, 429]
    assert refused.json()["code"] == "Throttling.RateQuota"
    assert refused.json()["message"] == "Requests rate limit exceeded, please try again later."
    assert "retry-after" not in refused.headers
    clock.advance(60)
    assert ask().status_code == 200


def test_retry_after_is_sent_when_set(sim: SimulatedDashScope, ask: Ask) -> None:
    """For clients that should honour it if the vendor ever sends it."""
    sim.configure(throttle="spacing", retry_after_s=1.5, rates={"qwen-image-2.0-pro": {"count": 1}})
    assert ask().status_code == 200
    assert ask().headers["retry-after"] == "1.5"


def test_keys_of_one_account_share_its_rate(sim: SimulatedDashScope, ask: Ask) -> None:
    """And a refused call is not paid for."""
    sim.configure(throttle="token_bucket", accounts={"sk-test": "one"})
    statuses = [ask().status_code for _ in range(3)]
    state = sim.state()
    assert statuses == [200, 200, 429]
    assert state["refused"] == {"Throttling.RateQuota": 1}
    assert state["paid"] == {"qwen-image-2.0-pro": 2}
    assert {call["account"] for call in state["log"]} == {"one"}


def test_an_invalid_call_uses_up_no_rate(sim: SimulatedDashScope, ask: Ask) -> None:
    """Validation comes first."""
    sim.configure(throttle="token_bucket")
    assert [ask(n=9).status_code for _ in range(5)] == [400] * 5
    assert ask().status_code == 200

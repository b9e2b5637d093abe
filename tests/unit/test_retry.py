"""Whether a failed call is sent again, and after how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.errors import UpstreamThrottled
from gateway.translate.failure import Remedy, UpstreamFailure
from gateway.upstream.retry import ATTEMPTS, FIRST_WAIT_S, JITTER, LONGEST_WAIT_S, wait_s


def failed(remedy: Remedy, told: float | None = None) -> UpstreamFailure:
    return UpstreamFailure(UpstreamThrottled("wait", retry_after_s=told), remedy)


def wait(
    remedy: Remedy,
    attempt: int = 1,
    *,
    told: float | None = None,
    chance: float = 0.0,
    left_s: float = 100.0,
    other: bool = False,
) -> float | None:
    return wait_s(failed(remedy, told), attempt, chance, left_s, other_account=other)


@pytest.mark.parametrize("remedy", [Remedy.RESEND, Remedy.THROTTLED])
def test_the_waits_double(remedy: Remedy) -> None:
    assert [wait(remedy, attempt) for attempt in (1, 2, 3)] == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("remedy", [Remedy.NONE, Remedy.UNKNOWN])
@pytest.mark.parametrize("other", [True, False])
def test_a_final_or_ambiguous_failure_is_not_sent_again(remedy: Remedy, other: bool) -> None:
    """Not even where another account stands ready: it would be billed too."""
    assert wait(remedy, other=other) is None
    assert wait(remedy, told=1.0, other=other) is None


@pytest.mark.parametrize("remedy", [Remedy.RESEND, Remedy.THROTTLED, Remedy.OTHER_ACCOUNT])
def test_another_account_is_asked_at_once(remedy: Remedy) -> None:
    assert wait(remedy, told=60.0, other=True) == 0.0


def test_without_another_account_a_lack_of_credit_is_final() -> None:
    assert wait(Remedy.OTHER_ACCOUNT) is None


@pytest.mark.parametrize("remedy", Remedy)
@pytest.mark.parametrize("other", [True, False])
def test_attempts_end(remedy: Remedy, other: bool) -> None:
    assert wait(remedy, ATTEMPTS, other=other) is None


@pytest.mark.parametrize(
    ("told", "waited"), [(None, 0.5), (0.0, 0.5), (0.1, 0.5), (3.0, 3.0), (9.9, 9.9)]
)
def test_the_vendor_s_retry_after_is_the_least(told: float | None, waited: float) -> None:
    assert wait(Remedy.THROTTLED, told=told) == waited


@pytest.mark.parametrize("told", [10.0, 60.0, 3600.0])
def test_a_long_wait_is_passed_on_to_the_client(told: float) -> None:
    """It is told how long, and decides for itself."""
    assert wait(Remedy.THROTTLED, told=told) is None


@pytest.mark.parametrize(("told", "left_s"), [(None, 0.5), (10.0, 10.0), (10.0, 1.0), (None, -1.0)])
def test_a_wait_that_ends_after_the_deadline_is_not_begun(
    told: float | None, left_s: float
) -> None:
    """The client gets the failure while it can still act on it."""
    assert wait(Remedy.THROTTLED, told=told, left_s=left_s) is None


@given(
    remedy=st.sampled_from(list(Remedy)),
    attempt=st.integers(1, 20),
    chance=st.floats(0, 1, exclude_max=True),
    left_s=st.floats(-10, 1000),
    told=st.none() | st.floats(0, 1000),
    other=st.booleans(),
)
def test_a_wait_is_bounded(
    remedy: Remedy, attempt: int, chance: float, left_s: float, told: float | None, other: bool
) -> None:
    found = wait(remedy, attempt, told=told, chance=chance, left_s=left_s, other=other)

    if found is None:
        return
    assert attempt < ATTEMPTS
    if other:
        assert found == 0
        return
    assert FIRST_WAIT_S * (1 - JITTER) <= found < left_s
    assert found >= (told or 0)
    assert found <= max(LONGEST_WAIT_S, told or 0)

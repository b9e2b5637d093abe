"""closed → open → probing, on a clock that moves when it is told to."""

from __future__ import annotations

import pytest

from gateway.upstream.breaker import FAILURES_TO_OPEN, FIRST_REST_S, LONGEST_REST_S, Breaker


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


@pytest.fixture
def tripped(breaker: Breaker) -> Breaker:
    for _ in range(FAILURES_TO_OPEN):
        assert breaker.admit(300)
        breaker.failed()
    return breaker


def test_it_begins_closed(breaker: Breaker) -> None:
    assert breaker.state == "closed"
    assert breaker.rest_s() == 0
    assert all(breaker.admit(300) for _ in range(1000))


def test_it_stays_closed_one_failure_short(breaker: Breaker) -> None:
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker.failed()

    assert breaker.state == "closed"
    assert breaker.admit(300)


def test_a_success_starts_the_count_again(breaker: Breaker) -> None:
    """Failures in a row, not failures at all."""
    for _ in range(5 * FAILURES_TO_OPEN):
        breaker.failed()
        breaker.succeeded()

    assert breaker.state == "closed"


def test_too_many_failures_in_a_row_open_it(tripped: Breaker) -> None:
    assert tripped.state == "open"
    assert tripped.rest_s() == FIRST_REST_S
    assert not tripped.admit(300)


def test_it_opens_no_earlier_than_its_rest_ends(tripped: Breaker, clock: Clock) -> None:
    clock.now += FIRST_REST_S - 0.001
    assert not tripped.admit(300)
    clock.now += 0.001
    assert tripped.state == "probing"
    assert tripped.admit(300)


def test_exactly_one_call_probes(tripped: Breaker, clock: Clock) -> None:
    clock.now += FIRST_REST_S

    assert [tripped.admit(300) for _ in range(10)] == [True] + [False] * 9


def test_a_probe_that_succeeds_closes_it(tripped: Breaker, clock: Clock) -> None:
    clock.now += FIRST_REST_S
    tripped.admit(300)

    tripped.succeeded()

    assert tripped.state == "closed"
    assert all(tripped.admit(300) for _ in range(100))


def test_a_probe_that_fails_doubles_the_rest(tripped: Breaker, clock: Clock) -> None:
    rests = []
    for _ in range(8):
        clock.now += tripped.rest_s()
        assert tripped.admit(300)
        tripped.failed()
        rests.append(tripped.rest_s())

    assert rests == [2, 4, 8, 16, LONGEST_REST_S, LONGEST_REST_S, LONGEST_REST_S, LONGEST_REST_S]


def test_after_a_success_the_rest_is_short_again(tripped: Breaker, clock: Clock) -> None:
    clock.now += tripped.rest_s()
    tripped.admit(300)
    tripped.failed()
    clock.now += tripped.rest_s()
    tripped.admit(300)
    tripped.succeeded()

    for _ in range(FAILURES_TO_OPEN):
        tripped.failed()

    assert tripped.rest_s() == FIRST_REST_S


def test_a_probe_that_told_nothing_lets_another_probe(tripped: Breaker, clock: Clock) -> None:
    """The caller hung up: whether the account is well, nobody learnt."""
    clock.now += FIRST_REST_S
    tripped.admit(300)
    assert not tripped.admit(300)

    tripped.abandoned()

    assert tripped.state == "probing"
    assert tripped.admit(300)
    assert not tripped.admit(300)


def test_a_probe_that_never_ends_holds_the_place_for_so_long_only(
    tripped: Breaker, clock: Clock
) -> None:
    clock.now += FIRST_REST_S
    tripped.admit(20)
    clock.now += 19.9
    assert not tripped.admit(20)
    assert tripped.rest_s() == pytest.approx(0.1)
    clock.now += 0.1

    assert tripped.admit(20)


def test_late_failures_of_calls_sent_before_it_opened_are_no_probes(
    tripped: Breaker, clock: Clock
) -> None:
    """Ten more calls were under way: their failures must not drive the rest to its maximum."""
    for _ in range(10):
        clock.now += 0.01
        tripped.failed()

    assert tripped.rest_s() <= FIRST_REST_S

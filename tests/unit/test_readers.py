"""How fast a client must take its answer."""

from __future__ import annotations

import pytest

from gateway.config import Sending
from gateway.delivery.readers import ClientPace

SENDING = Sending(least_bytes_per_s=10_000, window_s=20.0, grace_s=5.0)
PIECE = 100_000
AT_LEAST_RATE_S = 10.0


def test_the_first_piece_has_the_grace_time_too() -> None:
    assert ClientPace(SENDING, 100.0).due(PIECE, 100.0) == 100.0 + 5.0 + AT_LEAST_RATE_S


def test_a_client_at_the_least_rate_is_never_late() -> None:
    pace, now = ClientPace(SENDING, 0.0), 0.0
    for _ in range(1000):
        due = pace.due(PIECE, now)
        now += AT_LEAST_RATE_S
        assert now <= due


@pytest.mark.parametrize(("seconds", "pieces"), [(11.0, 5), (12.0, 2), (15.0, 1), (15.1, 0)])
def test_a_slower_one_uses_up_the_grace(seconds: float, pieces: int) -> None:
    pace, now, taken = ClientPace(SENDING, 0.0), 0.0, 0
    while now + seconds <= pace.due(PIECE, now) and taken < 100:
        now += seconds
        taken += 1
    assert taken == pieces


def test_a_fast_one_may_pause_as_long_as_the_window() -> None:
    """Whatever it has taken before."""
    pace = ClientPace(SENDING, 0.0)
    for _ in range(1000):
        pace.due(PIECE, 1.0)
    assert pace.due(PIECE, 1.0) == 1.0 + 20.0 + AT_LEAST_RATE_S

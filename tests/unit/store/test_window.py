"""The sliding minute, bucket by bucket."""

from __future__ import annotations

from gateway.store.memory.window import SlidingMinute


def window(*booked: tuple[int, int], now: int) -> SlidingMinute:
    minute = SlidingMinute()
    for second, amount in booked:
        minute.advance(second)
        minute.book(second, amount)
    minute.advance(now)
    return minute


def test_a_bucket_stays_until_its_whole_second_is_a_minute_old() -> None:
    """What was counted at 100.999 s still counts at 160.998 s."""
    assert window((100, 5), now=160).total == 5
    assert window((100, 5), now=161).total == 0


def test_room_comes_with_the_oldest_buckets() -> None:
    minute = window((100, 3), (110, 3), (120, 4), now=130)
    assert minute.room_in_ms(1, 10, 130_000) == 161_000 - 130_000
    assert minute.room_in_ms(3, 10, 130_000) == 161_000 - 130_000
    assert minute.room_in_ms(4, 10, 130_000) == 171_000 - 130_000
    assert minute.room_in_ms(10, 10, 130_000) == 181_000 - 130_000
    assert minute.room_in_ms(11, 10, 130_000) is None
    assert minute.room_in_ms(2, 12, 130_000) == 0


def test_more_than_was_booked_is_not_taken_back() -> None:
    minute = window((100, 3), now=100)
    minute.book(100, -5)
    assert minute.total == 0
    minute.book(99, -5)
    assert minute.total == 0


def test_what_has_left_is_not_taken_back() -> None:
    minute = window((100, 3), (150, 4), now=161)
    minute.book(100, -3)
    assert minute.total == 4


def test_memory_is_bounded() -> None:
    minute = window(*((second, 1) for second in range(100, 10_000)), now=10_000)
    assert len(minute._buckets) <= 61


def test_an_empty_minute_needs_no_reset() -> None:
    assert window(now=100).reset_ms(100_500) == 0
    assert window((100, 1), now=100).reset_ms(100_500) == 60_500

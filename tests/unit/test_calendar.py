"""Offsets of time zones, held against the standard library hour by hour."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from gateway.domain.clock import (
    EPOCH,
    NEVER_MS,
    ZoneClock,
    ZoneOffset,
    month_of,
    next_month,
    zone_offset,
)

ZONES = ["UTC", "Asia/Shanghai", "Asia/Kolkata", "Europe/Berlin", "America/Sao_Paulo",
    "Australia/Lord_Howe", "America/Havana", "Africa/Casablanca", "Pacific/Apia"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("zone", ZONES)
def test_every_hour_lies_on_its_local_day(zone: str) -> None:
    """Also for a server that is half an hour ahead of this machine, or behind."""
    there = ZoneInfo(zone)
    moment = datetime(2026, 1, 1, 0, 30, tzinfo=UTC)
    while moment.year == 2026:
        offset = zone_offset(there, moment.timestamp())
        for skew in (timedelta(minutes=-30), timedelta(), timedelta(minutes=30)):
            seen = moment + skew
            local = seen.astimezone(there).date()
            assert offset.day(round(seen.timestamp() * 1000)) == local.toordinal() - EPOCH
        moment += timedelta(hours=1)


@pytest.mark.parametrize("zone", ZONES)
def test_the_next_day_begins_when_the_date_changes(zone: str) -> None:
    there = ZoneInfo(zone)
    for number in range(0, 365 * 24, 7):
        now_ms = round(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000) + number * 3_600_000
        offset = zone_offset(there, now_ms / 1000)
        begins_ms = offset.begins_ms(offset.day(now_ms) + 1, now_ms)
        before = datetime.fromtimestamp(begins_ms / 1000 - 1, there).date()
        after = datetime.fromtimestamp(begins_ms / 1000, there).date()
        assert before < after
        assert now_ms < begins_ms <= now_ms + 25 * 3_600_000


def test_utc_needs_no_looking_up() -> None:
    assert ZoneClock().at(0) == ZoneOffset(0, NEVER_MS, 0)


def test_a_change_is_found_in_time() -> None:
    """The look-up is repeated every day, and sees more than a month ahead."""
    berlin = ZoneClock(ZoneInfo("Europe/Berlin"))
    summer = datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()
    for day in range(-50, 50):
        now = summer + day * 86_400 + 5
        offset = berlin.at(now)
        local = datetime.fromtimestamp(now, ZoneInfo("Europe/Berlin")).date()
        assert offset.day(round(now * 1000)) == local.toordinal() - EPOCH


@pytest.mark.parametrize("first", [date(2026, 1, 1), date(2028, 2, 1), date(2100, 2, 1)])
def test_months(first: date) -> None:
    day = first.toordinal() - EPOCH
    length = next_month(day) - day
    assert {month_of(day + number) for number in range(length)} == {first.year * 100 + first.month}
    assert month_of(day + length) != month_of(day)
    assert next_month(day + length - 1) == day + length

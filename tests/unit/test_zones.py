"""Which time zones a name finds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.domain.clock import find_zone


def test_utc_needs_no_database() -> None:
    assert find_zone("UTC") is UTC


def test_a_zone_is_found_by_its_name() -> None:
    zone = find_zone("Asia/Shanghai")
    assert zone is not None
    assert datetime(2026, 11, 28, tzinfo=zone).utcoffset() == timedelta(hours=8)


@pytest.mark.parametrize("name", ["Moon/Tranquility", "../../etc/passwd", "", "Asia/\0"])
def test_no_other_name_finds_one(name: str) -> None:
    assert find_zone(name) is None

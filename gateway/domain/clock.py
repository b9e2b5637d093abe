"""Time and chance as arguments, and days and months in a time zone.

The store's server has the clock, and knows no time zones: it is given the offset now and after its
next change. `lua/limits/tenant.lua` reckons in the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from random import random
from zoneinfo import ZoneInfo

from msgspec import Struct


class Clock(Struct, frozen=True):
    """Unix seconds, steady seconds as the event loop's, chance in [0, 1) and a pause: for tests."""

    now: Callable[[], float]
    steady: Callable[[], float]
    chance: Callable[[], float] = random
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep


def find_zone(name: str) -> tzinfo | None:
    """None where this machine's IANA database lacks it."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return None


DAY_MS = 86_400_000
EPOCH = date(1970, 1, 1).toordinal()
SEEN_AHEAD = timedelta(days=40)
"""The next change is looked for over a whole month."""
SKEW = timedelta(hours=1)
"""How far the server's clock may be behind this machine's."""
NEVER_MS = 2**52


class ZoneOffset(Struct, frozen=True):
    """How local time differs from UTC, in milliseconds."""

    offset_ms: int = 0
    until_ms: int = NEVER_MS
    """Unix time of the next change."""
    offset_after_ms: int = 0

    def day(self, now_ms: int) -> int:
        """Days since 1970-01-01 in local time."""
        offset_ms = self.offset_ms if now_ms < self.until_ms else self.offset_after_ms
        return (now_ms + offset_ms) // DAY_MS

    def begins_ms(self, day: int, now_ms: int) -> int:
        """Unix time at which a future day begins."""
        local_ms = day * DAY_MS
        if now_ms < self.until_ms:
            if local_ms - self.offset_ms < self.until_ms:
                return local_ms - self.offset_ms
            return max(self.until_ms, local_ms - self.offset_after_ms)
        return local_ms - self.offset_after_ms


UTC_OFFSET = ZoneOffset()


class ZoneClock:
    """Follows one time zone; the next change is looked for once a day."""

    def __init__(self, zone: tzinfo = UTC) -> None:
        self._zone = zone
        self._seen = UTC_OFFSET
        self._look_at = 0.0 if zone is not UTC else float("inf")

    def at(self, now: float) -> ZoneOffset:
        """What holds around a time in Unix seconds."""
        if now >= self._look_at:
            self._look_at = now + DAY_MS / 1000
            self._seen = zone_offset(self._zone, now)
        return self._seen


def zone_offset(zone: tzinfo, now: float) -> ZoneOffset:
    """The offset at a time in Unix seconds, and its next change, if it is near."""
    since = datetime.fromtimestamp(now, UTC).replace(microsecond=0) - SKEW
    before = _offset(zone, since)
    first, last = since, since
    while last < since + SEEN_AHEAD:
        first, last = last, last + timedelta(days=1)
        if _offset(zone, last) != before:
            break
    else:
        return ZoneOffset(_ms(before), NEVER_MS, _ms(before))
    while last - first > timedelta(seconds=1):
        middle = first + timedelta(seconds=(last - first) // timedelta(seconds=2))
        if _offset(zone, middle) == before:
            first = middle
        else:
            last = middle
    return ZoneOffset(_ms(before), round(last.timestamp() * 1000), _ms(_offset(zone, last)))


@lru_cache(maxsize=16)
def month_of(day: int) -> int:
    """The month of a numbered day: year × 100 + month."""
    found = date.fromordinal(day + EPOCH)
    return found.year * 100 + found.month


@lru_cache(maxsize=16)
def next_month(day: int) -> int:
    """The number of the first day of the next month."""
    found = date.fromordinal(day + EPOCH)
    return (found.replace(day=1) + timedelta(days=31)).replace(day=1).toordinal() - EPOCH


def _offset(zone: tzinfo, at: datetime) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta()


def _ms(offset: timedelta) -> int:
    return offset // timedelta(milliseconds=1)

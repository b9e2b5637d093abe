"""Call rates per account and model: three ways to count, one answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from gateway.simulator.settings import Rate

Mode = Literal["off", "token_bucket", "spacing", "fixed_window"]

SPACING_SLACK = 0.9
"""Part of the even interval two calls must keep; the rest forgives clock and network jitter."""


class Counter(Protocol):
    """Counts the calls of one account to one model."""

    def admit(self, now: float) -> bool:
        """Whether a call at `now` (seconds, any origin) is within the rate; it counts if so."""


class TokenBucket:
    """`burst` calls at once, refilled evenly."""

    def __init__(self, rate: Rate) -> None:
        self._per_s = rate.count / rate.per_s
        self._size = float(rate.burst or max(1.0, rate.count))
        self._tokens = self._size
        self._at: float | None = None

    def admit(self, now: float) -> bool:
        """Takes one token if there is one."""
        passed = max(0.0, now - self._at) if self._at is not None else 0.0
        self._at = now
        self._tokens = min(self._size, self._tokens + passed * self._per_s)
        # Refills add up to a hair less than a whole token in floating point.
        if self._tokens < 1.0 - 1e-9:
            return False
        self._tokens -= 1.0
        return True


class Spacing:
    """No two calls closer than 0.9/rate, the refused ones included: a harsher vendor."""

    def __init__(self, rate: Rate) -> None:
        self._interval_s = SPACING_SLACK * rate.per_s / rate.count
        self._last: float | None = None

    def admit(self, now: float) -> bool:
        """Compares with the previous call, whatever became of that one."""
        last, self._last = self._last, now
        return last is None or now - last >= self._interval_s


class FixedWindow:
    """`count` calls in each window of `per_s` seconds, windows aligned to the clock."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._window = -1
        self._used = 0

    def admit(self, now: float) -> bool:
        """Counts within the window `now` falls in."""
        window = int(now // self._rate.per_s)
        if window != self._window:
            self._window, self._used = window, 0
        if self._used + 1 > self._rate.count:
            return False
        self._used += 1
        return True


_COUNTERS: dict[Mode, Callable[[Rate], Counter]] = {
    "token_bucket": TokenBucket,
    "spacing": Spacing,
    "fixed_window": FixedWindow,
}


class Throttle:
    """The counters of every account and model; forgotten whenever the settings change."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, str], Counter] = {}

    def admit(self, account: str, model: str, mode: Mode, rate: Rate, now: float) -> bool:
        """Whether one more call of `account` to `model` is within `rate` at `now` seconds."""
        if mode == "off":
            return True
        counter = self._counters.get((account, model))
        if counter is None:
            counter = self._counters[account, model] = _COUNTERS[mode](rate)
        return counter.admit(now)

    def clear(self) -> None:
        """Forgets every call."""
        self._counters.clear()

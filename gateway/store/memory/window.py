"""A sliding minute in one-second buckets (0010); `lua/limits/tenant.lua` counts the same."""

from __future__ import annotations

SECONDS = 60


class SlidingMinute:
    """Seconds are whole Unix seconds, moments Unix ms; counts leave up to 1 s late, never early."""

    def __init__(self) -> None:
        self.total = 0
        self.newest = 0
        """The last second in which anything was counted."""
        self._second = 0
        self._buckets: dict[int, int] = {}

    def clear(self) -> None:
        self._buckets.clear()
        self.total = self.newest = 0

    def advance(self, second: int) -> None:
        """Drop what is older than the minute that ends in `second`."""
        if second == self._second:
            return
        for expired in [bucket for bucket in self._buckets if bucket < second - SECONDS]:
            del self._buckets[expired]
        if self.newest < second - SECONDS:
            self.newest = 0
        self._second = second
        self.total = sum(self._buckets.values())

    def book(self, second: int, amount: int) -> None:
        """Count `amount` in `second`, or take it back; nothing if that second has left."""
        if not (amount and self._second - SECONDS <= second <= self._second):
            return
        held = self._buckets.get(second, 0)
        amount = max(amount, -held)
        self.total += amount
        if amount:
            self.newest = max(self.newest, second)
        if held + amount:
            self._buckets[second] = held + amount
        else:
            self._buckets.pop(second, None)

    def reset_ms(self, now_ms: int) -> int:
        return _leaves_ms(max(self._buckets)) - now_ms if self._buckets else 0

    def room_in_ms(self, amount: int, limit: int, now_ms: int) -> int | None:
        """Until `amount` more fits under `limit`: 0 for now, None for never."""
        excess = self.total + amount - limit
        if excess <= 0:
            return 0
        if amount > limit:
            return None
        for second in sorted(self._buckets):
            excess -= self._buckets[second]
            if excess <= 0:
                return _leaves_ms(second) - now_ms
        return _leaves_ms(self._second) - now_ms


def _leaves_ms(second: int) -> int:
    return (second + SECONDS + 1) * 1000

"""The clients that take deliveries: how fast they must be, and who is cut if memory is short."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from gateway.config import Sending
from gateway.delivery.budget import ANSWER_BYTES, Rooms

SLOW_S = 0.05
"""A client slower than this over a piece leaves its connection to others that wait for one."""
RESTING_S = 1.0
"""After this it rests in any case; it may be cut where memory is short."""


class Reading(Protocol):
    """A delivery whose client is waited for."""

    def rest(self) -> None:
        """Hold no connection until the client takes more."""

    def cut(self) -> None:
        """End."""


class ClientPace:
    """Whether a client takes its answer at the least rate; being faster before counts."""

    def __init__(self, sending: Sending, now: float) -> None:
        self._sending = sending
        self._due = now + sending.grace_s

    def due(self, size: int, now: float) -> float:
        """When a piece of so many bytes must have been taken."""
        self._due = min(self._due, now + self._sending.window_s)
        self._due += size / self._sending.least_bytes_per_s
        return self._due


class Readers:
    """All of a worker; those that have taken nothing for longest make room for others."""

    def __init__(self, sending: Sending, rooms: Rooms) -> None:
        self.sending = sending
        self._rooms = rooms
        self._slow: dict[Reading, None] = {}
        self._resting: dict[Reading, None] = {}
        rooms.connections.on_short = self._make_connections
        rooms.answers.on_short = self._make_room

    @contextmanager
    def wait(self, reading: Reading) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        timers = (
            loop.call_later(SLOW_S, self._is_slow, reading),
            loop.call_later(RESTING_S, self._rests, reading),
        )
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()
            self._slow.pop(reading, None)
            self._resting.pop(reading, None)

    def leaves(self, count: int) -> None:
        self._rooms.answers.release(count)

    def _is_slow(self, reading: Reading) -> None:
        if self._rooms.connections.is_short:
            reading.rest()
        else:
            self._slow[reading] = None

    def _rests(self, reading: Reading) -> None:
        self._slow.pop(reading, None)
        reading.rest()
        if self._rooms.answers.is_short:
            reading.cut()
        else:
            self._resting[reading] = None

    def _make_connections(self, _: int) -> None:
        """All slow ones: some may have no connection."""
        slow, self._slow = self._slow, {}
        for reading in slow:
            reading.rest()

    def _make_room(self, count: int) -> None:
        while count > 0 and self._resting:
            reading = next(iter(self._resting))
            del self._resting[reading]
            reading.cut()
            count -= ANSWER_BYTES

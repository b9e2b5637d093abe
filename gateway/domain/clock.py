"""Time and chance, as arguments."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import random

from msgspec import Struct


class Clock(Struct, frozen=True):
    """Unix seconds, steady seconds as the event loop's, chance in [0, 1) and a pause: for tests."""

    now: Callable[[], float]
    steady: Callable[[], float]
    chance: Callable[[], float] = random
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep

"""Time and chance, as arguments."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import random

from msgspec import Struct


class Clock(Struct, frozen=True):
    """Time and chance, so that tests can hold both: Unix seconds, steady seconds, [0, 1), a pause.

    `steady` counts as the event loop does.
    """

    now: Callable[[], float]
    steady: Callable[[], float]
    chance: Callable[[], float] = random
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep

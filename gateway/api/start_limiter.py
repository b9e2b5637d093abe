"""Keeping each turn of the event loop short when very many requests arrive at once."""

from __future__ import annotations

import asyncio
from collections import deque

AT_ONCE = 8
"""Requests begun in one turn, under a millisecond each: other work waits no longer than that."""


class StartLimiter:
    """Lets a few requests through in each turn of the loop, first come first served."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._passed = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._passed:
            loop.call_soon(self._turn)
        if self._passed < self._at_once and not self._waiting:
            self._passed += 1
            return
        waiter = loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _turn(self) -> None:
        self._passed = 0
        while self._waiting and self._passed < self._at_once:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._passed += 1
        if self._passed:
            asyncio.get_running_loop().call_soon(self._turn)

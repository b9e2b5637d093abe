"""The bytes of images that one worker may hold in memory at a time, over all requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from gateway.domain.errors import ImageUnavailable

ANSWER_BYTES = 256 * 1024
"""Held by one answer while its client is slow: a block as base64, and a socket's fill."""
CONNECTION_BYTES = 320 * 1024
"""What aiohttp has read of an image that nobody asked for yet."""


class ByteBudget:
    """Hands out bytes, first come, first served: large requests are not overtaken by small ones."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self.on_short: Callable[[int], object] | None = None
        """Called with the bytes that have to wait: others may give some back."""
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def is_short(self) -> bool:
        return any(not turn.done() for _, turn in self._waiting)

    def try_acquire(self, count: int) -> bool:
        """Without waiting."""
        if self._waiting or count > self.free:
            return False
        self.free -= count
        return True

    async def acquire(self, count: int) -> None:
        """A caller that already holds bytes needs another way to go on."""
        if self.try_acquire(count):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        if self.on_short is not None:
            self.on_short(count)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.free += count
            turn.cancel()
            self._grant()
            raise

    def release(self, count: int) -> None:
        self.free += count
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            count, turn = self._waiting[0]
            if not turn.done():
                if count > self.free:
                    return
                self.free -= count
                turn.set_result(None)
            self._waiting.popleft()


class Rooms:
    """The parts of a worker's budget.

    Nobody waits for somebody who waits: a connection needs nothing more, an answer no other answer.
    """

    def __init__(self, total: int) -> None:
        self.answers = ByteBudget(total // 2)
        self.connections = ByteBudget(max(total // 4, CONNECTION_BYTES))
        self.images = ByteBudget(total // 4)
        """For images read ahead, held because they have no length, copied or cached."""

    def are_free(self) -> bool:
        return all(r.free == r.total for r in (self.answers, self.connections, self.images))


class BlockBuffer:
    """Bytes of one image that wait to be sent, counted in the budget."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._blocks: deque[bytes] = deque()
        self.held = 0
        self.most = budget.total

    async def add(self, block: bytes) -> None:
        """Wait for room. Raises ImageUnavailable for more than the buffer may ever hold."""
        if self.held + len(block) > self.most:
            message = "A generated image, of no declared size, is too large for this gateway."
            raise ImageUnavailable(message)
        await self._budget.acquire(len(block))
        self.put(block)

    def put(self, block: bytes) -> None:
        """Room was made before."""
        self._blocks.append(block)
        self.held += len(block)

    def pop(self) -> bytes:
        """The oldest block; empty for none."""
        if not self._blocks:
            return b""
        block = self._blocks.popleft()
        self.held -= len(block)
        self._budget.release(len(block))
        return block

    def clear(self) -> None:
        self._blocks.clear()
        self._budget.release(self.held)
        self.held = 0

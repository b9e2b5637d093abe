"""The bytes of images that one worker may hold in memory at a time, over all requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from gateway.domain.errors import ImageUnavailable

ANSWER_BYTES = 256 * 1024
"""What one answer holds while its client is waited for: a block as base64, and a socket's fill."""
CONNECTION_BYTES = 320 * 1024
"""What aiohttp has read of an image that nobody asked for yet."""


class ByteBudget:
    """Hands out bytes, first come, first served: a large wish is not overtaken by small ones."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self.on_short: Callable[[int], object] | None = None
        """Called with a wish that has to wait: whoever can may give something back."""
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def is_short(self) -> bool:
        """Whether somebody waits."""
        return any(not turn.done() for _, turn in self._waiting)

    def try_acquire(self, count: int) -> bool:
        """Take if that needs no waiting."""
        if self._waiting or count > self.free:
            return False
        self.free -= count
        return True

    async def acquire(self, count: int) -> None:
        """Wait until there is room. Whoever may wait holding bytes needs another way to go on."""
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
        """Give back what was taken."""
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

    Whoever has a connection needs nothing more, and whoever has an answer needs no other answer:
    so nobody waits for somebody who waits.
    """

    def __init__(self, total: int) -> None:
        self.answers = ByteBudget(total // 2)
        self.connections = ByteBudget(max(total // 4, CONNECTION_BYTES))
        self.images = ByteBudget(total // 4)
        """For those read ahead, held because they have no length, copied or cached."""

    def are_free(self) -> bool:
        """Whether nobody holds anything."""
        return all(r.free == r.total for r in (self.answers, self.connections, self.images))


class BlockBuffer:
    """Bytes of one image that wait to be sent, counted in the budget."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._blocks: deque[bytes] = deque()
        self.held = 0
        self.most = budget.total

    async def add(self, block: bytes) -> None:
        """Wait for room, then take the block in.

        Raises:
            ImageUnavailable: the buffer would become larger than it may ever be.
        """
        if self.held + len(block) > self.most:
            message = "A generated image, of no declared size, is too large for this gateway."
            raise ImageUnavailable(message)
        await self._budget.acquire(len(block))
        self.put(block)

    def put(self, block: bytes) -> None:
        """Take a block in for which room was made."""
        self._blocks.append(block)
        self.held += len(block)

    def pop(self) -> bytes:
        """The oldest block; none if there is none."""
        if not self._blocks:
            return b""
        block = self._blocks.popleft()
        self.held -= len(block)
        self._budget.release(len(block))
        return block

    def clear(self) -> None:
        """Drop everything."""
        self._blocks.clear()
        self._budget.release(self.held)
        self.held = 0

"""Where the bytes of an image come from: its host, or memory."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Protocol

from gateway.delivery.budget import CONNECTION_BYTES, BlockBuffer, Rooms
from gateway.domain.catalogue import Size
from gateway.domain.errors import ImageUnavailable
from gateway.domain.png import PNG_HEADER_BYTES, is_whole_png, png_size
from gateway.upstream.download import BLOCK_BYTES, NOT_A_PNG, Deadline, Download


class Source(Protocol):
    """An image, read once from start to end in blocks."""

    @property
    def length(self) -> int: ...

    @property
    def size(self) -> Size | None: ...

    def read_ahead(self) -> None:
        """Start to read into memory, as far as there is plenty."""

    def rest(self) -> None:
        """Hold no connection until more is read."""

    async def begin(self) -> None:
        """It is this image's turn: from now on it waits for no budget."""

    async def read(self) -> bytes | memoryview:
        """The next block; empty at the end."""

    async def aclose(self) -> None:
        """Give up what is held."""


class StoredImage:
    def __init__(self, image: bytes) -> None:
        self._rest = memoryview(image)
        self.length = len(image)
        self.size = png_size(image[:PNG_HEADER_BYTES])
        if not is_whole_png(image):
            raise ImageUnavailable(NOT_A_PNG)

    def read_ahead(self) -> None:
        """It is here."""

    def rest(self) -> None:
        """It has none."""

    async def begin(self) -> None:
        """As before."""

    async def read(self) -> memoryview:
        block, self._rest = self._rest[:BLOCK_BYTES], self._rest[BLOCK_BYTES:]
        return block

    async def aclose(self) -> None:
        self._rest = memoryview(b"")


class FetchedImage:
    """Downloads while it is sent, and before that as far as there is plenty."""

    def __init__(
        self, download: Download, rooms: Rooms, until: Deadline, *, is_connected: bool = False
    ) -> None:
        self._download = download
        self._budget = rooms.images
        self._connections = rooms.connections
        self._until = until
        self._is_connected = is_connected
        """Whether it has taken what a connection holds."""
        self._buffer = BlockBuffer(rooms.images)
        self._ahead: asyncio.Task[None] | None = None

    @property
    def length(self) -> int:
        length = self._download.length
        if length is None:
            raise ValueError("hold an image of unknown length first")
        return length

    @property
    def size(self) -> Size | None:
        return self._download.size

    @property
    def has_length(self) -> bool:
        return self._download.length is not None

    @property
    def held(self) -> int:
        """Bytes of the budget."""
        return self._buffer.held

    async def hold(self, most: int) -> None:
        """Read the whole image into memory, at most so many bytes, to learn its length."""
        self._buffer.most = most
        await self._download.read_all(self._buffer)

    def read_ahead(self) -> None:
        if self._ahead is None:
            self._ahead = asyncio.create_task(self._read_ahead())

    def rest(self) -> None:
        if self._ahead is not None:
            self._ahead.cancel()
        self._disconnect()

    async def begin(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            await asyncio.wait([ahead])
            if not ahead.cancelled():
                ahead.result()

    async def read(self) -> bytes:
        block = self._buffer.pop()
        if not block and not self._download.is_whole:
            await self._connect()
            block = await self._download.read()
        if not block:
            self._disconnect()
        return block

    async def aclose(self) -> None:
        try:
            await self.begin()
        finally:
            self._disconnect()
            self._buffer.clear()

    async def _connect(self) -> None:
        """Wait for room for a connection; its holders give it back without waiting."""
        if self._is_connected:
            return
        try:
            async with asyncio.timeout(self._until.left_s()):
                await self._connections.acquire(CONNECTION_BYTES)
        except TimeoutError as cause:
            raise ImageUnavailable("Too many images are being fetched just now.") from cause
        self._is_connected = True

    def _disconnect(self) -> None:
        self._download.close()
        if self._is_connected:
            self._is_connected = False
            self._connections.release(CONNECTION_BYTES)

    async def _read_ahead(self) -> None:
        """A failure is not the end: the image is asked for again when its turn comes."""
        with suppress(ImageUnavailable):
            while self._has_plenty() and await self._read_block():
                pass

    def _has_plenty(self) -> bool:
        """Half of the room is for images that need it."""
        if not self._is_connected:
            self._is_connected = self._connections.try_acquire(CONNECTION_BYTES)
        if not self._is_connected:
            return False
        return self._budget.free - BLOCK_BYTES >= self._budget.total // 2

    async def _read_block(self) -> bool:
        if not self._budget.try_acquire(BLOCK_BYTES):
            return False
        block = b""
        try:
            block = await self._download.read()
        finally:
            self._budget.release(BLOCK_BYTES - len(block))
        if block:
            self._buffer.put(block)
        return bool(block)

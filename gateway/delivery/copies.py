"""Copies of the images that are sent, for a cache."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from gateway.delivery.budget import ByteBudget

Missed = Literal["no_memory", "too_large"]


class CopySink(Struct, frozen=True):
    """Who wants the images that were sent, and up to which size.

    `receive` gets an image's index and its bytes, valid until it returns; it must not raise. An
    image without room in the budget is not kept: waiting while holding some would be a deadlock.
    `missed` gets the reason and the size.
    """

    receive: Callable[[int, memoryview], Awaitable[None]]
    max_bytes: int
    missed: Callable[[Missed, int], None]

    def starting_at(self, first: int) -> CopySink:
        """For images that are not the first of their result."""
        receive = self.receive
        return replace(self, receive=lambda index, image: receive(first + index, image))


class ImageCopier:
    """Copies one image at a time; `held` bytes of the budget are the delivery's until its end."""

    def __init__(self, sink: CopySink | None, budget: ByteBudget, reserved: int = 0) -> None:
        self._sink = sink
        self._budget = budget
        self._reserved = reserved
        self._copy: bytearray | None = None
        self._filled = 0

    def begin(self, length: int) -> None:
        sink = self._sink
        if sink is None:
            return
        if length > sink.max_bytes:
            sink.missed("too_large", length)
        elif not self._budget.try_acquire(length):
            sink.missed("no_memory", length)
        else:
            self._copy = bytearray(length)
            self._filled = 0

    def add(self, block: bytes | memoryview) -> None:
        if self._copy is not None:
            end = self._filled + len(block)
            self._copy[self._filled : end] = block
            self._filled = end

    async def end(self, index: int) -> None:
        """The image is complete: hand it over."""
        if self._copy is not None and self._sink is not None:
            with memoryview(self._copy).toreadonly() as image:
                await self._sink.receive(index, image)
        self.drop()

    def close(self) -> None:
        self.drop()
        self._budget.release(self._reserved)
        self._reserved = 0

    def drop(self) -> None:
        if self._copy is not None:
            self._budget.release(len(self._copy))
            self._copy = None

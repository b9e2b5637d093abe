"""One image on its way from its host: whole, in order and verified, whatever breaks underneath.

`DownloadRetry` says how long, and how often, its host is waited for.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from math import inf
from typing import Protocol, TypeVar

import aiohttp
from structlog.typing import FilteringBoundLogger

from gateway.domain.catalogue import Size
from gateway.domain.clock import Clock
from gateway.domain.errors import ImageUnavailable
from gateway.domain.png import PNG_HEADER_BYTES, SMALLEST_PNG, PngEnd, png_size

ATTEMPTS = 5
"""Without the progress below between them."""
PROGRESS_BYTES = 256 * 1024
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0
UNSEEN_WAITS_S = (1.0, 2.0, 4.0)
"""For a new image that its host does not show yet."""
JITTER = 0.5
UNSEEN_JITTER = 0.2
READ_BYTES = 128 * 1024
BLOCK_BYTES = READ_BYTES + PNG_HEADER_BYTES
"""The most that is handed out at a time, which is what a client that takes nothing holds."""
FIRST_BYTES = {"range": f"bytes=0-{PNG_HEADER_BYTES - 1}"}
NOT_A_PNG = "The image service returned something that is not a PNG image."
EXPIRED = "The image service does not hold a generated image any more."
CHANGED = "A generated image changed while it was downloaded from the image service."
MOST_ERROR_BYTES = 4096
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")

T = TypeVar("T")


class NotThere(Exception):
    """The host has no such image, or does not show a new one yet."""


class Deadline:
    """When the images of a request must be there; shared by them, and movable."""

    def __init__(self, at: float, steady: Callable[[], float]) -> None:
        self._at = at
        self._steady = steady

    def left_s(self) -> float:
        return self._at - self._steady()

    def restart(self, allowed_s: float) -> None:
        """Count again from now."""
        self._at = self._steady() + allowed_s

    def extend(self, by_s: float) -> None:
        """Give back time that was not spent on waiting for an image host."""
        self._at += by_s


class DownloadRetry:
    """What one download may take; `fresh`: the image was made just now."""

    def __init__(
        self,
        deadline: Deadline,
        idle_s: float,
        clock: Clock,
        log: FilteringBoundLogger,
        *,
        fresh: bool = False,
    ) -> None:
        self._deadline = deadline
        self._idle_s = idle_s
        self._clock = clock
        self._log = log
        self._failures = 0
        self._reached = 0
        self._unseen_waits = list(UNSEEN_WAITS_S if fresh else ())
        self.is_fresh = fresh

    async def limit(self, step: Awaitable[T]) -> T:
        """Raises TimeoutError if nothing happened for too long, or the deadline passed."""
        async with asyncio.timeout(min(self._idle_s, self._deadline.left_s())):
            return await step

    async def pause(self, cause: Exception, received: int) -> None:
        """Before the next attempt. Raises ImageUnavailable if no attempt or no time is left."""
        if isinstance(cause, NotThere):
            await self._wait_until_seen(cause)
            return
        if received - self._reached >= PROGRESS_BYTES:
            self._failures = 0
            self._reached = received
        self._failures += 1
        wait = min(FIRST_WAIT_S * 2**self._failures, LONGEST_WAIT_S)
        wait *= 1 - JITTER * self._clock.chance()
        facts = {"received": received, "failures": self._failures, "cause": type(cause).__name__}
        if self._failures >= ATTEMPTS or wait >= self._deadline.left_s():
            self._log.error("image_given_up", **facts)
            message = "A generated image could not be downloaded from the image service."
            raise ImageUnavailable(message) from cause
        self._log.warning("image_download_broke", **facts)
        await self._clock.sleep(wait)

    async def _wait_until_seen(self, cause: NotThere) -> None:
        wait = self._unseen_waits.pop(0) if self._unseen_waits else inf
        wait *= 1 + UNSEEN_JITTER * self._clock.chance()
        if wait >= self._deadline.left_s():
            self._log.error("image_given_up", cause=str(cause))
            raise ImageUnavailable("The image service does not show a generated image.") from cause
        self._log.warning("image_not_there_yet", cause=str(cause), wait_s=wait)
        await self._clock.sleep(wait)


Connect = Callable[[dict[str, str]], Awaitable[aiohttp.ClientResponse]]
"""Sends the request with more headers, and returns once the answer's head is there."""


class Broken(Exception):
    """A download that may go better the next time."""


BREAKS = (Broken, NotThere, aiohttp.ClientError, OSError, TimeoutError)


class Sink(Protocol):
    """Where an image of unknown length is put until it is known."""

    async def add(self, block: bytes) -> None: ...

    def clear(self) -> None: ...


class Download:
    """A download that resumes where it broke. `close` it; cancelling a call loses no bytes."""

    def __init__(self, connect: Connect, retry: DownloadRetry, max_bytes: int) -> None:
        self._connect = connect
        self._retry = retry
        self._max_bytes = max_bytes
        self._response: aiohttp.ClientResponse | None = None
        self._head = b""
        self._end = PngEnd()
        self._received = 0
        self._etag: str | None = None
        self._size: Size | None = None
        self._length: int | None = None

    @property
    def length(self) -> int | None:
        """In bytes; None until it is known, where the host did not declare it."""
        return self._length

    @property
    def size(self) -> Size | None:
        return self._size

    @property
    def is_whole(self) -> bool:
        """Whether all of it was handed out, or held."""
        return self._received == self._length

    async def open(self, *, measured_only: bool = False) -> None:
        """Connect, and read as far as the picture's size.

        With `measured_only` no connection is kept where the host declares a length. Raises
        ImageUnavailable: not there, not a PNG, too large, or out of attempts or time.
        """
        while True:
            try:
                if measured_only:
                    await self._measure()
                else:
                    await self._begin()
                return
            except BREAKS as cause:
                self.close()
                await self._retry.pause(cause, 0)

    async def read(self) -> bytes:
        """The next bytes; empty at the end. The last ones come only if they do end a PNG.

        Raises ImageUnavailable if the rest cannot be had, or does not fit what came before.
        """
        while self._length is not None and self._received < self._length:
            try:
                block = await self._next_block(self._response or await self._resume())
            except BREAKS as cause:
                self.close()
                await self._retry.pause(cause, self._received)
            else:
                return self._accept(block, self._length)
        return b""

    async def read_all(self, sink: Sink) -> None:
        """Put the whole image on a sink, then know its `length`. Raises ImageUnavailable."""
        while True:
            try:
                await self._collect(self._response or await self._begin(), sink)
                return
            except BREAKS as cause:
                self.close()
                sink.clear()
                await self._retry.pause(cause, 0)

    def close(self) -> None:
        """Give the connection up; received bytes stay."""
        if self._response is not None:
            self._response.close()
            self._response = None

    async def _measure(self) -> None:
        """Ask for the first bytes alone; a host that sends more is hung up on."""
        await self._begin(FIRST_BYTES)
        if self._length is not None:
            self.close()

    async def _begin(self, headers: dict[str, str] | None = None) -> aiohttp.ClientResponse:
        response = self._response = await self._retry.limit(self._connect(headers or {}))
        await self._require(response, 200, *([206] if headers else ()))
        self._length = declared_length(response, self._max_bytes)
        self._etag = response.headers.get("etag")
        head = b""
        while len(head) < PNG_HEADER_BYTES:
            head += await self._receive(response, PNG_HEADER_BYTES - len(head))
        self._size = png_size(head)
        if self._size is None:
            raise ImageUnavailable(NOT_A_PNG, for_good=True)
        self._head, self._end = head, PngEnd()
        self._end.feed(head)
        self._received = len(head)
        return response

    async def _resume(self) -> aiohttp.ClientResponse:
        headers = {"range": f"bytes={self._received}-"}
        if self._etag and not self._etag.startswith("W/"):
            headers["if-match"] = self._etag
        response = await self._retry.limit(self._connect(headers))
        try:
            await self._require(response, 200, 206)
            repeated = self._received - first_byte(response, self._length, self._etag)
            require_overlap(repeated)
            while repeated:
                repeated -= len(await self._receive(response, min(repeated, BLOCK_BYTES)))
        except BaseException:
            response.close()
            raise
        self._response = response
        return response

    async def _require(self, response: aiohttp.ClientResponse, *statuses: int) -> None:
        """Refuse any other status; a new image may yet appear."""
        if self._retry.is_fresh and response.status in {403, 404}:
            words = await self._retry.limit(response.content.read(MOST_ERROR_BYTES))
            if b"expired" not in words.lower():
                raise NotThere(f"status {response.status}")
        require(response, *statuses)

    async def _receive(self, response: aiohttp.ClientResponse, most: int) -> bytes:
        block = await self._retry.limit(response.content.read(most))
        if not block:
            raise Broken("the answer ended early")
        return block

    async def _next_block(self, response: aiohttp.ClientResponse) -> bytes:
        return await self._receive(response, READ_BYTES)

    async def _next_or_end(self, response: aiohttp.ClientResponse) -> bytes:
        """What arrived, without copying it; empty at the end."""
        ends_chunk = True
        block = b""
        while not block and ends_chunk:
            block, ends_chunk = await self._retry.limit(response.content.readchunk())
        return block

    def _accept(self, block: bytes, length: int) -> bytes:
        self._received += len(block)
        self._end.feed(block)
        is_cut = self._received == length and not self._end.is_reached
        if self._received > length or is_cut:
            message = "A generated image arrived damaged from the image service."
            raise ImageUnavailable(message, for_good=is_cut)
        if self._head:
            block, self._head = self._head + block, b""
        return block

    async def _collect(self, response: aiohttp.ClientResponse, sink: Sink) -> None:
        await sink.add(self._head)
        while block := await self._next_or_end(response):
            self._received += len(block)
            if self._received > self._max_bytes:
                raise too_large(self._max_bytes)
            self._end.feed(block)
            await sink.add(block)
        if not self._end.is_reached:
            raise Broken("the image is cut short")
        self._length, self._head = self._received, b""


def require(response: aiohttp.ClientResponse, *statuses: int) -> None:
    """Refuse any other status, and bytes that are not the image's own."""
    status = response.status
    if status >= 500 or status in {408, 425, 429}:
        raise Broken(f"status {status}")
    if status == 412:
        raise ImageUnavailable(CHANGED)
    if status not in statuses:
        raise ImageUnavailable(EXPIRED, for_good=True)
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise ImageUnavailable("The image service returned an encoded image.", for_good=True)


def declared_length(response: aiohttp.ClientResponse, limit: int) -> int | None:
    """The promised length, within the limits."""
    length = response.content_length
    if response.status == 206:
        found = CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if found is None or int(found[1]):
            raise ImageUnavailable(CHANGED)
        length = int(found[2])
    if length is None:
        return None
    if length > limit:
        raise too_large(limit)
    if length < SMALLEST_PNG:
        raise ImageUnavailable(NOT_A_PNG, for_good=True)
    return length


def first_byte(response: aiohttp.ClientResponse, length: int | None, etag: str | None) -> int:
    """Where the answer to a request for the rest begins, if it is still the same image's."""
    start, total = 0, response.content_length
    if response.status == 206:
        found = CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if found is None:
            raise ImageUnavailable(CHANGED)
        start, total = int(found[1]), int(found[2])
    same_length = total == length or (total is None and response.status == 200)
    if not same_length or response.headers.get("etag", etag) != etag:
        raise ImageUnavailable(CHANGED)
    return start


def require_overlap(repeated: int) -> None:
    """Refuse an answer that begins after what was received."""
    if repeated < 0:
        raise ImageUnavailable(CHANGED)


def too_large(limit: int) -> ImageUnavailable:
    message = f"A generated image is larger than this gateway's {limit} bytes."
    return ImageUnavailable(message, for_good=True)

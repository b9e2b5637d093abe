"""Where the pictures of a request wait: in a file without a name that ends with it (0028)."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import IO, TypeVar

import structlog
from msgspec import Struct

from gateway.domain.errors import InvalidRequest, ServiceUnavailable

T = TypeVar("T")

BLOCK = 64 * 1024
"""Bytes that are gathered before they are written: what a picture holds of memory as it comes."""
THREADS = 4
MEBIBYTE = 1024 * 1024

log = structlog.get_logger()


class Spools:
    """Makes a worker's spools; `directory` is None for the system's own place."""

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._threads = ThreadPoolExecutor(THREADS, "spool")

    def open(self) -> Spool:
        """For a request; the file begins with the first write."""
        return Spool(self._directory, self._threads)

    def close(self) -> None:
        """Without waiting."""
        self._threads.shutdown(wait=False)


def require_writable(folder: str) -> None:
    """Raises OSError if pictures cannot be kept there."""
    if not os.access(folder, os.W_OK | os.X_OK):
        number = errno.EACCES if os.path.isdir(folder) else errno.ENOENT  # noqa: PTH112
        raise OSError(number, os.strerror(number), folder)


class Spool:
    __slots__ = ("_directory", "_file", "_is_closed", "_size", "_threads")

    def __init__(self, directory: str | None, threads: Executor) -> None:
        self._directory = directory
        self._threads = threads
        self._file: IO[bytes] | None = None
        self._size = 0
        self._is_closed = False

    async def append(self, data: bytes) -> int:
        """Returns the offset. Raises ServiceUnavailable if the disk is full."""
        offset = self._size
        self._size += len(data)
        try:
            if self._file is None:
                # A regular file that was never linked, or is no longer.
                self._file = tempfile.TemporaryFile(buffering=0, dir=self._directory)  # noqa: SIM115
            await self.run(self._threads, write, data, offset)
        except OSError as fault:
            log.error("uploads_not_kept", cause=str(fault))  # noqa: TRY400 - the stack says nothing
            message = "The gateway has no room for pictures just now. Try again soon."
            raise ServiceUnavailable(message, retry_after_s=5.0) from fault
        return offset

    async def read(self, offset: int, size: int) -> bytes:
        return await self.run(self._threads, read, size, offset)

    async def run(self, threads: Executor, function: Callable[..., T], *arguments: object) -> T:
        """In a thread with a descriptor of its own, as the request may end and close its file."""
        if self._file is None or self._is_closed:
            raise ValueError("the pictures of this request are gone")
        descriptor = os.dup(self._file.fileno())
        future = threads.submit(function, descriptor, *arguments)
        future.add_done_callback(lambda _: os.close(descriptor))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """The pictures are gone with it."""
        self._is_closed = True
        if self._file is not None:
            self._file.close()


def write(descriptor: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def read(descriptor: int, size: int, offset: int) -> bytes:
    """All of it, as far as the file goes."""
    found = os.pread(descriptor, size, offset)
    while len(found) < size and (
        more := os.pread(descriptor, size - len(found), offset + len(found))
    ):
        found += more
    return found


class SpooledPart(Struct, frozen=True):
    """A piece of a spool."""

    spool: Spool
    offset: int
    size: int

    async def blocks(self, size: int) -> AsyncIterator[bytes]:
        """All in blocks of `size` bytes; the last may be shorter."""
        for start in range(0, self.size, size):
            yield await self.spool.read(self.offset + start, min(size, self.size - start))


class Upload(Struct, frozen=True):
    """A picture as it came, not looked at yet."""

    name: str
    """Its sender's name for it, for error messages and their `param`."""
    part: SpooledPart
    digest: str


class Pictures:
    """Takes the pictures of one request, one after the other, as their bytes come."""

    __slots__ = ("_buffer", "_hash", "_limit", "_name", "_size", "_spool", "uploads")

    def __init__(self, spool: Spool, limit: int) -> None:
        self._spool = spool
        self._limit = limit
        self.uploads: list[Upload] = []
        self.begin("")

    def begin(self, name: str) -> None:
        self._name = name
        self._hash = hashlib.sha256()
        self._buffer = bytearray()
        self._size = 0

    async def add(self, data: bytes) -> None:
        """Raises InvalidRequest if it is too large, ServiceUnavailable without room."""
        self._size += len(data)
        if self._size > self._limit:
            most = f"{self._limit / MEBIBYTE:g} MiB"
            message = f"The image '{self._name}' is larger than {most}. Send a smaller one."
            raise InvalidRequest(message, param=self._name, code="image_too_large")
        self._buffer += data
        if len(self._buffer) >= BLOCK:
            await self._flush()

    async def end(self) -> None:
        """Raises InvalidRequest if it has no bytes."""
        if not self._size:
            message = f"The image '{self._name}' is empty."
            raise InvalidRequest(message, param=self._name, code="invalid_image_file")
        end = await self._flush()
        part = SpooledPart(self._spool, end - self._size, self._size)
        self.uploads.append(Upload(self._name, part, self._hash.hexdigest()))

    async def _flush(self) -> int:
        block, self._buffer = bytes(self._buffer), bytearray()
        self._hash.update(block)
        return await self._spool.append(block) + len(block)

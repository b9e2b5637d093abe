"""Delivers the images of a request: all are measured first, then sent one after the other.

The hosts' lengths give the answer's (0020). A hopeless image is an error before the first byte;
after it, the answer stays shorter than declared.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial

from msgspec import Struct
from structlog.typing import FilteringBoundLogger

from gateway.config import Sending
from gateway.delivery.base64_json import Base64Writer, Framing, base64_length
from gateway.delivery.budget import ANSWER_BYTES, CONNECTION_BYTES, ByteBudget, Rooms
from gateway.delivery.conversion import PNG, Converter, Encoding, Original, Spent
from gateway.delivery.copies import CopySink, ImageCopier
from gateway.delivery.readers import ClientPace, Readers
from gateway.delivery.sources import FetchedImage, Source, StoredImage
from gateway.domain.errors import ImageUnavailable, ServiceUnavailable
from gateway.upstream.download import Deadline, Download
from gateway.upstream.images import ImageFetcher

BUDGET_BYTES = 64 * 1024 * 1024
SENDING_S = 300.0
"""Longest wait for image hosts once an answer has begun."""
AHEAD_BYTES = 1024 * 1024
"""When no more is left of an image, the next one is opened."""
MEASURED_AT_ONCE = 128
"""Images of all answers: each takes a connection for a moment."""
ROOM_S = 10.0
"""Longest wait for room in the budget."""
SENDING = Sending()

Fetch = Callable[..., Awaitable[Download]]
Convert = Callable[[Original, Spent], AsyncGenerator[bytes | memoryview, None]]
"""Makes another format of a PNG, and reports how long that took."""


class ResultImages(Struct, frozen=True):
    """The images of a result, each by its URL or its bytes."""

    sources: Sequence[str | bytes]
    fresh: bool = False
    """Made just now, so that a host may not show them yet."""
    reserved: int = 0
    """Bytes of the budget that were taken for those in memory."""
    encoding: Encoding = PNG


class Delivery:
    """The deliveries of a worker, and the budget they share."""

    def __init__(
        self,
        fetcher: ImageFetcher,
        *,
        steady: Callable[[], float],
        budget_bytes: int = BUDGET_BYTES,
        sending: Sending = SENDING,
        converter: Converter | None = None,
    ) -> None:
        self._fetcher = fetcher
        self.converter = converter or Converter()
        self._steady = steady
        self.rooms = Rooms(budget_bytes)
        self._readers = Readers(sending, self.rooms)
        self._holding = asyncio.Lock()
        self._measuring = asyncio.Semaphore(MEASURED_AT_ONCE)

    async def open(
        self,
        result: ResultImages,
        framing: Framing,
        *,
        deadline: float,
        log: FilteringBoundLogger,
        copy_to: CopySink | None = None,
    ) -> OpenDelivery:
        """Open the first image, and measure the others, by `deadline` on the steady clock.

        The caller reads `body` or calls `aclose`; either gives back what is reserved. Raises
        ImageUnavailable for a missing image, ServiceUnavailable without memory for another answer.
        """
        started = self._steady()
        until = Deadline(deadline, self._steady)
        images: list[Source] = []
        room = 0
        try:
            # What was just paid for is worth more patience: others may have to pay for theirs.
            within_s = max(ROOM_S, until.left_s()) if result.fresh else ROOM_S
            await take(self.rooms.answers, ANSWER_BYTES, within_s)
            room = ANSWER_BYTES
            fetch = partial(self._fetcher.open, deadline=until, log=log, fresh=result.fresh)
            images = await self._open_all(result.sources, fetch, until)
            await self._hold_unmeasured(images, until)
            copier = ImageCopier(copy_to, self.rooms.images, result.reserved)
            delivery = OpenDelivery(images, framing, until, self._steady, copier, self._readers)
            delivery.room = room
            if result.encoding.format != "png":
                convert = partial(self.converter.convert, encoding=result.encoding, until=until)
                delivery.convert_by(convert)
            delivery.download_s = self._steady() - started
            return delivery
        except BaseException:
            self.rooms.answers.release(room)
            self.rooms.images.release(result.reserved)
            await close_all(images)
            raise

    async def _open_all(
        self, sources: Sequence[str | bytes], fetch: Fetch, until: Deadline
    ) -> list[Source]:
        tasks = [
            asyncio.create_task(self._open(source, fetch, until, is_first=index == 0))
            for index, source in enumerate(sources)
        ]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            await close_all([image for image in done if not isinstance(image, BaseException)])
            raise

    async def _open(
        self, source: str | bytes, fetch: Fetch, until: Deadline, *, is_first: bool
    ) -> Source:
        if isinstance(source, bytes):
            return StoredImage(source)
        connections = self.rooms.connections
        if not (is_first and connections.try_acquire(CONNECTION_BYTES)):
            async with self._measuring:
                download = await fetch(source, measured_only=True)
            return FetchedImage(download, self.rooms, until)
        try:
            download = await fetch(source)
        except BaseException:
            connections.release(CONNECTION_BYTES)
            raise
        return FetchedImage(download, self.rooms, until, is_connected=True)

    async def _hold_unmeasured(self, images: list[Source], until: Deadline) -> None:
        """Read images without a length into memory, one request at a time to avoid a deadlock."""
        unmeasured = [i for i in images if isinstance(i, FetchedImage) and not i.has_length]
        if not unmeasured:
            return
        most = self.rooms.images.total
        try:
            async with asyncio.timeout(until.left_s()), self._holding:
                for image in unmeasured:
                    await image.hold(most - sum(i.held for i in unmeasured))
        except TimeoutError as cause:
            message = "A generated image could not be read in time from the image service."
            raise ImageUnavailable(message) from cause


class OpenDelivery:
    """An answer whose images are all measured: its length and size are known."""

    def __init__(
        self,
        images: list[Source],
        framing: Framing,
        until: Deadline,
        steady: Callable[[], float],
        copier: ImageCopier,
        readers: Readers,
    ) -> None:
        self._images = images
        self._readers = readers
        self.room = 0
        """Bytes of the budget that it holds itself."""
        self._pace: ClientPace | None = None
        self.on_cut: Callable[[], object] = nothing
        self.is_cut = False
        """Whether its client had to make room for others."""
        self._until = until
        self._steady = steady
        self._copier = copier
        self._convert: Convert | None = None
        self.download_s = 0.0
        """Time spent waiting for image hosts."""
        self.conversion_s = 0.0
        """Time spent on conversions, waits included."""
        self.client_s = 0.0
        """Time spent waiting for the client."""
        self.downloaded_bytes = 0
        self._frames = framing([image.size for image in images])
        self.content_length: int | None = sum(
            len(before) + len(after) for before, after in self._frames
        ) + sum(base64_length(image.length) for image in images)
        """None until the last image is converted."""

    async def body(self) -> AsyncGenerator[bytes, None]:
        """The answer in pieces of at most 256 KiB and a little; closes what it holds at its end.

        No piece of an image waits for the next image. Raises ImageUnavailable if it is hopeless:
        after a first piece the connection must be broken off.
        """
        try:
            text = b""
            for index, image in enumerate(self._images):
                before, after = self._frames[index]
                text += before
                writer = Base64Writer()
                async with aclosing(self._blocks(index, image)) as blocks:
                    async for block in blocks:
                        piece = text + writer.add(block)
                        del block  # a slow client shall hold no more than its piece
                        paused = self._steady()
                        yield piece
                        taken_s = self._steady() - paused
                        self._until.extend(taken_s)
                        self.client_s += taken_s
                        text = b""
                text += writer.end() + after
                if after:
                    yield text
                    text = b""
        finally:
            await self.aclose()

    def convert_by(self, convert: Convert) -> None:
        """Send the images in another format, without a known length."""
        self._convert = convert
        self.content_length = None

    def _blocks(self, index: int, image: Source) -> AsyncGenerator[bytes | memoryview, None]:
        original = self._original(index, image)
        if self._convert is None or image.size is None:
            return original
        whole = Original(original, image.length, image.size, self.rest)
        return self._convert(whole, self._converted)

    def _converted(self, seconds: float) -> None:
        self._until.extend(seconds)
        self.conversion_s += seconds

    async def _original(
        self, index: int, image: Source
    ) -> AsyncGenerator[bytes | memoryview, None]:
        """As its host has it, copied to the sink."""
        await image.begin()
        self._copier.begin(image.length)
        left = image.length
        while block := await self._read(image):
            left -= len(block)
            if left <= AHEAD_BYTES:
                self._read_ahead(index + 1)
            self._copier.add(block)
            yield block
            del block
        await self._copier.end(index)

    def _read_ahead(self, index: int) -> None:
        for image in self._images[index : index + 1]:
            image.read_ahead()

    @contextmanager
    def waits_for_client(self, size: int) -> Iterator[float]:
        """While a piece of so many bytes is sent; yields its deadline, on the loop's clock."""
        now = asyncio.get_running_loop().time()
        if self._pace is None:
            self._pace = ClientPace(self._readers.sending, now)
        with self._readers.wait(self):
            yield self._pace.due(size, now)

    def rest(self) -> None:
        """Hold no connection to image hosts until the client takes more."""
        for image in self._images:
            image.rest()

    def cut(self) -> None:
        self.is_cut = True
        self.on_cut()

    async def _read(self, image: Source) -> bytes | memoryview:
        started = self._steady()
        try:
            block = await image.read()
        finally:
            self.download_s += self._steady() - started
        if isinstance(image, FetchedImage):
            self.downloaded_bytes += len(block)
        return block

    def begun(self) -> None:
        """The first byte is on its way: from now on the client waits between bytes only."""
        self._until.restart(SENDING_S)

    async def aclose(self) -> None:
        """Give up connections and bytes; may be repeated."""
        self._copier.close()
        self._readers.leaves(self.room)
        self.room = 0
        await close_all(self._images)


async def take(room: ByteBudget, count: int, within_s: float = ROOM_S) -> None:
    """Wait for memory, but not as long as a slow client holds it. Raises ServiceUnavailable."""
    try:
        async with asyncio.timeout(within_s):
            await room.acquire(count)
    except TimeoutError:
        message = "The gateway has no memory for this image just now; try again."
        raise ServiceUnavailable(message, retry_after_s=1.0) from None


def nothing() -> None:
    """Do nothing."""


async def close_all(images: Sequence[Source]) -> None:
    await asyncio.gather(*(image.aclose() for image in images))

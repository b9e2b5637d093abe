"""Answers written while their images download, from a host whose every byte is scripted."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from math import inf
from time import time
from typing import Any

import msgspec
import pytest
import structlog
from PIL import Image as Picture

from gateway.config import Images
from gateway.delivery import (
    Converter,
    CopySink,
    Delivery,
    Encoding,
    OpenDelivery,
    ResultImages,
    in_events,
    in_one_answer,
)
from gateway.delivery.budget import ANSWER_BYTES, CONNECTION_BYTES
from gateway.delivery.conversion import room_for
from gateway.domain.catalogue import Size
from gateway.domain.clock import Clock
from gateway.domain.errors import ImageUnavailable, ServiceUnavailable
from gateway.protocol.openai import Image, ImageCompleted, ImagesResponse
from gateway.translate.response import to_event, to_openai
from gateway.upstream.images import ImageFetcher
from tests.image_host import (
    Answer,
    Asked,
    ImageHost,
    Script,
    answer,
    chunked,
    ignore_range,
    image_host,
    png,
    serve,
)
from tests.openai_shapes import check_event

MIB = 1024 * 1024
CREATED = 1_763_800_000

Given = Script | list[Script] | bytes
"""What a host does, request by request, or an image itself."""


def describe(images: list[Image], size: Size | None) -> ImagesResponse:
    return to_openai(images, created=CREATED, size=size)


def whole_answer(images: Sequence[bytes], size: Size | None = None) -> bytes:
    """What an answer built in memory would be."""
    encoded = [Image(b64_json=b64encode(image).decode()) for image in images]
    return msgspec.json.encode(describe(encoded, size))


class Delivering:
    """A worker's deliveries, from a host of their own; `budget_bytes` are for images alone."""

    def __init__(self, host: ImageHost, budget_bytes: int) -> None:
        config = Images(allowed_hosts=("127.0.0.1",), allow_http=True, max_bytes=8 * MIB)
        self.host = host
        self.now = 0.0
        clock = Clock(time, lambda: self.now, lambda: 0.0, lambda _: asyncio.sleep(0))
        self.fetcher = ImageFetcher(config, clock)
        self.delivery = Delivery(
            self.fetcher, steady=lambda: self.now, budget_bytes=4 * budget_bytes
        )
        self.rooms = self.delivery.rooms
        self.budget = self.rooms.images
        self.framing = in_one_answer(describe)

    async def open(
        self,
        *sources: Given,
        deadline: float = inf,
        copy_to: CopySink | None = None,
        encoding: Encoding = Encoding(),
    ) -> OpenDelivery:
        given = [self._source(each) for each in sources]
        log = structlog.get_logger()
        result = ResultImages(given, encoding=encoding)
        return await self.delivery.open(
            result, self.framing, deadline=deadline, log=log, copy_to=copy_to
        )

    def _source(self, given: Given) -> str | bytes:
        if isinstance(given, bytes):
            return given
        return self.host.add(*(given if isinstance(given, list) else [given]))

    async def send(self, *sources: Given, **more: Any) -> bytes:
        opened = await self.open(*sources, **more)
        sent = b"".join([piece async for piece in opened.body()])
        assert opened.content_length in {len(sent), None}
        return sent

    def connections(self) -> int:
        """Those in use."""
        connector = self.fetcher._session and self.fetcher._session.connector
        return len(connector._acquired) if connector else 0

    def is_at_rest(self) -> bool:
        """Whether no request holds anything any more."""
        conversions = self.delivery.converter.budget
        is_idle = conversions.free == conversions.total
        return self.connections() == 0 and self.rooms.are_free() and is_idle


@asynccontextmanager
async def open_delivering(budget_bytes: int = 8 * MIB) -> AsyncIterator[Delivering]:
    async with image_host() as host:
        each = Delivering(host, budget_bytes)
        yield each
        await asyncio.sleep(0)
        assert each.is_at_rest()
        await each.fetcher.aclose()


@pytest.fixture
async def delivering() -> AsyncIterator[Delivering]:
    async with open_delivering() as each:
        yield each


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another connection does."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a socket sets no event
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("count", [1, 2, 4, 10])
async def test_the_answer_is_the_one_built_in_memory(count: int, delivering: Delivering) -> None:
    """To the byte, whatever the lengths: three bytes make four characters."""
    images = [png(300_000 + index, seed=index) for index in range(count)]

    sent = await delivering.send(*map(serve, images))

    assert sent == whole_answer(images, Size(1024, 1024))


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [
        ([(1024, 1024)], "1024x1024"),
        ([(1536, 1024), (1536, 1024)], "1536x1024"),
        ([(1024, 1024), (1536, 1024)], None),
        ([(1328, 1328)], None),
    ],
)
async def test_the_size_is_what_the_pictures_say(
    sizes: list[tuple[int, int]], shown: str | None, delivering: Delivering
) -> None:
    """Shown if they agree, and published schemas know it."""
    images = [png(1000, *size) for size in sizes]

    sent = msgspec.json.decode(await delivering.send(*map(serve, images)))

    assert sent.get("size") == shown


async def test_bytes_at_hand_are_sent_like_downloads(delivering: Delivering) -> None:
    """A cached image beside one that is not."""
    images = [png(600_001), png(600_002), png(69)]

    sent = await delivering.send(images[0], serve(images[1]), images[2])

    assert sent == whole_answer(images, Size(1024, 1024))


@pytest.mark.parametrize("held", [b"", b"x" * 100, png(1000)[:-1]])
async def test_bytes_at_hand_must_be_a_png(held: bytes, delivering: Delivering) -> None:
    with pytest.raises(ImageUnavailable):
        await delivering.open(held, serve(png(1000)))


async def test_pieces_are_of_a_size_that_suits_a_socket(delivering: Delivering) -> None:
    opened = await delivering.open(serve(png(3 * MIB)), png(3 * MIB))
    pieces = [len(piece) async for piece in opened.body()]

    assert max(pieces) < 360_000


async def test_every_image_is_opened_before_anything_is_sent(delivering: Delivering) -> None:
    """So one that is gone is still an error like any other, and the rest is let go."""
    with pytest.raises(ImageUnavailable):
        await delivering.open(serve(png(MIB)), serve(png(MIB)), gone)


async def test_all_images_are_measured_at_once(delivering: Delivering) -> None:
    """The first byte waits for the slowest of them; only the first is read further."""
    opened = await delivering.open(*[serve(png(MIB))] * 10)

    assert sorted(asked.end or 0 for asked in delivering.host.asked) == [0] + [24] * 9
    assert delivering.connections() == 1
    await opened.aclose()


@pytest.mark.parametrize("script", [serve, ignore_range])
async def test_a_host_may_know_no_ranges(
    script: Callable[[bytes], Script], delivering: Delivering
) -> None:
    images = [png(300_000 + index, seed=index) for index in range(3)]
    opened = await delivering.open(*map(script, images))
    assert delivering.connections() == 1
    assert b"".join([piece async for piece in opened.body()]) == whole_answer(
        images, Size(1024, 1024)
    )


async def test_waiting_for_an_image_can_be_given_up(delivering: Delivering) -> None:
    task = asyncio.create_task(
        delivering.open(serve(png(MIB)), lambda _: Answer(b"", "hang"), png(69))
    )
    await until(lambda: len(delivering.host.asked) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_broken_download_is_resumed_on_the_way(delivering: Delivering) -> None:
    images = [png(MIB), png(MIB + 1)]
    scripts = ([serve(image, sent=400_000), serve(image)] for image in images)

    assert await delivering.send(*scripts) == whole_answer(images, Size(1024, 1024))


async def rest(opened: OpenDelivery, sent: list[bytes]) -> None:
    async for piece in opened.body():
        sent.append(piece)  # noqa: PERF401 - what came before a failure counts


def gone(_: Asked) -> Answer:
    return answer(404, b"")


@pytest.mark.parametrize("place", [0, 1])
async def test_hopeless_later_is_never_a_complete_answer(
    place: int, delivering: Delivering
) -> None:
    """It raises, short of the declared length, and what was sent is not JSON."""
    images: list[Given] = [serve(png(MIB)), serve(png(MIB))]
    images[place] = [serve(png(MIB), sent=500_000), gone]
    sent: list[bytes] = []
    opened = await delivering.open(*images)

    with pytest.raises(ImageUnavailable):
        await rest(opened, sent)
    assert sum(map(len, sent)) < (opened.content_length or 0)
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(b"".join(sent))


async def test_an_image_without_its_end_is_not_closed_with_a_quote(
    delivering: Delivering,
) -> None:
    sent: list[bytes] = []
    with pytest.raises(ImageUnavailable):
        await rest(await delivering.open(serve(png(MIB)[:-4] + b"\0\0\0\0")), sent)
    assert not b"".join(sent).endswith(b'"')


async def test_the_next_image_is_read_ahead_once_little_is_left(delivering: Delivering) -> None:
    """While the client takes the end of one, the next arrives in memory; no other is open."""
    images = [png(2 * MIB, seed=seed) for seed in range(3)]
    opened = await delivering.open(*map(serve, images))
    body = opened.body()
    sent = await anext(body)
    await asyncio.sleep(0.02)
    assert delivering.budget.free == delivering.budget.total
    assert delivering.rooms.answers.free == delivering.rooms.answers.total - ANSWER_BYTES
    assert delivering.connections() == 1

    while len(sent) < 1.5 * MIB:
        sent += await anext(body)
    await until(lambda: delivering.budget.free <= delivering.budget.total - 2 * MIB)
    assert delivering.connections() <= 2
    sent += b"".join([piece async for piece in body])
    assert sent == whole_answer(images, Size(1024, 1024))


async def test_who_rests_holds_no_connection(delivering: Delivering) -> None:
    """And goes on where it was, with what was read ahead."""
    images = [png(2 * MIB, seed=seed) for seed in range(2)]
    opened = await delivering.open(*map(serve, images))
    body = opened.body()
    sent = b""
    async for piece in body:
        sent += piece
        if len(sent) % 3 == 0:
            opened.rest()
            await until(lambda: delivering.connections() == 0)

    assert sent == whole_answer(images, Size(1024, 1024))
    assert len(delivering.host.asked) > 4


async def test_reading_ahead_leaves_half_of_its_room() -> None:
    """For answers that cannot do without, and for the image cache."""
    async with open_delivering(budget_bytes=4 * MIB) as delivering:
        opened = [await delivering.open(*[serve(png(MIB))] * 2) for _ in range(5)]
        bodies = [each.body() for each in opened]
        for body in bodies:
            await anext(body)
        await asyncio.sleep(0.1)

        assert 2 * MIB <= delivering.budget.free < 4 * MIB
        for body in bodies:
            await body.aclose()


@asynccontextmanager
async def room_for_answers(
    count: int, connections: int = 0
) -> AsyncIterator[tuple[Delivering, list[OpenDelivery]]]:
    """Room for so many answers and connections, and deliveries that have taken all of it."""
    async with open_delivering() as delivering:
        rooms = delivering.rooms
        rooms.answers.free = rooms.answers.total = count * ANSWER_BYTES
        if connections:
            rooms.connections.free = rooms.connections.total = connections * CONNECTION_BYTES
        opened = [await delivering.open(serve(png(MIB)), serve(png(MIB))) for _ in range(count)]
        yield delivering, opened
        for each in opened:
            await each.aclose()


async def test_there_is_no_room_for_more_answers_than_the_budget_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One too many waits without a connection; then it is refused."""
    monkeypatch.setattr("gateway.delivery.delivery.ROOM_S", 0.05)
    async with room_for_answers(2) as (delivering, _):
        with pytest.raises(ServiceUnavailable, match="no memory"):
            await delivering.open(serve(png(MIB)))
        assert delivering.connections() == 2


async def test_what_was_just_paid_for_waits_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.delivery.delivery.ROOM_S", 0.05)
    async with room_for_answers(1) as (delivering, [only]):
        url = delivering.host.add(serve(png(MIB)))
        opening = asyncio.create_task(
            delivering.delivery.open(
                ResultImages([url], fresh=True),
                delivering.framing,
                deadline=10.0,
                log=structlog.get_logger(),
            )
        )
        await asyncio.wait([opening], timeout=0.1)
        assert not opening.done()
        await only.aclose()
        await (await opening).aclose()


async def test_whoever_rests_makes_room_for_another_answer() -> None:
    async with room_for_answers(2) as (delivering, opened):
        cut = asyncio.Event()
        opened[1].on_cut = cut.set
        with opened[1].waits_for_client(MIB):
            opened[1]._readers._rests(opened[1])
            third = asyncio.create_task(delivering.open(serve(png(MIB))))
            await cut.wait()
        await opened[1].aclose()
        await (await third).aclose()
        assert [each.is_cut for each in opened] == [False, True]


async def test_who_begins_to_rest_while_somebody_waits_goes_at_once() -> None:
    async with room_for_answers(1) as (delivering, [only]):
        waiting = asyncio.create_task(delivering.open(serve(png(MIB))))
        await until(lambda: delivering.rooms.answers.is_short)
        with only.waits_for_client(MIB):
            only._readers._rests(only)
        assert only.is_cut
        await only.aclose()
        await (await waiting).aclose()


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_slow_client_s_connection_goes_to_who_waits_for_one(is_late: bool) -> None:
    async with room_for_answers(2, connections=1) as (delivering, [slow, other]):
        body, image = slow.body(), whole_answer([png(MIB)] * 2, Size(1024, 1024))
        sent = await anext(body)
        assert delivering.connections() == 1
        with slow.waits_for_client(MIB):
            if not is_late:
                slow._readers._is_slow(slow)
            received: list[bytes] = []
            reading = asyncio.create_task(rest(other, received))
            await until(lambda: delivering.rooms.connections.is_short or bool(received))
            if is_late:
                slow._readers._is_slow(slow)
            await reading
        assert b"".join(received) == image
        assert sent + b"".join([piece async for piece in body]) == image


async def test_many_answers_share_a_few_connections() -> None:
    async with room_for_answers(8, connections=2) as (delivering, opened):
        image = whole_answer([png(MIB)] * 2, Size(1024, 1024))
        most = 0

        async def read(each: OpenDelivery) -> bytes:
            nonlocal most
            sent = b""
            async for piece in each.body():
                sent += piece
                most = max(most, delivering.connections())
            return sent

        assert set(await asyncio.gather(*map(read, opened))) == {image}
        assert most <= 3


async def test_reading_ahead_stays_within_the_budget() -> None:
    """Of all requests together; with nothing to spare they still all arrive."""
    async with open_delivering(budget_bytes=12 * CONNECTION_BYTES) as delivering:
        lowest = delivering.budget.total
        images = [png(MIB, seed=seed) for seed in range(4)]

        async def one() -> bytes:
            nonlocal lowest
            opened = await delivering.open(*map(serve, images))
            sent = b""
            async for piece in opened.body():
                sent += piece
                lowest = min(lowest, delivering.budget.free)
                await asyncio.sleep(0)
            return sent

        answers = await asyncio.gather(*(one() for _ in range(5)))

        assert set(answers) == {whole_answer(images, Size(1024, 1024))}
        assert 0 <= lowest < delivering.budget.total


async def test_a_client_that_takes_nothing_costs_no_more_and_more(delivering: Delivering) -> None:
    """What aiohttp buffers for the image being sent is bounded too."""
    opened = await delivering.open(serve(png(8 * MIB - 1)))
    body = opened.body()
    await anext(body)
    await asyncio.sleep(0.05)

    [source] = opened._images
    response = source._download._response  # type: ignore[attr-defined]
    assert response.content._size < 512 * 1024
    await body.aclose()


async def test_each_event_is_whole_before_the_next_image_is_read(delivering: Delivering) -> None:
    """Its last piece closes it, so that a client has it at once; each says its own size."""

    def describe_event(b64_json: str, size: Size | None) -> ImageCompleted:
        return to_event("image_edit.completed", b64_json, created=CREATED, size=size)

    delivering.framing = in_events(describe_event)
    images = [png(300_000, 1024, 1536), png(1000, 1328, 1328)]

    opened = await delivering.open(*map(serve, images))
    pieces = [piece async for piece in opened.body()]

    assert [piece.endswith(b"\n\n") for piece in pieces].count(True) == 2
    events = [check_event(text) for text in b"".join(pieces).decode().split("\n\n")[:-1]]
    assert [b64decode(event["b64_json"]) for event in events] == images
    assert [event["size"] for event in events] == ["1024x1536", "auto"]
    assert sum(map(len, pieces)) == opened.content_length


async def test_closing_early_gives_everything_back(delivering: Delivering) -> None:
    """At once: read ahead, being read, or not begun."""
    opened = await delivering.open(*[serve(png(2 * MIB)) for _ in range(4)])
    body = opened.body()
    await anext(body)
    await asyncio.sleep(0.01)

    await body.aclose()

    assert delivering.is_at_rest()
    await opened.aclose()


async def test_a_delivery_that_nobody_reads_can_be_closed(delivering: Delivering) -> None:
    opened = await delivering.open(serve(png(MIB)), serve(png(MIB)))

    await opened.aclose()

    assert delivering.is_at_rest()


async def test_cancelling_gives_everything_back(delivering: Delivering) -> None:
    """While it waits for the host."""

    def half(_: Asked) -> Answer:
        return Answer(serve(png(2 * MIB))(_).raw[:MIB], "hang")

    opened = await delivering.open(half, serve(png(2 * MIB)))
    task = asyncio.create_task(rest(opened, []))
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait([task])

    assert delivering.is_at_rest()


async def test_the_clients_time_does_not_count(delivering: Delivering) -> None:
    """The deadline is for the image hosts; begun, they get a new one."""
    images = [png(2 * MIB), png(2 * MIB)]
    opened = await delivering.open(*map(serve, images), deadline=10.0)
    body = opened.body()
    sent = await anext(body)
    opened.begun()
    async for piece in body:
        sent += piece
        delivering.now += 100.0

    assert sent == whole_answer(images, Size(1024, 1024))


class Kept:
    """Somebody who wants whole images."""

    def __init__(self, max_bytes: int = MIB) -> None:
        self.images: dict[int, bytes] = {}
        self.missed: list[tuple[str, int]] = []
        self.sink = CopySink(self.receive, max_bytes, lambda *missed: self.missed.append(missed))

    async def receive(self, index: int, image: memoryview) -> None:
        self.images[index] = bytes(image)


async def test_images_can_be_kept(delivering: Delivering) -> None:
    """Each up to a size, raw, as soon as it is complete and verified."""
    kept = Kept(MIB)
    images = [png(MIB - 1), png(MIB + 1), png(500)]

    await delivering.send(*map(serve, images), copy_to=kept.sink)

    assert kept.images == {0: images[0], 2: images[2]}
    assert kept.missed == [("too_large", MIB + 1)]


async def test_a_damaged_image_is_not_kept(delivering: Delivering) -> None:
    kept = Kept()
    with pytest.raises(ImageUnavailable):
        await delivering.send(serve(png(MIB)[:-1] + b"x"), copy_to=kept.sink)
    assert kept.images == {}


async def test_keeping_waits_for_no_budget() -> None:
    """Where there is none, the image is sent all the same."""
    async with open_delivering(budget_bytes=MIB // 2) as delivering:
        kept = Kept()
        await delivering.send(serve(png(MIB)), serve(png(1000)), copy_to=kept.sink)
        assert list(kept.images) == [1]
        assert kept.missed == [("no_memory", MIB)]


async def test_images_of_unknown_length(delivering: Delivering) -> None:
    """They are held until their lengths are known; the answer declares its own all the same."""
    images = [png(MIB), png(MIB + 1), png(MIB + 2)]

    sent = await delivering.send(chunked(images[0]), serve(images[1]), chunked(images[2]))

    assert sent == whole_answer(images, Size(1024, 1024))


async def test_images_of_unknown_length_wait_for_each_other() -> None:
    """Requests that would together exceed the budget hold theirs one after the other."""
    async with open_delivering(budget_bytes=5 * MIB) as delivering:
        images = [png(2 * MIB, seed=seed) for seed in range(2)]
        answers = await asyncio.gather(*(delivering.send(*map(chunked, images)) for _ in range(4)))
        assert set(answers) == {whole_answer(images, Size(1024, 1024))}


async def test_images_of_unknown_length_that_never_fit() -> None:
    """An error, rather than to wait for what cannot be."""
    async with open_delivering(budget_bytes=3 * MIB) as delivering:
        with pytest.raises(ImageUnavailable, match="too large"):
            await delivering.open(chunked(png(2 * MIB)), chunked(png(2 * MIB)))


@pytest.mark.slow
async def test_waiting_for_the_budget_ends_with_the_deadline(delivering: Delivering) -> None:
    await delivering.budget.acquire(delivering.budget.total)
    with pytest.raises(ImageUnavailable, match="in time"):
        await delivering.open(chunked(png(MIB)), deadline=1.0)
    delivering.budget.release(delivering.budget.total)


def real_png(seed: int, side: int = 64) -> bytes:
    """One that Pillow can read."""
    file = BytesIO()
    Picture.new("RGB", (side, side), (seed * 40, 0, 99)).save(file, "PNG")
    return file.getvalue()


async def test_images_become_another_format(delivering: Delivering) -> None:
    """Downloaded, at hand, or of unknown length; copies stay what they were."""
    kept = Kept()
    images = [real_png(seed) for seed in range(3)]
    jpeg = Encoding("jpeg", 90)

    sent = await delivering.send(
        serve(images[0]), images[1], chunked(images[2]), copy_to=kept.sink, encoding=jpeg
    )

    answers = msgspec.json.decode(sent)["data"]
    made = [Picture.open(BytesIO(b64decode(each["b64_json"]))) for each in answers]
    assert [each.format for each in made] == ["JPEG"] * 3
    assert [round(each.getpixel((9, 9))[0] / 40) for each in made] == [0, 1, 2]  # type: ignore[index]
    assert kept.images == dict(enumerate(images))


async def test_one_that_cannot_be_converted_breaks_the_answer_off(delivering: Delivering) -> None:
    """Before the first byte it is an error like any other."""
    whole, damaged = real_png(1), png(2000)
    sent: list[bytes] = []
    with pytest.raises(ImageUnavailable, match="damaged"):
        await rest(await delivering.open(serve(damaged), encoding=Encoding("webp")), sent)
    assert sent == []
    opened = await delivering.open(serve(whole), serve(damaged), encoding=Encoding("webp"))
    with pytest.raises(ImageUnavailable, match="damaged"):
        await rest(opened, sent)
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(b"".join(sent))


async def test_many_conversions_and_little_memory_wait_for_nobody_in_vain() -> None:
    """With room for one block read ahead, and for one image converted."""
    async with open_delivering(budget_bytes=600_000) as delivering:
        side = 512
        images = [real_png(seed, side) + bytes(MIB // 4) for seed in range(4)]
        room = room_for(Size(side, side), max(map(len, images)))
        delivering.delivery.converter = Converter(4, room)

        answers = await asyncio.gather(
            *(delivering.send(*map(serve, images), encoding=Encoding("jpeg")) for _ in range(6))
        )

        assert len(set(answers)) == 1
        assert len(msgspec.json.decode(answers[0])["data"]) == 4

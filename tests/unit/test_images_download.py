"""Downloads over real connections to a host whose every byte is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf
from time import time

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import Images
from gateway.domain.catalogue import Size
from gateway.domain.clock import Clock
from gateway.domain.errors import ImageUnavailable
from gateway.upstream.download import ATTEMPTS, PROGRESS_BYTES, Deadline, Download
from gateway.upstream.images import ImageFetcher
from tests.image_host import (
    ETAG,
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

IMAGE = png(700_001)
WEAK = f"W/{ETAG}"


class Fetching:
    """A fetcher whose waits take no time, and are written down."""

    def __init__(self, host: ImageHost, timeout_s: float) -> None:
        config = Images(
            allowed_hosts=("127.0.0.1",), allow_http=True, max_bytes=2**20, timeout_s=timeout_s
        )
        self.host = host
        self.now = 0.0
        self.waits: list[float] = []
        clock = Clock(time, lambda: self.now, lambda: 0.0, self._sleep)
        self.fetcher = ImageFetcher(config, clock)

    async def open(self, *scripts: Script, deadline: float = inf, fresh: bool = False) -> Download:
        url = self.host.add(*scripts)
        until = Deadline(deadline, lambda: self.now)
        return await self.fetcher.open(url, until, structlog.get_logger(), fresh=fresh)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@asynccontextmanager
async def open_fetching(timeout_s: float = 20.0) -> AsyncIterator[Fetching]:
    async with image_host() as host:
        each = Fetching(host, timeout_s)
        yield each
        await each.fetcher.aclose()


@pytest.fixture
async def fetching() -> AsyncIterator[Fetching]:
    async with open_fetching() as each:
        yield each


async def read(download: Download) -> bytes:
    blocks = []
    while block := await download.read():
        blocks.append(block)
    assert await download.read() == b""
    return b"".join(blocks)


async def test_a_whole_image(fetching: Fetching) -> None:
    """Its length and size are known before it is read; the connection is used again."""
    download = await fetching.open(serve(IMAGE))

    assert (download.length, download.size) == (len(IMAGE), Size(1024, 1024))
    assert await read(download) == IMAGE
    again = await fetching.open(serve(IMAGE))
    assert fetching.host.connections == 1
    again.close()


async def test_what_travels(fetching: Fetching) -> None:
    """The signed path as it is, and nothing that identifies the gateway or a tenant."""
    download = await fetching.open(serve(IMAGE))

    [asked] = fetching.host.asked
    assert asked.target == "/0.png?Expires=1&Signature=a%2Bb%3D"
    assert {"host", "accept", "accept-encoding", "user-agent"} == set(asked.headers)
    assert asked.headers["accept-encoding"] == "identity"
    download.close()


async def test_a_break_is_resumed(fetching: Fetching) -> None:
    """From the byte that is missing, on condition that the image is the same."""
    download = await fetching.open(serve(IMAGE, sent=300_000), serve(IMAGE))

    assert await read(download) == IMAGE
    first, second = fetching.host.asked
    assert "range" not in first.headers
    assert 0 < second.start <= 300_000
    assert second.headers["if-match"] == ETAG
    assert len(fetching.waits) == 1


async def test_a_host_that_ignores_ranges(fetching: Fetching) -> None:
    """What came before is read again and skipped."""
    scripts = ignore_range(IMAGE, sent=300_000), ignore_range(IMAGE, sent=600_000)

    assert await read(await fetching.open(*scripts, ignore_range(IMAGE))) == IMAGE


async def test_a_host_that_sends_more_than_asked(fetching: Fetching) -> None:
    """A range that begins earlier is cut to fit."""

    def earlier(asked: Asked) -> Answer:
        start = asked.start - 1000
        place = f"bytes {start}-{len(IMAGE) - 1}/{len(IMAGE)}"
        return answer(206, IMAGE[start:], content_range=place)

    assert await read(await fetching.open(serve(IMAGE, sent=300_000), earlier)) == IMAGE


async def test_a_weak_etag_makes_no_condition(fetching: Fetching) -> None:
    """If-Match compares strongly, so a weak one would never match; it is compared here."""
    scripts = serve(IMAGE, sent=300_000, etag=WEAK), serve(IMAGE, etag=WEAK)

    assert await read(await fetching.open(*scripts)) == IMAGE
    assert "if-match" not in fetching.host.asked[-1].headers


def gone(_: Asked) -> Answer:
    return answer(404, b"")


def place(text: str, body: bytes = IMAGE) -> Script:
    return lambda _: answer(206, body, content_range=text)


CHANGED: dict[str, Script] = {
    "another length": serve(png(700_002)),
    "another whole image": ignore_range(png(700_002)),
    "another etag": serve(IMAGE, etag='"other"'),
    "precondition failed": lambda _: answer(412, b""),
    "range after the gap": place(f"bytes 650000-700000/{len(IMAGE)}"),
    "no content-range": place(""),
    "unknown total": place("bytes 1000-700000/*"),
    "not a range": place("700001"),
    "gone": gone,
    "expired": lambda _: answer(403, b""),
    "no such range": lambda _: answer(416, b""),
    "moved": lambda _: answer(302, b"", location="http://127.0.0.1:9/"),
    "encoded": serve(IMAGE, content_encoding="gzip"),
}


@pytest.mark.parametrize("name", CHANGED)
async def test_a_rest_that_does_not_fit_is_hopeless(name: str, fetching: Fetching) -> None:
    """Two halves of different images are never put together, and nothing is tried again."""
    download = await fetching.open(serve(IMAGE, sent=300_000), CHANGED[name])

    with pytest.raises(ImageUnavailable):
        await read(download)
    assert len(fetching.host.asked) == 2


async def test_more_than_the_range_promised(fetching: Fetching) -> None:
    def longer(asked: Asked) -> Answer:
        span = f"bytes {asked.start}-{len(IMAGE) - 1}/{len(IMAGE)}"
        return answer(206, IMAGE[asked.start :] + b"x", content_range=span)

    with pytest.raises(ImageUnavailable, match="damaged"):
        await read(await fetching.open(serve(IMAGE, sent=300_000), longer))


async def test_a_shorter_range_than_asked_is_resumed_too(fetching: Fetching) -> None:
    def some(asked: Asked) -> Answer:
        end = min(asked.start + 100_000, len(IMAGE))
        span = f"bytes {asked.start}-{end - 1}/{len(IMAGE)}"
        return answer(206, IMAGE[asked.start : end], content_range=span)

    scripts = serve(IMAGE, sent=300_000), some, some, serve(IMAGE)
    assert await read(await fetching.open(*scripts)) == IMAGE


async def test_an_image_that_does_not_end_is_damaged(fetching: Fetching) -> None:
    """Its last bytes are held back, so that nobody takes it for a whole one."""
    damaged = IMAGE[:-1] + b"x"
    download = await fetching.open(serve(damaged))
    blocks: list[bytes] = []

    async def read_on() -> None:
        while block := await download.read():
            blocks.append(block)

    with pytest.raises(ImageUnavailable, match="damaged"):
        await read_on()
    assert sum(map(len, blocks)) < len(damaged)
    download.close()


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_passing_failures_are_tried_again(status: int, fetching: Fetching) -> None:
    download = await fetching.open(lambda _: answer(status, b"busy"), serve(IMAGE))

    assert await read(download) == IMAGE


@pytest.mark.parametrize("status", [204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 410])
async def test_lasting_failures_are_not(status: int, fetching: Fetching) -> None:
    """A redirect above all: it would lead past the allow-list."""
    with pytest.raises(ImageUnavailable, match="any more"):
        await fetching.open(lambda _: answer(status, b"", location="http://127.0.0.1:9/x"))
    assert len(fetching.host.asked) == 1


NOT_THERE: dict[str, Script] = {
    "404": lambda _: answer(404, b"<Code>NoSuchKey</Code>"),
    "403": lambda _: answer(403, b"<Code>AccessDenied</Code><Message>denied</Message>"),
    "empty 404": lambda _: answer(404, b""),
}
EXPIRED = b"<Code>AccessDenied</Code><Message>Request has expired.</Message>"


@pytest.mark.parametrize("name", NOT_THERE)
async def test_a_new_image_may_not_be_there_yet(name: str, fetching: Fetching) -> None:
    """A host shows some images only seconds after the vendor has named them."""
    download = await fetching.open(*[NOT_THERE[name]] * 3, serve(IMAGE), fresh=True)

    assert await read(download) == IMAGE
    assert fetching.waits == [1.0, 2.0, 4.0]


async def test_a_new_image_may_vanish_for_a_moment(fetching: Fetching) -> None:
    """Another of the host's machines may not show it yet when the rest is asked for."""
    scripts = serve(IMAGE, sent=300_000), gone, serve(IMAGE)

    assert await read(await fetching.open(*scripts, fresh=True)) == IMAGE


async def test_a_new_image_that_never_comes(fetching: Fetching) -> None:
    """It is given up, but may be there for a retry."""
    with pytest.raises(ImageUnavailable) as caught:
        await fetching.open(gone, fresh=True)

    assert fetching.waits == [1.0, 2.0, 4.0]
    assert not caught.value.for_good


async def test_a_new_image_is_waited_for_within_the_deadline(fetching: Fetching) -> None:
    with pytest.raises(ImageUnavailable):
        await fetching.open(gone, fresh=True, deadline=4.0)
    assert fetching.waits == [1.0, 2.0]


@pytest.mark.parametrize("fresh", [True, False])
async def test_an_expired_address_is_final(fresh: bool, fetching: Fetching) -> None:
    with pytest.raises(ImageUnavailable) as caught:
        await fetching.open(lambda _: answer(403, EXPIRED), fresh=fresh)

    assert caught.value.for_good
    assert len(fetching.host.asked) == 1


@pytest.mark.parametrize("more", [b"\0", b"mark" * 100_000])
@pytest.mark.parametrize("script", [serve, chunked])
async def test_bytes_after_the_end_of_a_png(
    script: Callable[[bytes], Script], more: bytes, fetching: Fetching
) -> None:
    """Marks of provenance stand there; they are part of what was generated."""
    image = png(300_000) + more
    download = await fetching.open(script(image))
    if download.length is not None:
        assert await read(download) == image
        return
    buffer = Buffer()
    await download.read_all(buffer)
    assert b"".join(buffer.blocks) == image


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (ignore_range(b"<!doctype html>" + bytes(100)), "not a PNG"),
        (ignore_range(IMAGE[:30]), "not a PNG"),
        (ignore_range(b""), "not a PNG"),
        (ignore_range(png(2**20 + 1)), "larger than"),
        (ignore_range(IMAGE, content_encoding="gzip"), "encoded"),
        (chunked(b"<!doctype html>" + bytes(100)), "not a PNG"),
    ],
)
async def test_what_is_no_image_is_refused(
    script: Script, message: str, fetching: Fetching
) -> None:
    with pytest.raises(ImageUnavailable, match=message):
        await fetching.open(script)
    assert fetching.waits == []


async def test_it_gives_up(fetching: Fetching) -> None:
    """After so many attempts in a row, with waits that double up to a limit."""
    with pytest.raises(ImageUnavailable, match="could not be downloaded"):
        await fetching.open(lambda _: Answer(b"", "close"))

    assert fetching.waits == [0.4, 0.8, 1.6, 3.2]
    assert len(fetching.host.asked) >= ATTEMPTS


async def test_progress_starts_the_count_again(fetching: Fetching) -> None:
    """A long image on a bad line gets as many attempts as it needs."""
    image = png(2**20)
    step = PROGRESS_BYTES // 2
    cuts = [serve(image, sent=step) for _ in range(20)]

    assert await read(await fetching.open(*cuts, serve(image))) == image


async def test_a_silent_host_is_asked_again() -> None:
    """`timeout_s` is for one step, not for the whole image."""
    async with open_fetching(timeout_s=0.1) as fetching:

        def silent(asked: Asked) -> Answer:
            return Answer(b"", "hang")

        def soon_silent(asked: Asked) -> Answer:
            return Answer(serve(IMAGE)(asked).raw[:400_000], "hang")

        assert await read(await fetching.open(silent, soon_silent, serve(IMAGE))) == IMAGE
        assert len(fetching.host.asked) == 3


async def test_the_deadline_ends_it(fetching: Fetching) -> None:
    """No wait is begun that would outlast it."""
    with pytest.raises(ImageUnavailable):
        await fetching.open(lambda _: answer(503, b""), deadline=1.5)
    assert fetching.waits == [0.4, 0.8]


async def test_a_passed_deadline(fetching: Fetching) -> None:
    with pytest.raises(ImageUnavailable):
        await fetching.open(serve(IMAGE), deadline=0.0)
    assert fetching.waits == []


async def test_a_deadline_can_be_moved() -> None:
    now = 5.0
    deadline = Deadline(10.0, lambda: now)

    assert deadline.left_s() == 5.0
    deadline.extend(2.0)
    assert deadline.left_s() == 7.0
    deadline.restart(300.0)
    assert deadline.left_s() == 300.0


class Buffer:
    """Somewhere to put an image."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []

    async def add(self, block: bytes) -> None:
        self.blocks.append(block)

    def clear(self) -> None:
        self.blocks.clear()


async def test_an_image_of_unknown_length(fetching: Fetching) -> None:
    """It is read whole, from the start again if it breaks or is cut short; then it has a length."""
    scripts = [
        chunked(IMAGE),
        chunked(IMAGE, sent=300_000, ends=False),
        chunked(IMAGE[:400_000]),
        chunked(IMAGE),
    ]
    download = await fetching.open(*scripts[1:])
    assert (download.length, download.size) == (None, Size(1024, 1024))
    buffer = Buffer()

    await download.read_all(buffer)

    assert b"".join(buffer.blocks) == IMAGE
    assert download.length == len(IMAGE)
    assert await download.read() == b""


async def test_an_image_of_unknown_length_that_is_too_large(fetching: Fetching) -> None:
    download = await fetching.open(chunked(png(2**20 + 1)))

    with pytest.raises(ImageUnavailable, match="larger than"):
        await download.read_all(Buffer())
    download.close()


async def test_a_length_that_is_known_at_the_second_attempt(fetching: Fetching) -> None:
    download = await fetching.open(chunked(IMAGE, sent=300_000, ends=False), serve(IMAGE))
    buffer = Buffer()

    await download.read_all(buffer)

    assert b"".join(buffer.blocks) == IMAGE


async def test_a_cancelled_read_loses_nothing(fetching: Fetching) -> None:
    """Wherever it was interrupted: waiting for bytes, connecting anew, or skipping."""
    scripts = ignore_range(IMAGE, sent=200_000), ignore_range(IMAGE, sent=500_000)
    download = await fetching.open(*scripts, serve(IMAGE))
    received = b""
    for turns in range(2000):
        task = asyncio.ensure_future(download.read())
        for _ in range(turns % 60):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            received += task.result()
            if not task.result():
                break

    assert received == IMAGE


async def test_a_refused_address_is_never_asked(fetching: Fetching) -> None:
    with pytest.raises(ImageUnavailable, match="not allowed"):
        fetching.fetcher.check("http://localhost:1/x.png")
    with pytest.raises(ImageUnavailable):
        fetching.fetcher.check("https://a.aliyuncs.com/x.png")


KINDS = st.sampled_from([serve, ignore_range])
CUTS = st.lists(st.tuples(KINDS, st.floats(0, 1)), max_size=4)


@settings(max_examples=40)
@given(cuts=CUTS, last=KINDS, length=st.integers(69, 700_001))
def test_whatever_breaks_the_bytes_are_right(
    cuts: list[tuple[Callable[..., Script], float]], last: Callable[..., Script], length: int
) -> None:
    """Any cuts, from hosts that know ranges and hosts that do not."""
    image = png(length)

    async def check() -> None:
        async with open_fetching() as fetching:
            scripts = [make(image, sent=int(share * length)) for make, share in cuts]
            download = await fetching.open(*scripts, last(image))
            assert await read(download) == image

    asyncio.run(check())

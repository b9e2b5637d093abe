"""What a client sees of an answer that is written while its images download, and when it breaks."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from math import inf
from time import monotonic, time

import httpx
import msgspec
import pytest
import structlog
import uvicorn
from litestar import Litestar, post
from litestar.types import ASGIApp, Receive, Scope, Send
from PIL import Image as Picture

from gateway.api.errors import EXCEPTION_HANDLERS
from gateway.api.responses import Base64Answer, Events
from gateway.config import Images, Sending
from gateway.delivery import Delivery, Encoding, ResultImages, in_one_answer
from gateway.domain.catalogue import Size
from gateway.domain.clock import Clock
from gateway.domain.errors import ImageUnavailable
from gateway.observability.context import RequestContext, open_context
from gateway.protocol.openai import Image, ImagesResponse
from gateway.server.worker import http_config
from gateway.translate.response import to_openai
from gateway.upstream.images import ImageFetcher
from tests.image_host import Answer, Asked, ImageHost, Script, answer, image_host, png, serve
from tests.running import Logs

MIB = 1024 * 1024
IMAGE = png(8 * MIB)


def describe(images: list[Image], size: Size | None) -> ImagesResponse:
    return to_openai(images, created=1, size=size)


class Serving:
    """A server whose only answer is a delivery of given images."""

    def __init__(self, host: ImageHost, port: int) -> None:
        config = Images(allowed_hosts=("127.0.0.1",), allow_http=True)
        clock = Clock(time, monotonic, sleep=lambda _: asyncio.sleep(0))
        self.host = host
        self.port = port
        self.url = f"http://127.0.0.1:{port}/"
        self.fetcher = ImageFetcher(config, clock)
        self.use(Sending())
        self.images: list[str] = []
        self.given_up: list[bool] = []
        """Whether for good."""
        self.context = RequestContext("")
        self.encoding = Encoding()

    def use(self, sending: Sending) -> None:
        self.delivery = Delivery(self.fetcher, steady=monotonic, sending=sending)

    async def hopeless(self, error: ImageUnavailable) -> None:
        self.given_up.append(error.for_good)

    def deliver(self, *images: list[Script]) -> None:
        self.images = [self.host.add(*scripts) for scripts in images]

    def app(self) -> ASGIApp:
        @post("/", status_code=200)
        async def generate() -> Base64Answer:
            log = structlog.get_logger()
            opened = await self.delivery.open(
                ResultImages(self.images, encoding=self.encoding),
                in_one_answer(describe),
                deadline=inf,
                log=log,
            )
            events = Events(hopeless=self.hopeless)
            return Base64Answer(opened, {"x-gateway-model": "m"}, events)

        app = Litestar(
            [generate],
            exception_handlers=EXCEPTION_HANDLERS,
            openapi_config=None,
            logging_config=None,
        )

        async def with_exchange(scope: Scope, receive: Receive, send: Send) -> None:
            self.context = open_context(scope, "req_1")
            await app(scope, receive, send)

        return with_exchange

    def is_at_rest(self) -> bool:
        """Whether nothing is held for anybody."""
        connector = self.fetcher._session and self.fetcher._session.connector
        held = len(connector._acquired) if connector else 0
        rooms = self.delivery.rooms
        return held == 0 and rooms.are_free()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client that has asked, and takes little at a time."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
        await reader.readline()
        return reader, writer


@asynccontextmanager
async def running(app: Callable[[], ASGIApp], sock: socket.socket) -> AsyncIterator[None]:
    server = uvicorn.Server(http_config(app(), "off"))
    task = asyncio.create_task(server.serve(sockets=[sock]))
    yield
    server.should_exit = server.force_exit = True
    await task


@pytest.fixture
async def serving(logs: Logs) -> AsyncIterator[Serving]:
    del logs  # set up first
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with image_host() as host:
            each = Serving(host, sock.getsockname()[1])
            async with running(each.app, sock):
                yield each
                await until(each.is_at_rest)
            await each.fetcher.aclose()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as each:
        yield each


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another connection does."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a socket sets no event
            await asyncio.sleep(0.001)


async def test_an_answer(serving: Serving, client: httpx.AsyncClient) -> None:
    """With its exact length, and the handler's headers; the connection stays open."""
    serving.deliver([serve(IMAGE)], [serve(png(1000))])

    for _ in range(2):
        response = await client.post(serving.url)

        assert response.status_code == 200
        assert int(response.headers["content-length"]) == len(response.content)
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-gateway-model"] == "m"
        assert "transfer-encoding" not in response.headers
        assert "connection" not in response.headers
        assert len(msgspec.json.decode(response.content, type=ImagesResponse).data) == 2


def gone(_: Asked) -> Answer:
    return answer(404, b"")


async def test_hopeless_after_the_first_byte(
    serving: Serving, client: httpx.AsyncClient, logs: Logs
) -> None:
    """The client sees a broken connection, as it does when a server dies: never half an answer."""
    serving.deliver([serve(IMAGE)], [serve(IMAGE, sent=4 * MIB), gone])

    with pytest.raises(httpx.RemoteProtocolError, match="complete message body"):
        await client.post(serving.url)
    [line] = logs.named("delivery_broken_off")
    assert "any more" in line["cause"]
    assert serving.context.outcome == "image_unavailable"
    assert serving.given_up == [True]


def readable() -> bytes:
    """A PNG that Pillow can read."""
    file = BytesIO()
    Picture.new("RGB", (64, 64)).save(file, "PNG")
    return file.getvalue()


async def test_an_answer_in_another_format(serving: Serving, client: httpx.AsyncClient) -> None:
    """Without a length: HTTP/1.1 ends it by a chunk, HTTP/1.0 by the end of the connection."""
    serving.encoding = Encoding("jpeg")
    serving.deliver([serve(readable())], [serve(readable())])

    response = await client.post(serving.url)

    assert "content-length" not in response.headers
    assert len(msgspec.json.decode(response.content, type=ImagesResponse).data) == 2
    reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
    writer.write(b"POST / HTTP/1.0\r\ncontent-length: 0\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b"transfer-encoding" not in head.lower()
    assert body == response.content


async def test_one_that_cannot_be_converted_is_never_half_an_answer(
    serving: Serving, client: httpx.AsyncClient
) -> None:
    """Nor is its result forgotten: it can be had as it is."""
    serving.encoding = Encoding("jpeg")
    damaged = png(1000)
    serving.deliver([serve(readable())], [serve(damaged)])
    with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
        await client.post(serving.url)
    assert serving.given_up == [False]

    serving.deliver([serve(damaged)])
    response = await client.post(serving.url)

    assert (response.status_code, response.headers["x-should-retry"]) == (502, "false")
    assert "output_format" in response.json()["error"]["message"]


async def test_hopeless_before_the_first_byte(
    serving: Serving, client: httpx.AsyncClient, logs: Logs
) -> None:
    """An error like any other, even when the image was open already."""

    def soon_broken(asked: Asked) -> Answer:
        return Answer(serve(IMAGE, sent=24)(asked).raw, "close later")

    serving.deliver([soon_broken, gone])

    response = await client.post(serving.url)

    assert response.status_code == 502
    assert response.json()["error"]["code"] == "image_unavailable"
    assert response.headers["x-should-retry"] == "false"
    assert logs.named("image_download_broke")
    assert serving.given_up == [True]


async def test_a_client_that_hangs_up(serving: Serving, logs: Logs) -> None:
    """Its downloads end with it."""
    serving.deliver(*[[serve(IMAGE)]] * 4)
    _, writer = await serving.connect()
    assert not serving.is_at_rest()

    writer.transport.abort()

    await until(serving.is_at_rest)
    await until(lambda: logs.named("delivery_broken_off"))
    assert serving.context.outcome == "client_gone"


async def test_a_slow_client_is_waited_for(serving: Serving) -> None:
    """Not one byte is read from the image host that nobody has room for."""

    def then_hang(asked: Asked) -> Answer:
        return Answer(serve(IMAGE)(asked).raw, "hang")

    serving.deliver([then_hang])
    reader, writer = await serving.connect()
    await asyncio.sleep(0.3)
    assert not serving.is_at_rest()
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    received = 0
    while received < length:
        received += len(await reader.read(256 * 1024))
    assert received == length
    writer.close()


async def test_a_client_that_is_too_slow_is_given_up(serving: Serving, logs: Logs) -> None:
    """It would hold memory, and its tenant's place, for as long as it likes."""
    serving.use(Sending(grace_s=0.1, least_bytes_per_s=2**30))
    serving.deliver([serve(IMAGE)], [serve(IMAGE)])
    _, writer = await serving.connect()

    await until(lambda: logs.named("delivery_broken_off"))

    assert serving.context.outcome == "client_stalled"
    assert "sending.least_bytes_per_s" in logs.named("delivery_broken_off")[0]["cause"]
    await until(serving.is_at_rest)
    writer.transport.abort()

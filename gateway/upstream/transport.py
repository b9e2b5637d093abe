"""The connections to the vendor: httpx's interface over aiohttp's pool, directly or by a proxy.

aiohttp's own exceptions pass: they alone say whether a call can have left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, cast

import aiohttp
import httpx
import yarl
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import AsyncIterablePayload, BytesPayload

from gateway.config import Proxies, Proxy, Upstream
from gateway.upstream.proxy import DIRECT, log_refusal, request_headers, tunnel_headers

OpenSession = Callable[[], aiohttp.ClientSession]
SENT = "gateway.sent"
"""The request extension that is called when head and body are written."""
CHUNK_BYTES = 16 * 1024


class WhetherSent:
    """Notes when the body of one call is written."""

    __slots__ = ("_tell", "is_sent")

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self.is_sent = False

    def __call__(self) -> None:
        self.is_sent = True
        self._tell()


class Content(BytesPayload):
    """A body that reports when it is written."""

    def __init__(self, content: bytes, sent: Callable[[], None]) -> None:
        super().__init__(content)
        self._sent = sent

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        """aiohttp's: the head goes out with the body."""
        self._sent()
        await super().write_with_length(writer, content_length)


class StreamedContent(AsyncIterablePayload):
    """Read while it is written; the request's headers have its length."""

    def __init__(self, content: AsyncIterable[bytes], sent: Callable[[], None]) -> None:
        super().__init__(content)
        self._sent = sent

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        """aiohttp's: the head goes out with the first block."""
        self._sent()
        await super().write_with_length(writer, content_length)


def content_of(request: httpx.Request) -> Content | StreamedContent:
    sent = request.extensions[SENT]
    if isinstance(request.stream, httpx.ByteStream):
        return Content(request.content, sent)
    return StreamedContent(cast("AsyncIterable[bytes]", request.stream), sent)


class Answer(httpx.AsyncByteStream):
    """The body of an answer, as it comes."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.content.iter_chunked(CHUNK_BYTES):
            yield chunk

    async def aclose(self) -> None:
        self._response.release()


class Transport(httpx.AsyncBaseTransport):
    """A transport that can connect ahead of a request, also by a proxy."""

    def __init__(
        self, open_session: OpenSession, way: Proxy | None = None, scheme: str = ""
    ) -> None:
        self._open_session = open_session
        self._session: aiohttp.ClientSession | None = None
        self._way = way
        self._headers: dict[str, str] = {}
        self._tunnel_headers: dict[str, str] = {}
        if way is not None:
            self._headers = request_headers(way, scheme)
            self._tunnel_headers = tunnel_headers(way, scheme)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._open_session()
        return self._session

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Returns at the answer's head. Raises aiohttp.ClientError, OSError or TimeoutError."""
        timeout = request.extensions["timeout"]
        if self._way is not None:
            request.headers.update(self._headers)
            timeout = with_tunnel(timeout)
        try:
            response = await self._opened().request(
                request.method,
                str(request.url),
                headers=request.headers.multi_items(),
                data=content_of(request),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    sock_connect=timeout["connect"],
                    sock_read=timeout["read"],
                    connect=timeout["pool"],
                ),
                proxy=None if self._way is None else self._way.url,
                proxy_headers=self._tunnel_headers,
            )
        except aiohttp.ClientHttpProxyError as refusal:
            if self._way is not None:
                log_refusal(self._way, request.url.host, refusal.status)
            raise
        return httpx.Response(
            response.status, headers=response.raw_headers, stream=Answer(response)
        )

    async def connect(self, url: str, timeout_s: float) -> None:
        """Keep an idle connection ready. Raises aiohttp.ClientError, OSError or TimeoutError."""
        connector = self._opened().connector
        if connector is None:  # closed meanwhile
            return
        request = aiohttp.ClientRequest(
            "GET",
            yarl.URL(url),
            loop=asyncio.get_running_loop(),
            proxy=None if self._way is None else yarl.URL(self._way.url),
            proxy_headers=self._tunnel_headers,
        )
        timeout = aiohttp.ClientTimeout(connect=timeout_s, sock_connect=timeout_s)
        connection = await connector.connect(request, [], timeout)
        connection.release()

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


class RoutedTransport(httpx.AsyncBaseTransport):
    """One pool for each way out: directly, and through each proxy."""

    def __init__(self, open_session: OpenSession, proxies: Proxies) -> None:
        self._proxies = proxies
        self._open_session = open_session
        self._pools: dict[tuple[Proxy | None, str], Transport] = {}

    def _pool(self, url: str) -> Transport:
        way, scheme = self._proxies.find(url), url.partition(":")[0]
        if (way, scheme) not in self._pools:
            self._pools[way, scheme] = Transport(self._open_session, way, scheme)
        return self._pools[way, scheme]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._pool(str(request.url)).handle_async_request(request)

    async def connect(self, url: str, timeout_s: float) -> None:
        await self._pool(url).connect(url, timeout_s)

    async def aclose(self) -> None:
        for pool in self._pools.values():
            await pool.aclose()


def with_tunnel(timeout: dict[str, Any]) -> dict[str, Any]:
    """Bound connecting, CONNECT and TLS together: only the limit of the pool spans all three."""
    steps = 3
    return timeout | {"pool": steps * timeout["connect"]}


def open_transport(upstream: Upstream, proxies: Proxies = DIRECT) -> Transport | RoutedTransport:
    """The connection pool of a worker; opens inside the running loop."""

    def open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=upstream.max_connections, keepalive_timeout=upstream.keepalive_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )

    return RoutedTransport(open_session, proxies) if proxies.each() else Transport(open_session)

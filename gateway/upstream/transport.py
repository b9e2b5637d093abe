"""The connections to the vendor: httpx's interface over aiohttp's pool, directly or by a proxy.

The only file that imports httpx_aiohttp.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import aiohttp
import httpx
import yarl
from httpx_aiohttp import AiohttpTransport

from gateway.config import Proxies, Proxy, Upstream
from gateway.upstream.proxy import DIRECT, log_refusal, request_headers, tunnel_headers

OpenSession = Callable[[], aiohttp.ClientSession]
ON_THE_WIRE: ContextVar[Callable[[], None]] = ContextVar("on_the_wire")
"""Of the current call: told when its body is written. The transport offers no other way to pass it
to aiohttp, which writes a request in a task of its own that inherits this."""


class WhetherSent:
    """Of one call: told when its body is written, and remembers it."""

    __slots__ = ("_tell", "is_sent")

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self.is_sent = False

    def __call__(self) -> None:
        self.is_sent = True
        self._tell()


class Transport(AiohttpTransport):
    """One that can be told to connect before there is something to send, perhaps by a proxy."""

    def __init__(
        self, open_session: OpenSession, way: Proxy | None = None, scheme: str = ""
    ) -> None:
        super().__init__(client=open_session)
        self._way = way
        self._headers: dict[str, str] = {}
        self._tunnel_headers: dict[str, str] = {}
        if way is not None:
            self._headers = request_headers(way, scheme)
            self._tunnel_headers = tunnel_headers(way, scheme)
            self.proxy = httpx.Proxy(way.url, headers=self._tunnel_headers)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return once the head of its answer is there."""
        if self._way is None:
            return await super().handle_async_request(request)
        request.headers.update(self._headers)
        limit_tunnel(request)
        try:
            return await super().handle_async_request(request)
        except httpx.ProxyError as fault:
            if isinstance(fault.__cause__, aiohttp.ClientHttpProxyError):
                log_refusal(self._way, request.url.host, fault.__cause__.status)
            raise

    async def connect(self, url: str, timeout_s: float) -> None:
        """Have a connection to the host of `url` stand idle, opening one if there is none.

        Raises:
            aiohttp.ClientError, OSError, TimeoutError: it cannot be opened.
        """
        if not isinstance(self.client, aiohttp.ClientSession):
            self.client = self.get_client()
        connector = self.client.connector
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
        """As the way out does."""
        return await self._pool(str(request.url)).handle_async_request(request)

    async def connect(self, url: str, timeout_s: float) -> None:
        """As the way out does."""
        await self._pool(url).connect(url, timeout_s)

    async def aclose(self) -> None:
        """Close every pool."""
        for pool in self._pools.values():
            await pool.aclose()


def limit_tunnel(request: httpx.Request) -> None:
    """Have the time to connect hold for the proxy's answer to CONNECT and for TLS, too.

    Of the limits that can be set, only the one for a place in the pool spans all three.
    """
    timeout = request.extensions["timeout"]
    steps = 3
    request.extensions["timeout"] = timeout | {"pool": steps * timeout["connect"]}


def open_transport(upstream: Upstream, proxies: Proxies = DIRECT) -> Transport | RoutedTransport:
    """The connection pool that all calls of a worker share; it opens inside the running loop."""
    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(tell_sent)

    def open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            trace_configs=[trace],
            connector=aiohttp.TCPConnector(
                limit=upstream.max_connections, keepalive_timeout=upstream.keepalive_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
        )

    return RoutedTransport(open_session, proxies) if proxies.each() else Transport(open_session)


async def tell_sent(*_: Any) -> None:  # noqa: ANN401 - aiohttp's own
    """The head and body of a call go out together."""
    ON_THE_WIRE.get()()

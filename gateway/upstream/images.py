"""Fetching result images from allowed hosts: no key, no cookie, and no redirect is followed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cached_property, partial

import aiohttp
import structlog
from structlog.typing import FilteringBoundLogger
from yarl import URL

from gateway.config import Images, Proxies, Proxy
from gateway.domain.clock import Clock
from gateway.domain.errors import ImageHostsUnreachable, ImageUnavailable
from gateway.upstream.allow_list import AllowList, PrivateAddress, PublicResolver
from gateway.upstream.download import Deadline, Download, DownloadRetry
from gateway.upstream.proxy import ADVICE, DIRECT, log_refusal, request_headers, tunnel_headers

CONNECT_S = 10.0
LOOK_AGAIN_S = 30.0
MOST_HOSTS = 16
IDLE_BUFFER_BYTES = 32 * 1024
"""aiohttp stops reading a download that nobody reads at twice this; a reader raises it."""


PRIVATE = (
    "Images cannot be fetched: the gateway's name server gives image hosts private addresses. Its "
    "operator can allow them by `images.trusted_networks`; response_format `url` works as it is."
)


PROXY = (
    "Images cannot be fetched: the gateway's proxy does not let it through to image hosts. Its "
    "operator finds the reason in the log (`proxy_refused`); response_format `url` works as it is."
)
UNKNOWN = (
    "Images cannot be fetched: the gateway cannot connect to image hosts. Its operator finds the "
    "reason in the log; response_format `url` works as it is."
)
PROXY_AUTHENTICATION_REQUIRED = 407


class ImageFetcher:
    def __init__(self, images: Images, clock: Clock, proxies: Proxies = DIRECT) -> None:
        self._images = images
        self._allowed = AllowList(images)
        self._clock = clock
        self._proxies = proxies
        self._hosts = ImageHosts(self._reach, clock.steady)
        self._session: aiohttp.ClientSession | None = None

    def check(self, text: str) -> URL:
        """Raises ImageUnavailable if the URL may not be fetched, nor handed to a client."""
        url = self._allowed.parse(text)
        if url is None:
            message = "The image service returned an image address that is not allowed."
            raise ImageUnavailable(message, for_good=True)
        return url

    def checked(self, text: str) -> str:
        """The result URL for clients: https where plain HTTP is not allowed. Raises as `check`."""
        self.check(text)
        return self._allowed.secure(text)

    async def require_hosts(self) -> None:
        """Raises ImageHostsUnreachable. Call it before paying for images to be downloaded."""
        await self._hosts.require()

    async def open(
        self,
        text: str,
        deadline: Deadline,
        log: FilteringBoundLogger,
        *,
        fresh: bool = False,
        measured_only: bool = False,
    ) -> Download:
        """Begin a download, which the caller closes; `fresh`: the image was made just now.

        With `measured_only` its connection is let go until it is read. Raises ImageUnavailable: not
        allowed, not there, not a PNG, too large, or broken every time.
        """
        connect = partial(self._get, self.check(text))
        retry = DownloadRetry(deadline, self._images.timeout_s, self._clock, log, fresh=fresh)
        download = Download(connect, retry, self._images.max_bytes)
        try:
            await download.open(measured_only=measured_only)
        except BaseException:
            download.close()
            raise
        return download

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _get(self, url: URL, headers: dict[str, str]) -> aiohttp.ClientResponse:
        try:
            response = await self._send("GET", url, headers)
        except ImageHostsUnreachable as refused:
            self._hosts.block(str(url.origin()), refused.message)
            raise ImageUnavailable(refused.message) from refused
        self._hosts.unblock(str(url.origin()))
        return response

    @cached_property
    def _resolver(self) -> PublicResolver:
        """Made inside the running loop, as it needs one."""
        exempt = self._allowed.exempt | self._proxies.hosts()
        return PublicResolver(exempt, self._allowed.trusted)

    async def _reach(self, origin: str) -> None:
        """Ask a host for an image; its answer does not matter."""
        url = URL(f"{origin}/")
        try:
            async with asyncio.timeout(CONNECT_S):
                if self._proxies.find(origin) is None:
                    await self._resolver.resolve(url.raw_host or "")
                else:
                    (await self._send("HEAD", url, {})).close()
        except PrivateAddress as fault:
            log_private(fault)
            raise ImageHostsUnreachable(PRIVATE) from fault
        except (aiohttp.ClientError, OSError, TimeoutError) as fault:
            raise ImageHostsUnreachable(UNKNOWN) from fault

    async def _send(self, method: str, url: URL, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """One request, to the host or its proxy. Raises ImageHostsUnreachable for our network."""
        proxy = self._proxies.find(str(url))
        try:
            if proxy is not None:
                return await self._send_by(proxy, method, url, headers)
            return await self._open().request(method, url, headers=headers, allow_redirects=False)
        except aiohttp.ClientConnectorDNSError as fault:
            if isinstance(fault.os_error, PrivateAddress):
                log_private(fault.os_error)
                raise ImageHostsUnreachable(PRIVATE) from fault
            raise

    async def _send_by(
        self, proxy: Proxy, method: str, url: URL, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        try:
            response = await self._open().request(
                method,
                url,
                headers=headers | request_headers(proxy, url.scheme),
                allow_redirects=False,
                proxy=proxy.url,
                proxy_headers=tunnel_headers(proxy, url.scheme),
            )
        except aiohttp.ClientHttpProxyError as fault:
            require_way(proxy, url, fault.status)
            raise
        if response.status == PROXY_AUTHENTICATION_REQUIRED:
            response.close()
            require_way(proxy, url, response.status)
        return response

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=self._resolver, limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"accept": "image/png", "accept-encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                read_bufsize=IDLE_BUFFER_BYTES,
            )
        return self._session


def log_private(fault: PrivateAddress) -> None:
    """For the operator: which name leads where, and what to set if that is meant."""
    structlog.get_logger().error(
        "image_host_private",
        host=fault.host,
        addresses=fault.addresses,
        setting="images.trusted_networks",
    )


def require_way(proxy: Proxy, url: URL, status: int) -> None:
    """Raises ImageHostsUnreachable for a proxy that will go on refusing."""
    log_refusal(proxy, url.raw_host or "", status)
    if status in ADVICE:
        raise ImageHostsUnreachable(PROXY)


class ImageHosts:
    """Image hosts that cannot be reached from here: known before more is paid for.

    Private addresses or a strict proxy fail every download. After the first one, requests that
    need downloads are refused until `reach`, which raises ImageHostsUnreachable, gets through.
    """

    def __init__(
        self,
        reach: Callable[[str], Awaitable[None]],
        steady: Callable[[], float],
    ) -> None:
        self._reach = reach
        self._steady = steady
        self._blocked: dict[str, str] = {}
        """Messages for clients, by host."""
        self._look_at = 0.0

    def block(self, host: str, message: str) -> None:
        """A download from this host cannot even begin, because of our own network."""
        if len(self._blocked) < MOST_HOSTS or host in self._blocked:
            self._blocked[host] = message
        self._look_at = self._steady() + LOOK_AGAIN_S

    def unblock(self, host: str) -> None:
        """A download from this host has begun."""
        self._blocked.pop(host, None)

    async def require(self) -> None:
        """Raises ImageHostsUnreachable, which says what to set; costs nothing in the usual case."""
        if self._blocked and self._steady() >= self._look_at:
            self._look_at = self._steady() + LOOK_AGAIN_S  # others do not look meanwhile
            await self._look()
        for message in self._blocked.values():
            raise ImageHostsUnreachable(message)

    async def _look(self) -> None:
        for host in tuple(self._blocked):
            try:
                await self._reach(host)
            except ImageHostsUnreachable as error:
                self.block(host, error.message)
            else:
                self.unblock(host)

"""Fetching result images: from allowed hosts at public addresses only, whole and verified.

A result URL is untrusted: whoever could put one into an answer would otherwise make the gateway
read from inside its own network. The URL is used byte for byte, because its signature covers them,
and the same parsed object is checked and fetched, so that no two parsers can disagree on its host.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from contextlib import suppress

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from gateway.config import Images
from gateway.errors import UpstreamAmbiguous
from gateway.translate.response import PNG_HEADER_BYTES, png_size

ATTEMPTS = 4
FIRST_WAIT_S = 0.2
OK = 200
SERVER_ERROR = 500
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
PLAIN_URL = re.compile(r"[!-~]{1,4096}")


class ImageUnavailable(UpstreamAmbiguous):
    """An image was generated, and billed, but cannot be fetched."""

    code = "image_unavailable"


class Transient(Exception):
    """A download that may go better the next time."""


def is_public(address: str) -> bool:
    """Whether anybody can reach an IP address; one wrapped inside IPv6 is unwrapped first."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or nat64(ip) or ip
    return ip.is_global and not ip.is_multicast


def nat64(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address behind RFC 6052's well-known prefix."""
    if ip in ipaddress.IPv6Network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


class PublicResolver(AbstractResolver):
    """Resolves names, and refuses private addresses at the moment of connecting.

    The addresses it returns are the ones connected to, so a name cannot change its mind in between.
    """

    def __init__(self, exempt: frozenset[str]) -> None:
        self._exempt = exempt
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of `host`.

        Raises:
            OSError: there is none, or none that is public.
        """
        found = await self._resolver.resolve(host, port, family)
        if host in self._exempt:
            return found
        public = [result for result in found if is_public(result["host"])]
        if not public:
            raise OSError(f"{host} has no public address")
        return public

    async def close(self) -> None:
        """Nothing is held."""
        await self._resolver.close()


class ImageFetcher:
    """Checks and downloads result URLs."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._exact = frozenset(h for h in images.allowed_hosts if not h.startswith("."))
        self._suffixes = tuple(h for h in images.allowed_hosts if h.startswith("."))
        self._session: aiohttp.ClientSession | None = None

    def check(self, text: str) -> URL:
        """Parse a result URL.

        Raises:
            ImageUnavailable: it may not be fetched, nor handed to a client.
        """
        if PLAIN_URL.fullmatch(text):
            with suppress(ValueError):
                url = URL(text, encoded=True)
                if self._allows(url):
                    return url
        raise ImageUnavailable("The image service returned an image address that is not allowed.")

    def _allows(self, url: URL) -> bool:
        schemes = {"https", "http"} if self._images.allow_http else {"https"}
        host = url.host
        if (
            url.scheme not in schemes
            or not host
            or url.user is not None
            or url.password is not None
        ):
            return False
        if host in self._exact or f"{host}:{url.port}" in self._exact:
            return True
        return url.is_default_port() and not is_literal(host) and host.endswith(self._suffixes)

    async def fetch(self, text: str) -> bytes:
        """Download one image, a complete PNG of at most `max_bytes`.

        Raises:
            ImageUnavailable: not allowed, not there, not a PNG, too large, or broken every time.
        """
        url = self.check(text)
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(FIRST_WAIT_S * 2**attempt)
            try:
                async with asyncio.timeout(self._images.timeout_s):
                    return await self._download(url)
            except (Transient, aiohttp.ClientError, OSError, TimeoutError):
                continue
        raise ImageUnavailable("A generated image could not be downloaded from the image service.")

    async def _download(self, url: URL) -> bytes:
        async with self._open().get(url, allow_redirects=False) as response:
            if response.status >= SERVER_ERROR:
                raise Transient
            if response.status != OK:
                raise ImageUnavailable(
                    "The image service does not hold a generated image any more."
                )
            body = await self._read(response)
        if png_size(body[:PNG_HEADER_BYTES]) is None:
            raise ImageUnavailable("The image service returned something that is not a PNG image.")
        if not body.endswith(PNG_END):
            raise Transient
        return body

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._images.max_bytes
        body = bytearray()
        if (response.content_length or 0) <= limit:
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > limit:
                    break
            else:
                return bytes(body)
        raise ImageUnavailable(f"A generated image is larger than this gateway's {limit} bytes.")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            hosts = frozenset(host.rpartition(":")[0] or host for host in self._exact) | self._exact
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=PublicResolver(hosts), limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"accept": "image/png", "accept-encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=None),
            )
        return self._session

    async def aclose(self) -> None:
        """Close the pool."""
        if self._session is not None:
            await self._session.close()


def is_literal(host: str) -> bool:
    """Whether a host is an IP address, which no resolver would get to see."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

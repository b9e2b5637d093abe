"""Which addresses images may come from: an allow-list of hosts, at public addresses only.

A result URL is untrusted: whoever could put one into an answer would otherwise make the gateway
read from inside its own network. The URL is used byte for byte, because its signature covers them,
and the same parsed object is checked and fetched, so that no two parsers can disagree on its host.
"""

from __future__ import annotations

import ipaddress
import re
import socket

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from gateway.config import Images

PLAIN_URL = re.compile(r"[!-~]{1,4096}")
HOST_NAME = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*")
"""Letters, digits and hyphens only: readers disagree on what an escape in a host means."""

NEVER_PUBLIC = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "::/96",  # IPv4-compatible, long deprecated: leads to the IPv4 address inside
        "::ffff:0:0:0/96",  # the same by stateless translation, RFC 2765
        "64:ff9b:1::/48",  # the same by a network's own translation, RFC 8215
        "fec0::/10",  # site-local, which some networks still route
    )
)
"""What a release of Python or another takes to be global, and is not."""


class AllowList:
    """The hosts of the configuration."""

    def __init__(self, images: Images) -> None:
        hosts = images.allowed_hosts
        self._exact = frozenset(host for host in hosts if not host.startswith("."))
        self._suffixes = tuple(host for host in hosts if host.startswith("."))
        self._schemes = {"https", "http"} if images.allow_http else {"https"}
        self.exempt = frozenset(h.rpartition(":")[0] or h for h in self._exact) | self._exact
        """Hosts listed exactly, whose addresses need not be public."""

    def parse(self, text: str) -> URL | None:
        """The URL, if it may be fetched and handed to clients."""
        if PLAIN_URL.fullmatch(text) is None:
            return None
        try:
            url = URL(text, encoded=True)
            return url if self._allows(url) else None
        except ValueError:
            return None

    def _allows(self, url: URL) -> bool:
        host = url.host
        if url.scheme not in self._schemes or not host:
            return False
        if url.user is not None or url.password is not None:
            return False
        if host in self._exact or f"{host}:{url.port}" in self._exact:
            return True
        is_name = HOST_NAME.fullmatch(host) is not None and not is_literal(host)
        return url.is_default_port() and is_name and host.endswith(self._suffixes)


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


def is_public(address: str) -> bool:
    """Whether anybody can reach an IP address; one wrapped inside IPv6 is unwrapped first."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in NEVER_PUBLIC):
            return False
        ip = ip.ipv4_mapped or ip.sixtofour or nat64(ip) or ip
    return ip.is_global and not ip.is_multicast


def nat64(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address behind RFC 6052's well-known prefix."""
    if ip in ipaddress.IPv6Network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


def is_literal(host: str) -> bool:
    """Whether a host is an IP address, which no resolver would get to see."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

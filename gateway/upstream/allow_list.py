"""Which addresses images may come from: an allow-list of hosts, at public addresses only.

A result URL is untrusted: it could lead into our own network. It is used byte for byte, since its
signature covers the bytes; the checked object is fetched, so no two parsers can disagree.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from functools import lru_cache

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from gateway.config import Images

PLAIN_HTTP = re.compile(r"(?i:http)://([^/?#:@]+)(?::80)?([/?#].*)?")
"""Without a port of its own: what answers there need not speak TLS."""
PLAIN_URL = re.compile(r"[!-~]{1,4096}")
HOST_NAME = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*")
"""No escapes: parsers disagree on what one in a host means."""

NEVER_PUBLIC = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "::/96",  # IPv4-compatible, long deprecated: leads to the IPv4 address inside
        "::ffff:0:0:0/96",  # the same by stateless translation, RFC 2765
        "64:ff9b:1::/48",  # the same by a network's own translation, RFC 8215
        "fec0::/10",  # site-local, which some networks still route
    )
)
"""What some releases of Python take to be global, and is not."""


METADATA = frozenset(
    map(ipaddress.ip_address, ("169.254.169.254", "100.100.100.200", "fd00:ec2::254"))
)
"""Cloud credentials: no `trusted` network is meant to hold them."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class PrivateAddress(OSError):
    """A name leads into a network that is not `trusted`."""

    def __init__(self, host: str, addresses: Sequence[str]) -> None:
        super().__init__(f"{host} has no public address")
        self.host = host
        self.addresses = tuple(addresses)


class AllowList:
    def __init__(self, images: Images) -> None:
        hosts = images.allowed_hosts
        self._exact = frozenset(host for host in hosts if not host.startswith("."))
        self._suffixes = tuple(host for host in hosts if host.startswith("."))
        self._schemes = {"https", "http"} if images.allow_http else {"https"}
        self.trusted = tuple(map(ipaddress.ip_network, images.trusted_networks))
        self.exempt = frozenset(h.rpartition(":")[0] or h for h in self._exact) | self._exact
        """Hosts listed exactly, whose addresses need not be public."""

    def secure(self, text: str) -> str:
        """The same URL by https, unless plain HTTP is allowed; no signature covers the scheme."""
        found = None if "http" in self._schemes else PLAIN_HTTP.fullmatch(text)
        return text if found is None else f"https://{found[1]}{found[2] or ''}"

    def parse(self, text: str) -> URL | None:
        """The URL, by https, if it may be fetched and handed to clients."""
        if PLAIN_URL.fullmatch(text) is None:
            return None
        try:
            url = URL(self.secure(text), encoded=True)
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

    The returned addresses are connected to, so a name cannot change meanwhile. `exempt` hosts may
    be anywhere; the others at public addresses, or in the `trusted` networks.
    """

    def __init__(
        self,
        exempt: frozenset[str],
        trusted: Sequence[Network] = (),
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._exempt = exempt
        self._trusted = trusted
        self._resolver = resolver or aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises OSError for none, PrivateAddress for none that may be connected to."""
        found = await self._resolver.resolve(host, port, family)
        if host in self._exempt:
            return found
        allowed = [result for result in found if self._allows(result["host"])]
        if not allowed:
            raise PrivateAddress(host, [result["host"] for result in found])
        return allowed

    def _allows(self, address: str) -> bool:
        return is_public(address) or is_in(self._trusted, address)

    async def close(self) -> None:
        await self._resolver.close()


def is_public(address: str) -> bool:
    """IPv4 inside IPv6 is unwrapped first."""
    ip = read_address(address)
    if any(ip in network for network in NEVER_PUBLIC):
        return False
    ip = unwrapped(ip)
    return ip.is_global and not ip.is_multicast


def is_in(networks: Sequence[Network], address: str) -> bool:
    """As it stands or unwrapped."""
    ip = read_address(address)
    forms = {ip, unwrapped(ip)}
    if forms & METADATA:
        networks = [network for network in networks if network.num_addresses == 1]
    return any(form in network for form in forms for network in networks)


def read_address(text: str) -> Address:
    """Without its zone."""
    return ipaddress.ip_address(text.partition("%")[0])


def unwrapped(ip: Address) -> Address:
    """The IPv4 address inside an IPv6 one, if any."""
    if isinstance(ip, ipaddress.IPv6Address):
        return ip.ipv4_mapped or ip.sixtofour or nat64(ip) or ip
    return ip


def nat64(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address behind RFC 6052's well-known prefix."""
    if ip in ipaddress.IPv6Network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


@lru_cache(maxsize=1024)  # the vendor has few, and to find that one is none takes microseconds
def is_literal(host: str) -> bool:
    """An IP address, which no resolver would see."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

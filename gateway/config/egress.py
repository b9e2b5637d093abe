"""Which proxy leads out, and what is reached without one.

As most programs do: lower-case names first; HTTPS_PROXY and HTTP_PROXY go by the scheme of the URL,
ALL_PROXY covers both. In NO_PROXY `*` is everything, `example.com` and `.example.com` are that host
and all below it, and addresses and networks match hosts written as addresses.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Struct

from gateway.config.decode import Fault, Secret

HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
PORTS = {"http": 80, "https": 443}
PROXY_FORM = (
    "expected http://[user:password@]host[:port] or https://…; in user and password, : is %3A, "
    "/ is %2F, ? is %3F, # is %23, @ is %40 and % is %25"
)
NOT_READ = "`egress: {environment: false}` leaves it unread"
RULE_FORM = "expected a host, a .suffix, an address or a network, perhaps with a :port"


class Proxy(Struct, frozen=True):
    """A forward proxy. `setting` is where it is set, for messages."""

    url: str
    """Without user and password."""
    setting: str
    user: str = ""
    password: Secret = Secret("")

    def secrets(self) -> Iterator[str]:
        """The password, and the header that holds it."""
        password = self.password.reveal()
        if password:
            yield password
            yield b64encode(f"{self.user}:{password}".encode()).decode()


class Bypass(Struct, frozen=True):
    """What is reached directly: a host and those below it, or a network, perhaps at one port."""

    host: str | None = None
    network: str | None = None
    port: int | None = None

    def covers(self, host: str, port: int) -> bool:
        """`host` in lower case."""
        if self.port not in {None, port}:
            return False
        if self.network is not None:
            return holds(ip_network(self.network), host)
        return self.host is None or host == self.host or host.endswith(f".{self.host}")


class Proxies(Struct, frozen=True):
    """By the scheme of the URL."""

    https: Proxy | None = None
    http: Proxy | None = None
    bypasses: tuple[Bypass, ...] = ()

    def find(self, url: str) -> Proxy | None:
        """The proxy for a URL; None where it is reached directly."""
        if self.https is None and self.http is None:
            return None
        parts = urlsplit(url)
        proxy = self.https if parts.scheme == "https" else self.http
        host = (parts.hostname or "").rstrip(".")
        port = parts.port or PORTS.get(parts.scheme, 0)
        return None if any(each.covers(host, port) for each in self.bypasses) else proxy

    def hosts(self) -> frozenset[str]:
        """The proxies' own, which may be anywhere."""
        return frozenset(urlsplit(proxy.url).hostname or "" for proxy in self.each())

    def each(self) -> set[Proxy]:
        return {proxy for proxy in (self.https, self.http) if proxy is not None}


def holds(network: IPv4Network | IPv6Network, host: str) -> bool:
    """Whether a host is written as an address in the network."""
    try:
        ip = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        return ip in network or ip.ipv4_mapped in network
    return ip in network


def parse_proxy(text: str, setting: str) -> Proxy:
    """`host:port` alone is plain HTTP. Raises ValueError in words that do not show it."""
    text = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise ValueError(PROXY_FORM) from None
    if parts.scheme.startswith("socks"):
        raise ValueError(f"proxies that speak SOCKS are not supported; {PROXY_FORM}")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not is_proxy_url(text, parts) or ":" in user or not host:
        raise ValueError(PROXY_FORM)
    shown = f"[{host}]" if ":" in host else host
    url = f"{parts.scheme}://{shown}:{port or PORTS[parts.scheme]}"
    return Proxy(url, setting, user, Secret(password))


def is_proxy_url(text: str, parts: SplitResult) -> bool:
    """Whether a URL has the parts that a proxy's has, and no others."""
    is_plain = text.isascii() and text.isprintable() and " " not in text
    more = parts.path.strip("/") or parts.query or parts.fragment
    return is_plain and parts.scheme in PORTS and parts.port != 0 and not more


def parse_bypass(text: str) -> Bypass:
    """One rule of NO_PROXY. Raises ValueError."""
    name = text.strip().lower()
    if name == "*":
        return Bypass()
    name, port = split_port(name)
    try:
        return Bypass(network=str(ip_network(name, strict=False)), port=port)
    except ValueError:
        name = name.removeprefix("*").strip(".")
    if not HOST.fullmatch(name) or name.rpartition(".")[2].isdigit():
        raise ValueError(RULE_FORM)
    return Bypass(host=name, port=port)


def split_port(text: str) -> tuple[str, int | None]:
    """Colons inside an IPv6 address are not a port's."""
    if found := re.fullmatch(r"\[([^\[\]]*+)\](?::(\d{1,5}))?", text):
        return found[1], int(found[2]) if found[2] else None
    if found := re.fullmatch(r"([^:]*):(\d{1,5})", text):
        return found[1], int(found[2])
    return text, None


def from_environment(environment: Mapping[str, str], faults: list[Fault]) -> Proxies:
    """Unreadable rules are ignored."""
    return Proxies(
        https=proxy_of(environment, ("HTTPS_PROXY", "ALL_PROXY"), faults),
        http=proxy_of(environment, ("HTTP_PROXY", "ALL_PROXY"), faults),
        bypasses=tuple(readable(re.split(r"[,\s]+", value_of(environment, "NO_PROXY")[1]))),
    )


def proxy_of(
    environment: Mapping[str, str], names: tuple[str, str], faults: list[Fault]
) -> Proxy | None:
    """The proxy of the first variable that is set."""
    found, text = next(filter(any, (value_of(environment, name) for name in names)), ("", ""))
    if not text:
        return None
    try:
        return parse_proxy(text, found)
    except ValueError as unfit:
        fault = Fault(f"{found} of the environment", f"{unfit}; {NOT_READ}")
        faults.extend([fault] if fault not in faults else [])
        return None


def value_of(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    """A variable's name as it is set, and its value; an empty lower-case one counts, too."""
    for found in (name.lower(), name):
        if found in environment:
            return found, environment[found].strip()
    return "", ""


def readable(rules: Iterable[str]) -> Iterator[Bypass]:
    for rule in rules:
        try:
            yield parse_bypass(rule)
        except ValueError:
            continue

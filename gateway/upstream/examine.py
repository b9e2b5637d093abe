"""Whether the vendor, the proxies and the image hosts can be reached, without making an image."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver

from gateway.config import Account, Config, Images, Proxies, Proxy
from gateway.config.loading import region_of_account
from gateway.domain import foreign
from gateway.domain.findings import Finding
from gateway.protocol.dashscope import GenerationReply
from gateway.upstream.allow_list import AllowList, PrivateAddress, PublicResolver
from gateway.upstream.proxy import ADVICE, request_headers, tunnel_headers

WITHIN_S = 15.0
NO_TASK = "/tasks/00000000-0000-4000-8000-000000000000"
SKEW_NOTICED_S = 5.0
SKEW_HARMFUL_S = 60.0
"""A larger skew takes dead image URLs for alive, or the reverse, for too long."""
MOST_READ = 64 * 1024
NAMES = "mend the name, or this machine's name server; behind a proxy set egress.proxy"
RESULTS = {"cn-beijing": "dashscope-result-bj", "ap-southeast-1": "dashscope-result-sgp"}
"""Buckets in which results were seen; elsewhere the region's own address stands for them."""


LOCAL = frozenset(("127.0.0.1", "localhost", "::1"))
"""A simulator's results are on this machine, too."""


class Reply(NamedTuple):
    status: int
    server: str
    date: str
    body: bytes


class Unreached(Exception):
    """A host that gave no answer, and what to do."""

    def __init__(self, text: str, advice: str) -> None:
        super().__init__(text)
        self.text = text
        self.advice = advice


async def examine_proxies(proxies: Proxies) -> list[Finding]:
    ordered = sorted(proxies.each(), key=lambda proxy: proxy.url)
    return list(await asyncio.gather(*map(examine_proxy, ordered)))


async def examine_proxy(proxy: Proxy) -> Finding:
    parts = urlsplit(proxy.url)
    subject = f"proxy {parts.hostname}:{parts.port}"
    try:
        async with asyncio.timeout(WITHIN_S):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    except (OSError, TimeoutError) as fault:
        advice = f"start it, or change {proxy.setting}"
        return Finding(subject, f"cannot be connected to: {reason(fault)}", "fails", advice)
    writer.close()
    return Finding(subject, f"stands ({proxy.setting})")


async def examine_account(
    account: Account, proxies: Proxies, now: Callable[[], float]
) -> list[Finding]:
    """Its host, its clock and its key."""
    base, subject = account.base_url.rstrip("/"), f"account {account.name}"
    try:
        way = await way_to(base, proxies)
        reply = await ask(base + NO_TASK, proxies)
    except Unreached as fault:
        return [Finding(subject, fault.text, "fails", fault.advice)]
    found = [judge_host(subject, reply, way)]
    if found[0].state != "fails":
        found += judge_clock(subject, reply, now())
        found.append(await try_key(account, base, proxies))
    return found


async def way_to(url: str, proxies: Proxies) -> str:
    """How a host is reached, in words; directly, with its addresses. Raises Unreached for none."""
    parts = urlsplit(url)
    proxy = proxies.find(url)
    if proxy is not None:
        return f"{parts.hostname} by the proxy {urlsplit(proxy.url).netloc}"
    return f"{parts.hostname} ({', '.join(await addresses_of(parts.hostname or ''))})"


async def addresses_of(host: str) -> list[str]:
    try:
        async with asyncio.timeout(WITHIN_S):
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError) as fault:
        raise Unreached(f"{host} has no address: {reason(fault)}", NAMES) from None
    return sorted({str(each[4][0]) for each in found})


def judge_host(subject: str, reply: Reply, way: str) -> Finding:
    """A refused request without a key is as good as an answer."""
    server = f", server {reply.server[: foreign.CODE]}" if reply.server else ""
    answered = f"{way} answers {reply.status}{server}"
    if reply.status >= 500:
        return Finding(subject, answered, "fails", "ask again later: the service is not well")
    if reply.status == 407:
        return Finding(subject, answered, "fails", ADVICE[407])
    if reply.status < 400:
        advice = "look at base_url: DashScope refuses this request"
        return Finding(subject, answered, "fails", advice)
    return Finding(subject, answered)


def judge_clock(subject: str, reply: Reply, now: float) -> list[Finding]:
    """This machine's clock by the host's."""
    try:
        told = parsedate_to_datetime(reply.date).timestamp()
    except (ValueError, TypeError):
        return []
    skew_s = now - told
    ahead = "ahead of" if skew_s > 0 else "behind"
    text = f"this clock is {abs(skew_s):.0f} s {ahead} its host's"
    if abs(skew_s) > SKEW_HARMFUL_S:
        return [Finding(subject, text, "fails", "set the clock, best by NTP")]
    if abs(skew_s) > SKEW_NOTICED_S:
        return [Finding(subject, text, "warning", "set the clock, best by NTP")]
    return [Finding(subject, "this clock and its host's agree")]


async def try_key(account: Account, base: str, proxies: Proxies) -> Finding:
    """Ask for a task that does not exist: a valid key gets that answer, at no cost."""
    subject = f"account {account.name}"
    headers = {"authorization": f"Bearer {account.api_key.reveal()}"}
    try:
        reply = await ask(base + NO_TASK, proxies, headers)
    except Unreached as fault:
        return Finding(subject, fault.text, "fails", fault.advice)
    code = code_of(reply.body)
    if reply.status in {401, 403} and code:
        advice = "look at api_key, and whether it is one of this region"
        return Finding(subject, f"its key is refused: {code}", "fails", advice)
    if reply.status == 200:
        return Finding(subject, "its key is taken")
    text = f"its key cannot be tried at no cost: a free request is answered {reply.status}"
    return Finding(subject, text, "warning", "make one image to be sure")


def code_of(body: bytes) -> str:
    """Empty for none."""
    try:
        reply = msgspec.json.decode(body, type=GenerationReply)
    except msgspec.DecodeError:
        return ""
    return foreign.cut(reply.code or "", foreign.CODE)


async def examine_image_hosts(config: Config) -> list[Finding]:
    """Whether results could be downloaded: a host's address, and an answer."""
    allowed = AllowList(config.images)
    names = list(dict.fromkeys(image_hosts(config.images, config.accounts)))
    asked = (examine_image_host(name, config, allowed) for name in names)
    return list(await asyncio.gather(*asked))


def image_hosts(images: Images, accounts: Iterable[Account]) -> Iterable[str]:
    """Hosts that results may come from: those listed exactly, and one for each account's region."""
    yield from (host for host in images.allowed_hosts if not host.startswith("."))
    allowed = AllowList(images)
    for account in accounts:
        if urlsplit(account.base_url).hostname in LOCAL:
            continue
        region = region_of_account(account)
        bucket = RESULTS.get(region or "")
        host = ".".join(filter(None, (bucket, f"oss-{region}.aliyuncs.com")))
        if region and allowed.parse(f"https://{host}/") is not None:
            yield host


async def examine_image_host(host: str, config: Config, allowed: AllowList) -> Finding:
    schemes = ("https", "http") if config.images.allow_http else ("https",)
    subject, proxies = f"image host {host}", config.proxies
    is_listed = host in config.images.allowed_hosts
    if host in LOCAL:
        return Finding(subject, "is this machine")
    resolver = PublicResolver(allowed.exempt | proxies.hosts(), allowed.trusted)
    fault = Unreached("", "")
    for scheme in schemes:
        try:
            reply = await ask(f"{scheme}://{host}/", proxies, method="HEAD", resolver=resolver)
        except Unreached as failed:
            fault = failed
        else:
            return Finding(subject, f"answers {reply.status} by {scheme}")
    # One that is listed without its port may serve images at another than the usual.
    return Finding(subject, fault.text, "warning" if is_listed else "fails", fault.advice)


async def ask(
    url: str,
    proxies: Proxies,
    headers: dict[str, str] | None = None,
    *,
    method: str = "GET",
    resolver: AbstractResolver | None = None,
) -> Reply:
    """One request, as the gateway itself would send it. Raises Unreached."""
    proxy, parts = proxies.find(url), urlsplit(url)
    more = {} if proxy is None else request_headers(proxy, parts.scheme)
    connector = aiohttp.TCPConnector(resolver=resolver)
    try:
        async with (
            asyncio.timeout(WITHIN_S),
            aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
            session.request(
                method,
                url,
                headers=(headers or {}) | more | {"user-agent": "dashscope-image-gateway"},
                allow_redirects=False,
                proxy=proxy.url if proxy else None,
                proxy_headers=tunnel_headers(proxy, parts.scheme) if proxy else None,
            ) as response,
        ):
            body = await response.content.read(MOST_READ)
            told = response.headers
            return Reply(response.status, told.get("server", ""), told.get("date", ""), body)
    except (aiohttp.ClientError, OSError, TimeoutError) as fault:
        raise unreached(fault, parts.netloc, proxy) from None


def unreached(fault: Exception, place: str, proxy: Proxy | None) -> Unreached:
    """Why there was no answer, in words, and what to do."""
    cause = getattr(fault, "os_error", None)
    text = f"{place} cannot be reached: {reason(cause or fault)}"
    advice = f"open the way to {place}, or set egress.proxy"
    match fault:
        case aiohttp.ClientHttpProxyError():
            text = f"the proxy answers {fault.status} for {place}"
            advice = ADVICE.get(fault.status, "ask the proxy's operator for this host")
        case aiohttp.ClientProxyConnectionError() if proxy is not None:
            text, advice = "the proxy cannot be connected to", f"change {proxy.setting}"
        case _ if isinstance(cause, PrivateAddress):
            text = f"has private addresses: {', '.join(cause.addresses)}"
            advice = "add their network to images.trusted_networks if that is meant"
        case aiohttp.ClientConnectorCertificateError():
            text = f"{place} shows a certificate that is not trusted"
            advice = "set this clock; behind a proxy that opens TLS, set SSL_CERT_FILE to its CA"
        case aiohttp.ClientConnectorSSLError() | ssl.SSLError():
            text, advice = f"{place} does not speak TLS", "look at the scheme and the port"
        case aiohttp.ClientConnectorDNSError():
            text, advice = f"{place} has no address", NAMES
        case TimeoutError():
            text = f"{place} does not answer within {WITHIN_S:g} s"
    return Unreached(text, advice)


def reason(fault: BaseException) -> str:
    """The system's word for it, or the kind of the failure."""
    return getattr(fault, "strerror", None) or type(fault).__name__

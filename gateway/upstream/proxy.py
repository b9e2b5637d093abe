"""A forward proxy as aiohttp takes it, and what its refusals mean.

To a host of TLS it opens a tunnel (CONNECT), and is sent its credentials with that. A request to
one of plain HTTP goes to the proxy itself, and carries them.
"""

from __future__ import annotations

import aiohttp
import structlog

from gateway.config import Proxies, Proxy

DIRECT = Proxies()
AUTHORIZATION = "Proxy-Authorization"
ADVICE = {
    401: "the proxy does not take the user and password",
    403: "the proxy does not allow this host",
    407: "the proxy does not take the user and password",
}
"""The statuses by which a proxy says that it will go on refusing, and what they mean."""


def credentials(proxy: Proxy) -> dict[str, str]:
    """The header with its user and password, if it has any."""
    password = proxy.password.reveal()
    if not proxy.user and not password:
        return {}
    return {AUTHORIZATION: aiohttp.encode_basic_auth(proxy.user, password)}


def tunnel_headers(proxy: Proxy, scheme: str) -> dict[str, str]:
    """What the proxy alone is sent."""
    return credentials(proxy) if scheme == "https" else {}


def request_headers(proxy: Proxy, scheme: str) -> dict[str, str]:
    """What a request itself has to carry."""
    return {} if scheme == "https" else credentials(proxy)


def log_refusal(proxy: Proxy, host: str, status: int) -> None:
    """For the operator: what the proxy said, and where it was named."""
    structlog.get_logger().error(
        "proxy_refused",
        proxy=proxy.url,
        setting=proxy.setting,
        host=host,
        status=status,
        advice=ADVICE.get(status, "the proxy could not connect to this host"),
    )

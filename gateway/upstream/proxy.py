"""A forward proxy as aiohttp takes it, whose credentials go with CONNECT or the request."""

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
"""The statuses of a lasting refusal by a proxy, and what they mean."""


def credentials(proxy: Proxy) -> dict[str, str]:
    """The header with its user and password, if any."""
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
    """For the operator: the proxy's answer, and where the proxy is set."""
    structlog.get_logger().error(
        "proxy_refused",
        proxy=proxy.url,
        setting=proxy.setting,
        host=host,
        status=status,
        advice=ADVICE.get(status, "the proxy could not connect to this host"),
    )

"""GET and HEAD /healthz, /readyz and /metrics, for operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import structlog
from litestar import Request, Response
from litestar.handlers import HTTPRouteHandler
from litestar.types import Scope

from gateway.api.errors import read
from gateway.api.middleware import Readiness
from gateway.api.paths import unserved
from gateway.observability.metrics import CONTENT_TYPE, Metrics
from gateway.store.availability import Closable, StoreUnavailable

# What reverse proxies, load balancers and content networks put into what they pass on.
PASSED_ON = (
    *(b"forwarded", b"via", b"x-forwarded", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip"),
    *(b"x-original-", b"x-envoy-", b"cf-", b"cdn-loop", b"true-client-ip", b"fastly-", b"fly-"),
    *(b"x-amzn-trace-id", b"x-amz-cf-id", b"x-cloud-trace-context", b"x-azure-", b"x-appgw-"),
    *(b"x-arr-", b"x-proxyuser-ip", b"x-varnish"),
)
"""How their headers' names begin."""
MAPPED_BITS = 96
"""The prefix length of `::ffff:`, with which IPv6 writes IPv4 addresses."""
Network = IPv4Network | IPv6Network
log = structlog.get_logger()
NEVER = "The store has not done what this worker asked since its start. The log says why."


class ScriptCheck:
    """Whether the store runs scripts; one may answer PING and refuse them. Asked until it does."""

    def __init__(self, store: Closable) -> None:
        self._store = store
        self._has_passed = False

    async def refusal(self) -> str | None:
        """What is set up wrong, and what to do; None where nothing is, or the store is away."""
        if not self._has_passed:
            try:
                await self._store.probe()
            except StoreUnavailable as fault:
                return fault.advice or None
            self._has_passed = True
        return None


def health_routes(
    store: Closable,
    readiness: Readiness,
    degraded: Callable[[], dict[str, bool]],
    *,
    has_reached: Callable[[], bool],
) -> list[HTTPRouteHandler]:
    """`degraded`: functions that decide without the store; `has_reached`: it has ever answered."""
    scripts = ScriptCheck(store)
    reported = Reported()

    @read("/healthz")
    async def healthz() -> Response[dict[str, str]]:
        return Response({"status": "ok"})

    # A gateway without its store still serves, by its policy for that loss, so it stays ready:
    # taking every replica out of service would turn a partial failure into a whole one. One that
    # never had it may have a wrong password or address, and must not replace one that works.
    @read("/readyz")
    async def readyz() -> Response[dict[str, object]]:
        if readiness.draining:
            reported.change("draining")
            return Response({"status": "draining"}, status_code=503)
        refusal = await scripts.refusal()
        parts = {"store": await state_of(store) if refusal is None else "refuses scripts"}
        alone = {name for name, is_alone in degraded().items() if is_alone}
        parts |= dict.fromkeys(sorted(alone), "without the store")
        healthy = set(parts.values()) == {"ok"}
        if refusal is not None or (not healthy and not has_reached()):
            reported.change("unready")
            reason = NEVER if refusal is None else f"The store refuses scripts: {refusal}."
            body: dict[str, object] = {"status": "unready", "parts": parts, "reason": reason}
            return Response(body, status_code=503)
        status = "ready" if healthy else "degraded"
        reported.change(status)
        return Response({"status": status, "parts": parts})

    return [healthz, readyz]


def metrics_route(metrics: Metrics, allowed: Sequence[str] | None) -> HTTPRouteHandler:
    """/metrics, for direct peers in these networks; None allows all."""
    networks = None if allowed is None else [network_of(text) for text in allowed]

    @read("/metrics", include_in_schema=False)
    async def read_metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
        if networks is not None and not is_direct(request, networks):
            raise unserved(request.method, request.scope["path"])
        return Response(metrics.render(), headers={"content-type": CONTENT_TYPE})

    return read_metrics


def is_direct(request: Request[Any, Any, Any], networks: Sequence[Network]) -> bool:
    """Whether the client itself is in these networks, not a proxy for it."""
    peer = request.client.host if request.client else ""
    return not is_forwarded(request.scope) and any(is_in(peer, network) for network in networks)


async def state_of(store: Closable) -> str:
    try:
        await store.ping()
    except StoreUnavailable:
        return "unavailable"
    return "ok"


class Reported:
    """What /readyz said last: the log has a line for each change, and none for each probe."""

    def __init__(self) -> None:
        self._status: str | None = None

    def change(self, status: str) -> None:
        if status != self._status:
            log.info("readiness_changed", status=status, before=self._status)
            self._status = status


def is_forwarded(scope: Scope) -> bool:
    """Whether a proxy shows itself; anybody may be behind it.

    A proxy that adds no header is not detected, so proxies must deny the path themselves. nginx
    adds none by default, but then speaks HTTP/1.0, which Prometheus does not.
    """
    if scope["http_version"] != "1.1":
        return True
    return any(name.startswith(PASSED_ON) for name, _ in scope["headers"])


def network_of(text: str) -> Network:
    """IPv4 inside IPv6 is unwrapped."""
    network = ip_network(text)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < MAPPED_BITS:
        return network
    return ip_network((mapped, network.prefixlen - MAPPED_BITS))


def is_in(peer: str, network: Network) -> bool:
    """IPv4 inside IPv6 is unwrapped."""
    try:
        address = ip_address(peer)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address) in network

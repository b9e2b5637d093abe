"""Where a gateway listens, and for how long, as its file says."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest

from gateway.api.operations import is_in, network_of
from gateway.config import Listen
from gateway.server.supervisor import listen
from tests.operations.site import document, write
from tests.running import GatewayProcess
from tests.wire.talking import NEXT, Line

NO_VENDOR = "http://127.0.0.1:1/api/v1"
Serve = Callable[..., GatewayProcess]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    def with_settings(*arguments: str, **listen: object) -> GatewayProcess:
        content = document(NO_VENDOR, listen={"port": 0, **listen})
        return GatewayProcess.serving(write(tmp_path / "gateway.yaml", content), *arguments)

    return with_settings


@pytest.mark.slow
def test_all_of_ipv6_is_all_of_ipv4_too(serve: Serve) -> None:
    """And a peer of IPv4 is in the networks of IPv4, though its address is written as IPv6."""
    with serve(host="::") as gateway:
        port = gateway.url.rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            for path in ("/healthz", "/metrics"):
                answer = httpx.get(f"http://{host}:{port}{path}", trust_env=False)
                assert answer.status_code == 200, (host, path)


def test_without_ipv6_it_is_all_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a system whose kernel was started without it."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)

    with listen(Listen("::", 0)) as sock:
        assert sock.family == socket.AF_INET


@pytest.mark.parametrize(
    ("peer", "network", "is_inside"),
    [
        ("::ffff:10.1.2.3", "10.0.0.0/8", True),
        ("::ffff:11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "::ffff:10.0.0.0/104", True),
        ("::ffff:10.1.2.3", "::ffff:10.0.0.0/104", True),
        ("10.1.2.3", "::/0", False),
        ("fd00::1", "fd00::/8", True),
        ("fe80::1%eth0", "fe80::/10", True),
        ("", "0.0.0.0/0", False),
    ],
)
def test_an_address_is_in_a_network_however_it_is_written(
    peer: str, network: str, is_inside: bool
) -> None:
    assert is_in(peer, network_of(network)) is is_inside


def test_a_wider_network_stays_one_of_ipv6() -> None:
    assert network_of("::/64") == ip_network("::/64")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("--port", "0", "--host", "127.0.0.1")])
def test_a_kept_connection_lives_as_long_as_the_file_says(
    arguments: tuple[str, ...], serve: Serve
) -> None:
    """Whatever else the command says of the listener."""
    with serve(*arguments, keep_alive_s=0.3) as gateway, Line(gateway.url, 5) as line:
        line.send(NEXT)
        assert line.answer().status == 200
        assert line.rest() == b""


@pytest.mark.slow
def test_connections_are_held_to_what_the_file_says(serve: Serve) -> None:
    with serve(max_connections=1) as gateway, Line(gateway.url) as one:
        assert one.goes_on()
        with Line(gateway.url) as two:
            two.send(NEXT)
            assert two.answer().status == 503

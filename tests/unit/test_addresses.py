from __future__ import annotations

import socket
from ipaddress import ip_network
from typing import Any

import pytest

from gateway.config import Images
from gateway.upstream.allow_list import AllowList, PrivateAddress, PublicResolver, is_public
from tests.name_server import Names

RESULT = "https://dashscope-result-sh.oss-cn-shanghai.aliyuncs.com/1d/4f/x.png?Signature=a%2Bb%3D"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.0.0.1", False),
        ("100.100.100.200", False),  # the vendor's own metadata service
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("0.0.0.0", False),  # noqa: S104 - refused
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("64:ff9b:1::7f00:1", False),
        ("64:ff9b:1:ffff::808:808", False),
        ("::ffff:0:127.0.0.1", False),
        ("::ffff:0:8.8.8.8", False),
        ("::7f00:1", False),
        ("::8.8.8.8", False),
        ("fec0::1", False),
        ("feff::1", False),
        ("2002:7f00:1::", False),
        ("2002:808:808::", True),
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    """What is wrapped inside an IPv6 address counts as itself."""
    assert expected is is_public(address)


@pytest.mark.parametrize(
    "text",
    [
        RESULT,
        "https://a.aliyuncs.com/x.png",
        "https://a.aliyuncs.com:443/x.png",
        "https://A.ALIYUNCS.COM/x.png",
        "https://a.aliyuncs.com/%2e%2e/x.png?a=%00",
    ],
)
def test_allowed_urls(text: str) -> None:
    assert AllowList(Images()).parse(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x.png",
        "//a.aliyuncs.com/x.png",
        "http://a.aliyuncs.com:8080/x.png",
        "ftp://a.aliyuncs.com/x.png",
        "file:///etc/passwd",
        "https:///x.png",
        "https://aliyuncs.com.evil.example/x.png",
        "https://evilaliyuncs.com/x.png",
        "https://a.aliyuncs.com:8443/x.png",
        "https://a.aliyuncs.com:99999/x.png",
        "https://user@a.aliyuncs.com/x.png",
        "https://user:password@a.aliyuncs.com/x.png",
        "https://evil.example\\@a.aliyuncs.com/x.png",
        "https://evil.example#@a.aliyuncs.com/x.png",
        "https://evil.example?@a.aliyuncs.com/x.png",
        "https://[::1].aliyuncs.com/x.png",
        "https://[fe80::1%25.aliyuncs.com]/x.png",
        "https://10.0.0.1/x.png",
        "https://2130706433/x.png",
        "https://a.aliyuncs.com/\r\nhost: b",
        "https://a.aliyuncs.com/ x.png",
        "https://ä.aliyuncs.com/x.png",
        "https://a.aliyuncs.com/" + "x" * 4096,
    ],
)
def test_refused_urls(text: str) -> None:
    """Another scheme, port or host, a name and password, or anything that two could read apart."""
    assert AllowList(Images()).parse(text) is None


def test_a_url_is_fetched_byte_for_byte() -> None:
    """The signature covers its bytes."""
    url = AllowList(Images()).parse(RESULT)

    assert str(url) == RESULT


def test_exact_hosts() -> None:
    """With its port or with any; plain HTTP only where the configuration allows it."""
    images = Images(allowed_hosts=("minio.internal", "10.1.2.3:9000"), allow_http=True)
    allowed = AllowList(images)

    assert allowed.parse("http://minio.internal:9000/x.png")
    assert allowed.parse("http://10.1.2.3:9000/x.png")
    assert allowed.parse("http://10.1.2.3/x.png") is None
    assert allowed.parse("http://a.minio.internal/x.png") is None
    assert {"minio.internal", "10.1.2.3"} <= allowed.exempt


class DnsProbe:
    """A name server."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(self, host: str, port: int = 0, family: Any = None) -> list[dict[str, Any]]:
        return [{"hostname": host, "host": each, "port": port} for each in self.addresses]

    async def close(self) -> None:
        pass


def resolver(*addresses: str, exempt: str = "", trusted: str = "") -> PublicResolver:
    networks = [ip_network(each) for each in trusted.split()]
    return PublicResolver(frozenset({exempt}), networks, Names(*addresses))


async def test_private_addresses_of_a_name_are_not_connected_to() -> None:
    names = resolver("10.0.0.1", "8.8.8.8")

    found = await names.resolve("a.aliyuncs.com", 443, socket.AF_INET)

    assert [each["host"] for each in found] == ["8.8.8.8"]
    await names.close()


async def test_a_name_without_a_public_address_is_refused() -> None:
    """The connection fails before a byte is sent, and the error says where the name leads."""
    with pytest.raises(PrivateAddress) as caught:
        await resolver("10.0.0.1", "::1").resolve("a.aliyuncs.com")
    assert (caught.value.host, caught.value.addresses) == ("a.aliyuncs.com", ("10.0.0.1", "::1"))


async def test_a_host_listed_exactly_may_be_private() -> None:
    names = resolver("10.0.0.1", exempt="minio.internal")

    assert [each["host"] for each in await names.resolve("minio.internal")] == ["10.0.0.1"]


@pytest.mark.parametrize(
    ("trusted", "address"),
    [
        ("198.18.0.0/15", "198.18.0.7"),  # a fake-IP resolver's
        ("198.18.0.0/15", "198.19.255.255"),
        ("100.64.0.0/10", "100.100.2.136"),  # PrivateLink
        ("10.0.0.0/8", "10.1.2.3"),
        ("10.0.0.0/8", "::ffff:10.1.2.3"),
        ("10.0.0.0/8", "64:ff9b::a01:203"),  # behind NAT64
        ("64:ff9b:1::/48", "64:ff9b:1::808:808"),  # a network's own translation
        ("fd00::/8", "fd12:3456::1"),
        ("fd12:3456::/64", "fd12:3456::1%eth0"),
        ("192.0.2.0/24 10.0.0.0/8", "10.0.0.1"),
        ("100.100.100.200/32", "100.100.100.200"),  # named alone, it is meant
    ],
)
async def test_a_trusted_network_is_as_good_as_public(trusted: str, address: str) -> None:
    found = await resolver(address, trusted=trusted).resolve("a.aliyuncs.com")

    assert [each["host"] for each in found] == [address]


@pytest.mark.parametrize(
    ("trusted", "address"),
    [
        ("198.18.0.0/16", "198.19.0.1"),
        ("198.18.0.0/15", "10.0.0.1"),
        ("10.0.0.0/8", "fd00::1"),
        ("10.0.0.0/8", "64:ff9b::7f00:1"),
        ("fd00::/8", "::1"),
        ("100.64.0.0/10", "100.100.100.200"),  # the vendor's metadata service
        ("0.0.0.0/0 ::/0", "169.254.169.254"),
        ("0.0.0.0/0 ::/0", "::ffff:169.254.169.254"),
        ("0.0.0.0/0 ::/0", "fd00:ec2::254"),
    ],
)
async def test_other_private_networks_stay_refused(trusted: str, address: str) -> None:
    """Above all those where a cloud hands out credentials."""
    with pytest.raises(PrivateAddress):
        await resolver(address, trusted=trusted).resolve("a.aliyuncs.com")

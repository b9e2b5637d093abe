"""Which result URLs may be fetched or handed on, as the fetcher's own check decides."""

from __future__ import annotations

from time import monotonic, time

import pytest

from gateway.config import Images
from gateway.domain.clock import Clock
from gateway.domain.errors import ImageUnavailable
from gateway.upstream.images import ImageFetcher

HOST = "dashscope-result-bj.oss-cn-beijing.aliyuncs.com"
EVIL = "evil.example"


def is_allowed(url: str, *hosts: str, http: bool = False) -> bool:
    images = Images(allowed_hosts=hosts or (".aliyuncs.com",), allow_http=http)
    try:
        found = ImageFetcher(images, Clock(time, monotonic)).check(url)
    except ImageUnavailable:
        return False
    secured = url if http else url.replace("http:", "https:", 1)
    assert str(found) == secured or found.host == HOST
    return True


@pytest.mark.parametrize(
    "url",
    [
        f"https://{HOST}/7d/3f/20261122/9b1c22aa/x.png?Expires=1&OSSAccessKeyId=L&Signature=a%2Bb%2Fc%3D",
        f"https://{HOST}:443/x.png",
        f"HTTPS://{HOST.upper()}/x.png",
        f"https://{HOST}",
        f"https://{HOST}/?x=@{EVIL}",
        "https://dashscope-a717.oss-accelerate.aliyuncs.com/1d/x.png",
    ],
)
def test_the_vendor_s_own_form(url: str) -> None:
    assert is_allowed(url)


@pytest.mark.parametrize(
    "url",
    [
        # Another scheme, host or port.
        f"ftp://{HOST}/x.png",
        f"//{HOST}/x.png",
        f"{HOST}/x.png",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "data:image/png;base64,AAAA",
        "https:///x.png",
        "https://",
        f"https://{EVIL}/x.png",
        f"https://{HOST}:8443/x.png",
        f"https://{HOST}:0/x.png",
        f"https://{HOST}:-1/x.png",
        f"https://{HOST}:443443/x.png",
        # A host that only looks like it.
        f"https://{HOST}.{EVIL}/x.png",
        "https://aliyuncs.com.evil.example/x.png",
        "https://evilaliyuncs.com/x.png",
        "https://aliyuncs.com/x.png",
        "https://a.aliyuncs.com.cn/x.png",
        f"https://{EVIL}/.aliyuncs.com",
        f"https://{EVIL}?.aliyuncs.com",
        f"https://{EVIL}#.aliyuncs.com",
        # A host that two parsers could read apart.
        f"https://{EVIL}@{HOST}/x.png",
        f"https://user:password@{HOST}/x.png",
        f"https://{HOST}@{EVIL}/x.png",
        f"https://{EVIL}\\@{HOST}/x.png",
        f"https://{EVIL}\\.aliyuncs.com/x.png",
        f"https://{HOST}\\@{EVIL}/x.png",
        f"https:\\\\{HOST}/x.png",
        f"https:/{HOST}/x.png",
        f"https://{EVIL}%2f.aliyuncs.com/x.png",
        f"https://{EVIL}%00.aliyuncs.com/x.png",
        f"https://{EVIL}%23.aliyuncs.com/x.png",
        f"https://{EVIL};.aliyuncs.com/x.png",
        # Characters that no URL has.
        f"https://{HOST}/x.png\r\nhost: {EVIL}",
        f"https://{HOST}/x y.png",
        f" https://{HOST}/x.png",
        f"https://{HOST}/\t",
        f"https://{HOST}\u2024{EVIL}/x.png",
        "https://a.aliyuncs\u3002com/x.png",
        "https://ⓐ.aliyuncs.com/x.png",
        "https://еvil.aliyuncs.com/x.png",
        "https://a.aliyuncs.com\u202e/x.png",
        # Addresses, in any spelling.
        "https://127.0.0.1/x.png",
        "https://2130706433/x.png",
        "https://0x7f000001/x.png",
        "https://0177.0.0.1/x.png",
        "https://127.1/x.png",
        "https://0/x.png",
        "https://169.254.169.254/latest/meta-data/",
        "https://100.100.100.200/latest/meta-data/",
        "https://[::1]/x.png",
        "https://[::ffff:127.0.0.1]/x.png",
        "https://[64:ff9b::7f00:1]/x.png",
        "https://[2002:7f00:1::]/x.png",
        "https://[fe80::1%25eth0]/x.png",
        "https://[::1%25.aliyuncs.com]/x.png",
        "https://[::1].aliyuncs.com/x.png",
        "https://localhost/x.png",
        "https://metadata.google.internal/",
        # Nothing at all.
        "",
        "x",
        f"https://{HOST}/" + "x" * 5000,
    ],
    ids=repr,
)  # fmt: skip
def test_anything_else_is_refused(url: str) -> None:
    assert not is_allowed(url)


@pytest.mark.parametrize(
    ("rest", "secured"),
    [
        (
            "/1d/x.png?Expires=1&Signature=a%2Bb%2Fc%3D",
            "/1d/x.png?Expires=1&Signature=a%2Bb%2Fc%3D",
        ),
        (":80/x.png", "/x.png"),
        ("/x:80.png?a=http://b:80/", "/x:80.png?a=http://b:80/"),
        ("?x=1", "?x=1"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "HTTP"])
def test_plain_http_becomes_https(scheme: str, rest: str, secured: str) -> None:
    """For the fetcher and for clients; no signature covers the scheme."""
    fetcher = ImageFetcher(Images(), Clock(time, monotonic))

    assert fetcher.checked(f"{scheme}://{HOST}{rest}") == f"https://{HOST}{secured}"
    assert str(fetcher.check(f"{scheme}://{HOST}{rest}")).startswith(f"https://{HOST}")


@pytest.mark.parametrize(
    "url",
    [
        f"http://{HOST}:8080/x.png",
        f"http://user@{HOST}/x.png",
        f"http://{EVIL}/x.png",
        f"http://{EVIL}#@{HOST}/x.png",
        "http://[::1]/x.png",
        "http://127.0.0.1/x.png",
    ],
)
def test_plain_http_of_other_hosts_stays_refused(url: str) -> None:
    assert not is_allowed(url)


def test_plain_http_stays_where_it_is_allowed() -> None:
    fetcher = ImageFetcher(Images(allow_http=True), Clock(time, monotonic))

    assert fetcher.checked(f"http://{HOST}/x.png") == f"http://{HOST}/x.png"


@pytest.mark.parametrize("spelling", [f"{HOST}.", f"{HOST}..", f".{HOST}", "..aliyuncs.com"])
def test_dots_too_many(spelling: str) -> None:
    """With a final dot it is the same name to DNS, and another one to certificates and signers."""
    assert not is_allowed(f"https://{spelling}/x.png")


@pytest.mark.parametrize(
    ("url", "hosts", "http", "allowed"),
    [
        ("http://minio:9000/x.png", ("minio",), True, True),
        ("http://minio:9000/x.png", ("minio:9000",), True, True),
        ("http://minio:9001/x.png", ("minio:9000",), True, False),
        ("http://minio/x.png", ("minio:9000",), True, False),
        ("http://minio/x.png", ("minio",), False, True),
        ("http://minio:9000/x.png", ("minio:9000",), False, False),
        ("https://minio/x.png", ("minio",), False, True),
        ("http://127.0.0.1:8090/x.png", ("127.0.0.1",), True, True),
        ("http://127.0.0.2:8090/x.png", ("127.0.0.1",), True, False),
        ("http://2130706433/x.png", ("127.0.0.1",), True, False),
        ("http://127.1/x.png", ("127.0.0.1",), True, False),
        ("http://[::1]:8090/x.png", ("::1",), True, True),
        ("http://10.0.0.1/x.png", (".0.0.1",), True, False),
        ("http://a.minio/x.png", ("minio",), True, False),
        ("ftp://minio/x.png", ("minio",), True, False),
        ("http://user@minio/x.png", ("minio",), True, False),
        ("https://cdn.example/x.png", (".aliyuncs.com", "cdn.example"), False, True),
        ("https://a.cdn.example/x.png", ("cdn.example",), False, False),
        ("https://a.cdn.example/x.png", (".cdn.example",), False, True),
        ("https://a.b.cdn.example/x.png", (".cdn.example",), False, True),
    ],
)  # fmt: skip
def test_the_hosts_of_the_configuration(
    url: str, hosts: tuple[str, ...], http: bool, allowed: bool
) -> None:
    """Exact hosts with or without a port, suffixes on the default port; plain HTTP if told so."""
    assert is_allowed(url, *hosts, http=http) is allowed

"""Addresses of Redis: every form that is documented, and what is none, said without a secret."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.redis_url import SCHEMES, RedisUrl, parse, passwords
from tests.running import ROOT

PASSWORD = "S3CRET"


def address(**parts: Any) -> RedisUrl:
    """One that has only these parts."""
    nothing: dict[str, Any] = {
        "socket": None, "hosts": (), "service": None, "is_cluster": False, "db": 0,
        "username": None, "password": None, "sentinel_username": None,
        "sentinel_password": None, "tls": False, "tls_options": {},
    }  # fmt: skip
    return RedisUrl(**{**nothing, **parts})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://cache.example", address(hosts=(("cache.example", 6379),))),
        ("redis://h:7000/3", address(hosts=(("h", 7000),), db=3)),
        ("redis://h?db=3", address(hosts=(("h", 6379),), db=3)),
        ("redis://:pw@[::1]:6380/", address(hosts=(("::1", 6380),), password="pw")),
        (
            "rediss://me:p%2Fw%40@h/0?ssl_ca_certs=%2Fca.pem&ssl_check_hostname=false",
            address(
                hosts=(("h", 6379),), username="me", password="p/w@", tls=True,
                tls_options={"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False},
            ),
        ),
        ("unix:///run/redis.sock?db=2", address(socket="/run/redis.sock", db=2)),
        (
            "unix://me:pw@/run/redis.sock",
            address(socket="/run/redis.sock", username="me", password="pw"),
        ),
        (
            "redis+sentinel://one:26380,two/main/4",
            address(hosts=(("one", 26380), ("two", 26379)), service="main", db=4),
        ),
        ("rediss+sentinel://one/main", address(hosts=(("one", 26379),), service="main", tls=True)),
        (
            "redis+sentinel://:pw@one/main?sentinel_username=s&sentinel_password=p%2Bw&db=1",
            address(
                hosts=(("one", 26379),), service="main", db=1, password="pw",
                sentinel_username="s", sentinel_password="p+w",
            ),
        ),
        (
            "redis+cluster://pw@x@one:7000,two",
            address(hosts=(("one", 7000), ("two", 6379)), is_cluster=True, username="pw@x"),
        ),
        (
            "rediss+cluster://one/0?ssl_cert_reqs=none",
            address(
                hosts=(("one", 6379),), is_cluster=True, tls=True,
                tls_options={"ssl_cert_reqs": "none"},
            ),
        ),
    ],
)  # fmt: skip
def test_an_address_is_taken_apart(url: str, expected: RedisUrl) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://h", "expected one of redis://, rediss://, unix://"),
        ("redis:/h", "expected one of redis://"),
        ("127.0.0.1:6379", "expected one of redis://"),
        ("redis://h\n", "no spaces and no line ends"),
        ("redis://", "expected a host"),
        ("redis://:pw@", "expected a host"),
        ("redis://h:0", "port from 1 to 65535"),
        ("redis://h:65536", "port from 1 to 65535"),
        ("redis://h:abc", "port from 1 to 65535"),
        ("redis://[::1", "hosts that can be read"),
        ("redis://one,two", "expected one host; several are redis+sentinel:// or redis+cluster://"),
        ("redis://h/abc", "one number for the database"),
        ("redis://h/-1", "one number for the database"),
        ("redis://h/1/2", "one number for the database"),
        ("redis://h/1?db=2", "one number for the database"),
        ("redis://h?db=", "expected a value for db"),
        ("redis://h?foo=1", "expected no options but db, ssl_ca_certs,"),
        ("redis://h?socket_timeout=9", "expected no options but db, ssl_ca_certs,"),
        ("redis://h?sentinel_password=pw", "expected no options but db, ssl_ca_certs,"),
        (
            "redis+sentinel://h/main?a=b",
            "options but db, sentinel_username, sentinel_password, ssl_",
        ),
        ("redis://h?foo", "expected options as name=value"),
        ("redis://h?ssl_ca_certs=/ca.pem", "expected a scheme with TLS"),
        ("rediss://h?ssl_cert_reqs=maybe", "expected none or optional or required"),
        ("rediss://h?ssl_check_hostname=2", "expected true or false for ssl_check_hostname"),
        ("redis://:a/b@h", "port from 1 to 65535; in a password, / is %2F"),
        ("redis://:a?b@h", "expected options as name=value; in a password, / is %2F, ? is %3F"),
        ("redis://:a#b@h", "expected no #; in a password, / is %2F, ? is %3F, # is %23"),
        ("unix://", "expected a path from the root: unix:///path/to.sock"),
        ("unix:///", "expected a path from the root"),
        ("unix://run/redis.sock", "expected a path from the root"),
        ("unix:///run/redis.sock?db=a", "one number for the database"),
        ("redis+sentinel://one", "expected the name of the service"),
        ("redis+sentinel://one/main/a", "one number for the database"),
        ("redis+sentinel://one/main/0/1", "one number for the database"),
        ("redis+sentinel://one,/main", "expected a host"),
        ("redis+cluster:///0", "expected a host"),
        ("redis+cluster://h/3", "expected no database but 0, which is all that a cluster has"),
        ("redis+cluster://h/main", "one number for the database"),
    ],
)
def test_what_is_no_address_is_said(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse(url)


def test_every_password_is_known_as_written_and_as_meant() -> None:
    url = "redis+sentinel://me:p%2Fw@h/main?sentinel_password=s%2Fp+x&db=1"
    assert set(passwords(url)) == {"p%2Fw", "p/w", "s%2Fp+x", "s/p+x", "s/p x"}
    assert not list(passwords("redis://h/1"))


@given(
    scheme=st.sampled_from(SCHEMES),
    parts=st.lists(st.sampled_from([*"@:/?#,[]=&%. 0", "h", "db", "ö", PASSWORD]), max_size=12),
)
def test_whatever_is_wrong_no_part_is_repeated(scheme: str, parts: list[str]) -> None:
    """A password whose signs are not escaped ends up anywhere."""
    url = f"{scheme}://{''.join(parts)}"
    with contextlib.suppress(ValueError):
        parse(url)
        return
    with pytest.raises(ValueError, match=r"^expected") as caught:
        parse(url)
    assert PASSWORD not in str(caught.value)


def test_every_form_is_documented_with_an_example() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    examples = re.findall(r"\| `([a-z+]+://[^`…]+)` \|$", text, re.MULTILINE)
    assert {example.partition("://")[0] for example in examples} == set(SCHEMES)
    for example in examples:
        parse(example)

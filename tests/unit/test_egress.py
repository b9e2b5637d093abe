"""Which proxy leads out, by the environment and by the file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Config, Egress, Proxies, with_proxies
from gateway.config.decode import Fault, Secret
from gateway.config.egress import parse_bypass, parse_proxy

VENDOR = "https://dashscope-intl.aliyuncs.com/api/v1"
IMAGE = "https://dashscope-result-bj.oss-cn-beijing.aliyuncs.com/1d/x.png?Signature=a%2Fb"


def proxies(variables: dict[str, str], **egress: object) -> tuple[Proxies, list[str]]:
    faults: list[Fault] = []
    config = Config(accounts=(), tenants=(), egress=Egress(**egress))  # type: ignore[arg-type]
    return with_proxies(config, variables, faults).proxies, list(map(str, faults))


def way(url: str, variables: dict[str, str], **egress: object) -> str | None:
    found, faults = proxies(variables, **egress)
    assert faults == []
    proxy = found.find(url)
    return None if proxy is None else proxy.url


@pytest.mark.parametrize(
    ("environment", "url", "expected"),
    [
        ({}, VENDOR, None),
        ({"HTTPS_PROXY": "http://p:3128"}, VENDOR, "http://p:3128"),
        ({"HTTPS_PROXY": "http://p:3128/"}, IMAGE, "http://p:3128"),
        ({"https_proxy": "http://p:3128"}, VENDOR, "http://p:3128"),
        ({"https_proxy": "http://low", "HTTPS_PROXY": "http://up"}, VENDOR, "http://low:80"),
        ({"https_proxy": "", "HTTPS_PROXY": "http://up"}, VENDOR, None),
        ({"HTTPS_PROXY": "p:3128"}, VENDOR, "http://p:3128"),
        ({"HTTPS_PROXY": "https://p"}, VENDOR, "https://p:443"),
        ({"HTTPS_PROXY": "http://[fd00::1]:3128"}, VENDOR, "http://[fd00::1]:3128"),
        ({"HTTPS_PROXY": " http://p:3128 "}, VENDOR, "http://p:3128"),
        ({"HTTP_PROXY": "http://p:3128"}, VENDOR, None),
        ({"HTTP_PROXY": "http://p:3128"}, "http://minio:9000/x.png", "http://p:3128"),
        ({"ALL_PROXY": "http://all"}, VENDOR, "http://all:80"),
        ({"ALL_PROXY": "http://all", "HTTPS_PROXY": "http://p"}, VENDOR, "http://p:80"),
        ({"ALL_PROXY": "http://all", "HTTPS_PROXY": ""}, VENDOR, None),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": "*"}, VENDOR, None),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": ".aliyuncs.com"}, VENDOR, None),
        ({"HTTPS_PROXY": "http://p", "no_proxy": "localhost,.aliyuncs.com"}, IMAGE, None),
        ({"HTTPS_PROXY": "http://p", "no_proxy": "", "NO_PROXY": "*"}, IMAGE, "http://p:80"),
    ],
)
def test_the_environment(environment: dict[str, str], url: str, expected: str | None) -> None:
    assert way(url, environment) == expected


def test_the_file_comes_before_the_environment() -> None:
    environment = {"HTTPS_PROXY": "http://env", "NO_PROXY": "*"}

    named = Secret("http://file:3128")
    assert way(VENDOR, environment, proxy=named, no_proxy=()) == "http://file:3128"
    assert way("http://minio:9000/", environment, proxy=named, no_proxy=()) == "http://file:3128"
    assert way(VENDOR, environment, proxy=named) is None
    assert way(VENDOR, environment, environment=False) is None
    assert way(VENDOR, environment, proxy=named, environment=False) == "http://file:3128"
    assert way(VENDOR, environment, no_proxy=("minio",)) == "http://env:80"


@pytest.mark.parametrize(
    ("rule", "url", "direct"),
    [
        ("example.com", "https://example.com/", True),
        ("example.com", "https://EXAMPLE.com./", True),
        ("Example.COM", "https://a.example.com/", True),
        (".example.com", "https://a.b.example.com/", True),
        (".example.com", "https://example.com/", True),
        ("*.example.com", "https://a.example.com/", True),
        ("example.com", "https://notexample.com/", False),
        ("example.com", "https://example.com.evil/", False),
        ("a.example.com", "https://example.com/", False),
        ("example.com:8443", "https://example.com:8443/", True),
        ("example.com:8443", "https://example.com/", False),
        ("example.com:443", "https://example.com/", True),
        ("10.1.2.3", "http://10.1.2.3:9000/", True),
        ("10.1.2.3:9000", "http://10.1.2.3:9000/", True),
        ("10.1.2.3:9000", "http://10.1.2.3/", False),
        ("10.0.0.0/8", "http://10.1.2.3:9000/", True),
        ("10.1.2.3/8", "http://10.9.9.9/", True),
        ("10.0.0.0/8", "http://11.0.0.1/", False),
        ("10.0.0.0/8", "http://[::ffff:10.1.2.3]/", True),
        ("10.0.0.0/8", "http://ten.example/", False),
        ("fd00::/8", "http://[fd12::1]:9000/", True),
        ("[fd12::1]:9000", "http://[fd12::1]:9000/", True),
        ("[fd12::1]:9000", "http://[fd12::1]/", False),
        ("fd12::1", "http://[fd12:0:0::1]/", True),
        ("localhost", "http://localhost:8090/", True),
        ("127.0.0.1", "http://localhost:8090/", False),
        ("minio", "http://minio:9000/", True),
        ("svc_a.internal", "http://svc_a.internal/", True),
        ("localhost 10.0.0.0/8, example.com", "https://example.com/", True),
        ("<local>,10.0.0.0/99,example.com", "https://example.com/", True),
    ],
)
def test_what_is_reached_directly(rule: str, url: str, direct: bool) -> None:
    """In every form that the field uses; what nobody can read holds nobody up."""
    environment = {"ALL_PROXY": "http://p", "NO_PROXY": rule}

    assert (way(url, environment) is None) is direct


@pytest.mark.parametrize(
    ("text", "user", "password"),
    [
        ("http://u:p@h:1", "u", "p"),
        ("http://u:p%40%3A%2F%25@h:1", "u", "p@:/%"),
        ("http://dom%5Cu:p@h:1", "dom\\u", "p"),
        ("http://u@h:1", "u", ""),
        ("http://:p@h:1", "", "p"),
        ("u:p@h:1", "u", "p"),
        ("http://u:p%C3%A9@h:1", "u", "pé"),
        ("http://u:p@ss@h:1", "u", "p@ss"),
    ],
)
def test_credentials_are_percent_encoded(text: str, user: str, password: str) -> None:
    """And stand nowhere in the address that is shown."""
    proxy = parse_proxy(text, "HTTPS_PROXY")

    assert (proxy.url, proxy.user, proxy.password.reveal()) == ("http://h:1", user, password)


@pytest.mark.parametrize(
    "text",
    [
        "http://",
        "http://u:secret@",
        "http://u:secret@h:x",
        "http://u:secret@h:0",
        "http://u:secret@h:70000",
        "http://u:secret/x@h:1",
        "http://u:secret#x@h:1",
        "http://u:secret@h:1/path",
        "http://u:secret@h:1?a=b",
        "http://u:sec ret@h:1",
        "http://u%3Av:secret@h:1",
        "http://u:secret@[h:1",
        "ftp://u:secret@h:1",
        "socks5://u:secret@h:1",
    ],
)
@pytest.mark.parametrize("where", ["file", "HTTPS_PROXY"])
def test_an_address_that_is_none(text: str, where: str) -> None:
    """It is a fault at the start, in words that do not show it."""
    if where == "file":
        _, faults = proxies({}, proxy=Secret(text))
    else:
        _, faults = proxies({where: text})

    [fault] = faults
    assert fault.startswith(("egress.proxy: ", "HTTPS_PROXY of the environment: "))
    assert "[user:password@]host" in fault
    assert "sec" not in fault.replace("SOCKS", "")


def test_an_unfit_variable_that_nobody_asks_for() -> None:
    """Desktops set one for everything beside the one that counts."""
    environment = {"HTTPS_PROXY": "http://p", "http_proxy": "http://p", "ALL_PROXY": "socks5://s"}

    assert way(VENDOR, environment) == "http://p:80"
    assert way(VENDOR, {"ALL_PROXY": "socks5://s"}, environment=False) is None


def test_a_rule_of_the_file_that_is_none() -> None:
    _, faults = proxies({}, no_proxy=("minio", "10.0.0.0/99", "https://x"))

    assert [fault.partition(":")[0] for fault in faults] == [
        "egress.no_proxy[1]",
        "egress.no_proxy[2]",
    ]


def test_the_password_is_one_of_the_configuration_s_secrets() -> None:
    """So is the header that holds it."""
    config = Config(accounts=(), tenants=())
    config = with_proxies(config, {"HTTPS_PROXY": "http://u:swordfish@p"})

    assert list(config.secrets()) == ["swordfish", "dTpzd29yZGZpc2g="]


@given(st.text(max_size=30))
def test_no_text_is_a_defect(text: str) -> None:
    for parse in (parse_bypass, lambda each: parse_proxy(each, "x")):
        try:
            parse(text)
        except ValueError:
            continue

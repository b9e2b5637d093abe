"""Calls from web pages: preflights, and what a script may read of an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import httpx
import pytest

from gateway.config import Config, Cors
from tests.running import Client, account, config_for
from tests.simulated import SimulatedDashScope

PAGE: Final = "https://app.example.com"
OTHER: Final = "https://evil.example.com"
IMAGES: Final = "/v1/images/generations"
SDK_HEADERS: Final = "authorization,content-type,x-stainless-retry-count,x-stainless-timeout"

Start = Callable[[Config], Client]


@pytest.fixture
def browsed(start: Start, simulator: SimulatedDashScope) -> Client:
    return start(config_for(account(simulator.base_url), cors=Cors(allow_origins=(PAGE,))))


def asking(origin: str = PAGE, **more: str) -> dict[str, str]:
    """A preflight's headers, as Chromium sends them for openai-node."""
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": SDK_HEADERS,
        **more,
    }


def cors_headers(answer: httpx.Response) -> dict[str, str]:
    names = ("access-control-", "vary")
    return {k: v for k, v in answer.headers.items() if k.startswith(names)}


@pytest.mark.parametrize("path", [IMAGES, "/v1/models", "/openai/deployments/d/images/generations"])
def test_a_preflight_needs_no_key(path: str, browsed: Client) -> None:
    """Whatever headers the SDK adds are allowed, and the answer is kept for as long as may be."""
    answer = browsed.ask("OPTIONS", path, key=None, headers=asking())

    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-headers"] == SDK_HEADERS
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-max-age"] == "7200"
    assert "Origin" in answer.headers["vary"]
    assert "access-control-allow-private-network" not in answer.headers
    assert "access-control-allow-credentials" not in answer.headers


def test_a_page_of_the_internet_may_ask_for_a_private_network(browsed: Client) -> None:
    headers = asking(**{"access-control-request-private-network": "true"})
    answer = browsed.ask("OPTIONS", IMAGES, key=None, headers=headers)

    assert answer.headers["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize(
    "origin", [OTHER, "null", PAGE + ".evil.com", "http://app.example.com", "x"]
)
def test_another_page_may_do_nothing(origin: str, browsed: Client) -> None:
    """The browser refuses what no header allows; caches still tell the answers apart."""
    preflight = browsed.ask("OPTIONS", IMAGES, key=None, headers=asking(origin))
    answer = browsed.generate(headers={"origin": origin})

    assert cors_headers(preflight) == {"vary": "Origin"}
    assert cors_headers(answer) == {"vary": "Origin"}
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("POST", IMAGES, None, 401),
        ("GET", "/v1/models", "sk-wrong", 401),
        ("GET", "/v1/nothing", None, 404),
        ("GET", IMAGES, None, 405),
    ],
)
def test_a_page_can_read_failures(
    method: str, path: str, key: str | None, status: int, browsed: Client
) -> None:
    """Without these headers a script sees a network error, and not what is wrong."""
    answer = browsed.ask(method, path, key=key, headers={"origin": PAGE})

    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == PAGE
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "x-should-retry", "retry-after-ms"} <= set(exposed)


@pytest.mark.slow
def test_a_page_can_read_an_answer_that_comes_early(
    browsed: Client, simulator: SimulatedDashScope
) -> None:
    """It is sent past the application, which goes on."""
    simulator.configure(latency_s=1.5)
    answer = browsed.generate(headers={"origin": PAGE, "x-stainless-read-timeout": "1"})

    assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "true")
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
def test_no_page_reads_what_is_for_the_operator(
    path: str, start: Start, simulator: SimulatedDashScope
) -> None:
    """A browser may run at an address that may, and a page in it is somebody else's."""
    gateway = start(config_for(account(simulator.base_url), cors=Cors(allow_origins=("*",))))

    assert not cors_headers(gateway.ask("GET", path, headers={"origin": PAGE}))
    asked = gateway.ask("OPTIONS", path, key=None, headers=asking())
    assert not cors_headers(asked)


def test_every_header_of_an_answer_is_exposed(browsed: Client) -> None:
    answer = browsed.generate(headers={"origin": PAGE}, response_format="b64_json")
    safe = {"content-type", "content-length", "date", "vary", "openai-version"}
    safe |= {"x-content-type-options", "access-control-allow-origin"}
    exposed = answer.headers["access-control-expose-headers"].split(", ")

    assert set(answer.headers) - safe - {"access-control-expose-headers"} <= set(exposed)


def test_every_page_may_where_the_configuration_says_so(
    start: Start, simulator: SimulatedDashScope
) -> None:
    gateway = start(config_for(account(simulator.base_url), cors=Cors(allow_origins=("*",))))
    preflight = gateway.ask("OPTIONS", IMAGES, key=None, headers=asking(OTHER))
    answer = gateway.generate(headers={"origin": OTHER})

    assert preflight.headers["access-control-allow-origin"] == "*"
    assert preflight.headers["access-control-allow-headers"] == SDK_HEADERS
    assert answer.headers["access-control-allow-origin"] == "*"


def test_by_itself_no_page_may(gateway: Client) -> None:
    preflight = gateway.ask("OPTIONS", IMAGES, key=None, headers=asking())

    assert preflight.status_code == 204
    assert not cors_headers(preflight)
    assert not cors_headers(gateway.generate(headers={"origin": PAGE}))


@pytest.mark.parametrize("names", ["x@y", "a b", "a;b", ",", ""])
def test_only_names_are_reflected(names: str, browsed: Client) -> None:
    headers = asking(**{"access-control-request-headers": names})
    answer = browsed.ask("OPTIONS", IMAGES, key=None, headers=headers)

    assert "access-control-allow-headers" not in answer.headers

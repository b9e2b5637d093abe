"""What the proxies do with a call that may cost money, tried on the real ones."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import pytest

from gateway.config import Config, Listen, Upstream
from gateway.server.worker import DRAIN_S
from tests.deploy.proxies import ENVOY, NGINX, Backend, Start, envoy, envoy_binary, nginx
from tests.deploy.rendering import load
from tests.openai_shapes import check_error
from tests.running import until

PATH: Final = "/v1/images/generations"
MIB: Final = 1024 * 1024


@pytest.fixture(params=[nginx, envoy], ids=["nginx", "envoy"])
def start(request: pytest.FixtureRequest) -> Start:
    found: Start = request.param
    return found


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.close()


@pytest.fixture
def breaking() -> Iterator[Backend]:
    backend = Backend(breaks=True)
    yield backend
    backend.close()


def test_a_request_passes_and_the_gateway_names_it(
    start: Start, backend: Backend, tmp_path: Path
) -> None:
    with start([backend.port, backend.port], tmp_path) as url:
        answer = post(url, b"{}", {"x-request-id": "mine", "authorization": "Bearer k"})

    assert (answer.status_code, answer.headers.get_list("x-request-id")) == (
        200,
        ["req_of_the_gateway"],
    )
    assert backend.requests == [("POST", PATH, 2)]
    assert backend.headers[0]["x-request-id"] == "mine"
    assert backend.headers[0]["authorization"] == "Bearer k"


def test_a_post_that_was_sent_is_never_sent_again(
    start: Start, breaking: Backend, tmp_path: Path
) -> None:
    with start([breaking.port, breaking.port], tmp_path) as url:
        answer = post(url, b"{}")

    assert breaking.requests == [("POST", PATH, 2)]
    assert answer.status_code >= 502
    assert answer.headers["x-should-retry"] == "false"
    check_error(answer)


def test_calls_that_failed_take_no_gateway_out_of_service(
    start: Start, breaking: Backend, tmp_path: Path
) -> None:
    with start([breaking.port, breaking.port], tmp_path) as url:
        for _ in range(12):
            post(url, b"{}")

    assert len(breaking.requests) == 12


def test_a_gateway_that_is_gone_costs_no_request(
    start: Start, backend: Backend, tmp_path: Path
) -> None:
    gone = Backend()
    with start([gone.port, backend.port], tmp_path) as url:
        gone.close()
        if start is envoy:  # until its health check has seen it: a POST is not tried elsewhere
            until(lambda: all(post(url, b"{}").status_code == 200 for _ in range(10)))
            backend.requests.clear()
        answers = [post(url, b"{}").status_code for _ in range(10)]

    assert answers == [200] * 10
    assert len(backend.requests) == 10


def test_a_body_may_have_two_mib(start: Start, backend: Backend, tmp_path: Path) -> None:
    with start([backend.port, backend.port], tmp_path) as url:
        allowed = post(url, b"x" * (2 * MIB - 1024))
        refused = post(url, b"x" * (2 * MIB + 1024))

    assert (allowed.status_code, refused.status_code) == (200, 413)
    check_error(refused)
    assert [size for _, _, size in backend.requests] == [2 * MIB - 1024]
    assert Config(accounts=(), tenants=()).max_body_bytes <= 2 * MIB


@pytest.mark.parametrize(
    "path", ["/metrics", "/metrics/", "//metrics", "/v1/../metrics", "/%6detrics", "/metrics?x=1"]
)
def test_metrics_are_not_for_outsiders(
    start: Start, path: str, backend: Backend, tmp_path: Path
) -> None:
    with start([backend.port, backend.port], tmp_path) as url:
        connection = HTTPConnection(urlsplit(url).netloc, timeout=10)
        connection.request("GET", path)
        status = connection.getresponse().status
        connection.close()

    assert status == 404
    assert backend.requests == []


def test_each_proxy_accepts_the_file_as_it_is(tmp_path: Path) -> None:
    subprocess.run(
        [envoy_binary(), "--mode", "validate", "--use-dynamic-base-id", "-c", ENVOY],
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )


def test_nginx_waits_longer_than_the_slowest_generation() -> None:
    text = NGINX.read_text()

    assert nginx_seconds(text, "proxy_read_timeout") >= Upstream().deadline_s + 30
    assert nginx_seconds(text, "worker_shutdown_timeout") > DRAIN_S
    upstream = text[text.index("upstream gateways") : text.index("server {")]
    assert nginx_seconds(upstream, "keepalive_timeout") < Listen().keep_alive_s
    assert "non_idempotent" not in re.sub(r"#.*", "", text)


def test_envoy_waits_longer_than_the_slowest_generation() -> None:
    bootstrap = load(ENVOY)["static_resources"]
    (listener,), (cluster,) = bootstrap["listeners"], bootstrap["clusters"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (host,) = manager["route_config"]["virtual_hosts"]
    routes: dict[str, Any] = {route["name"]: route for route in host["routes"]}
    (protocol,) = cluster["typed_extension_protocol_options"].values()

    assert list(routes) == ["metrics", "paid", "free"]
    assert seconds(routes["paid"]["route"]["timeout"]) >= Upstream().deadline_s + 30
    assert seconds(manager["stream_idle_timeout"]) >= Upstream().deadline_s + 30
    assert "retry_policy" not in {**routes["paid"]["route"], **host, **manager["route_config"]}
    idle = protocol["common_http_protocol_options"]["idle_timeout"]
    assert seconds(idle) < Listen().keep_alive_s


def test_envoy_notices_a_gateway_that_drains_while_it_still_takes_requests() -> None:
    (cluster,) = load(ENVOY)["static_resources"]["clusters"]
    (check,) = cluster["health_checks"]

    assert check["interval"] == check["no_traffic_interval"]
    assert check["unhealthy_threshold"] == 1
    assert seconds(check["interval"]) < Config(accounts=(), tenants=()).lame_duck_s


def post(url: str, body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=10) as client:
        return client.post(url + PATH, content=body, headers=headers)


def nginx_seconds(text: str, directive: str) -> int:
    (found,) = re.findall(rf"^ *{directive} (\d+)s;", text, re.MULTILINE)
    return int(found)


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))

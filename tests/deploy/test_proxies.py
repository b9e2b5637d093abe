"""What the proxies do with a call that may cost money, tried on the real ones."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
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

EDITS: Final = "/v1/images/edits"
TRICKLERS: Final = 300
HELD_MIB: Final = 60
"""Of a proxy, for so many of them: their bodies of 128 KiB are 37.5 MiB."""
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


@pytest.mark.slow
def test_calls_that_failed_take_no_gateway_out_of_service(
    start: Start, breaking: Backend, tmp_path: Path
) -> None:
    with start([breaking.port, breaking.port], tmp_path) as url:
        for _ in range(12):
            post(url, b"{}")

    assert len(breaking.requests) == 12


@pytest.mark.slow
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


def test_a_body_may_have_what_the_gateway_takes(
    start: Start, backend: Backend, tmp_path: Path
) -> None:
    most = Config(accounts=(), tenants=()).max_body_bytes
    with start([backend.port, backend.port], tmp_path) as url:
        allowed = post(url, b"x" * most)
        refused = post(url, b"x" * (most + 1))

    assert (allowed.status_code, refused.status_code) == (200, 413)
    check_error(refused)
    assert [size for _, _, size in backend.requests] == [most]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        "/v1/images/edits",
        "/openai/deployments/any/images/edits",
        "/api/v1/services/aigc/multimodal-generation/generation",
    ],
)
def test_pictures_to_edit_may_be_large(
    start: Start, path: str, backend: Backend, tmp_path: Path
) -> None:
    with start([backend.port, backend.port], tmp_path) as url:
        answer = post(url, b"x" * 40 * MIB, path=path)

    assert answer.status_code == 200
    assert backend.requests == [("POST", path, 40 * MIB)]


def test_pictures_to_edit_pass_as_they_come(start: Start, backend: Backend, tmp_path: Path) -> None:
    """The gateway sees the key before the body, and the proxy holds none of it."""
    with start([backend.port, backend.port], tmp_path) as url, trickler(url, EDITS, MIB):
        until(lambda: backend.begun)


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

    assert list(routes) == ["metrics", "edits", "paid", "free"]
    assert routes["edits"]["route"] == routes["paid"]["route"]
    assert seconds(routes["paid"]["route"]["timeout"]) >= Upstream().deadline_s + 30
    assert seconds(manager["stream_idle_timeout"]) >= Upstream().deadline_s + 30
    assert "retry_policy" not in {**routes["paid"]["route"], **host, **manager["route_config"]}
    idle = protocol["common_http_protocol_options"]["idle_timeout"]
    assert seconds(idle) < Listen().keep_alive_s


@pytest.mark.slow
def test_envoy_notices_a_gateway_that_drains_while_it_still_takes_requests(
    backend: Backend, tmp_path: Path
) -> None:
    (cluster,) = load(ENVOY)["static_resources"]["clusters"]
    (check,) = cluster["health_checks"]
    assert check["interval"] == check["no_traffic_interval"]
    assert seconds(check["interval"]) < Config(accounts=(), tenants=()).lame_duck_s

    with closing(Backend()) as other, envoy([backend.port, other.port], tmp_path) as url:
        until(lambda: post(url, b"{}").status_code == 200 and backend.requests)
        backend.is_ready = False

        def is_left_alone() -> bool:
            backend.requests.clear()
            assert {post(url, b"{}").status_code for _ in range(10)} == {200}
            return not backend.requests

        until(is_left_alone)
    assert max(backend.checks_failed_before) <= 1


@pytest.mark.slow
def test_envoy_leaves_a_gateway_in_service_that_misses_two_health_checks(
    backend: Backend, tmp_path: Path
) -> None:
    """With the other one gone there is none else."""
    with closing(Backend()) as gone, envoy([backend.port, gone.port], tmp_path) as url:
        gone.close()
        until(lambda: all(post(url, b"{}").status_code == 200 for _ in range(10)))
        backend.checks_to_miss = 2
        until(lambda: backend.checks_missed == 2, 30)
        assert {post(url, b"{}").status_code for _ in range(10)} == {200}


@contextmanager
def trickler(url: str, path: str, size: int) -> Iterator[None]:
    """A connection without a key that sends all of a body but its end, and goes on slowly."""
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n"
        connection.sendall(head.encode() + b"x" * (size - 20))
        yield
        connection.send(b"x")


@pytest.mark.slow
@pytest.mark.parametrize("size", [128 * 1024, 2 * MIB])
def test_connections_that_trickle_hold_little(
    start: Start, size: int, backend: Backend, tmp_path: Path
) -> None:
    """Anybody can open them, and nothing ends them while a byte comes now and then."""
    with start([backend.port, backend.port], tmp_path) as url, ExitStack() as stack:
        post(url, b"{}")
        before = held_mib(tmp_path)
        for _ in range(TRICKLERS):
            stack.enter_context(suppress(OSError))  # more than it takes: it hangs up
            stack.enter_context(trickler(url, PATH, size))
        assert post(url, b"{}").status_code == 200
        held = held_mib(tmp_path) - before
        print(f"{TRICKLERS} connections of {size} bytes: {held:.1f} MiB")  # noqa: T201

    assert held < HELD_MIB


def test_nginx_takes_a_bounded_number_of_requests_at_once(backend: Backend, tmp_path: Path) -> None:
    few = NGINX.read_text().replace("limit_conn addresses 1000", "limit_conn addresses 3")
    with nginx([backend.port, backend.port], tmp_path, few) as url, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(trickler(url, PATH, 1000))
        refused = post(url, b"{}")

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    check_error(refused)


def held_mib(folder: Path) -> float:
    """Of all processes that run on files in a folder, and of what they wrote there."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(folder).encode() in process.joinpath("cmdline").read_bytes():
                total += rss(process) + sum(map(rss, children(process)))
    files = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    return total / 1024 + files / MIB


def rss(process: Path) -> int:
    return int(process.joinpath("status").read_text().partition("VmRSS:")[2].split()[0])


def children(process: Path) -> list[Path]:
    found = process.joinpath("task", process.name, "children").read_text().split()
    return [Path("/proc", each) for each in found]


def post(
    url: str, body: bytes, headers: dict[str, str] | None = None, path: str = PATH
) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=10) as client:
        return client.post(url + path, content=body, headers=headers)


def nginx_seconds(text: str, directive: str) -> int:
    (found,) = re.findall(rf"^ *{directive} (\d+)s;", text, re.MULTILINE)
    return int(found)


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))

"""`gateway doctor` asks for real: what is well, and each way of not being so."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Any, Final

import pytest

from tests.certificates import make_certificate
from tests.forward_proxy import ForwardProxy
from tests.operations.site import Json, document, one_account, write
from tests.redis_proxy import RedisProxy
from tests.redis_server import RedisServer
from tests.running import ACME, ROOT, UPSTREAM_KEY, closed_port
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

PASSWORD: Final = "hunter2-of-the-proxy"
VENDOR: Final = "dashscope.test"


class Told:
    """What it said, line by line, and how it ended."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text
        self.lines = text.splitlines()

    def of(self, subject: str) -> list[str]:
        return [line for line in self.lines if line[9:].startswith(subject)]

    def failing(self) -> list[str]:
        return [line for line in self.lines if line.startswith("fails")]


Ask = Callable[..., Told]


@pytest.fixture
def doctor(tmp_path: Path) -> Ask:
    """Runs the command on a configuration."""

    def ask(content: Json, **environment: str) -> Told:
        file = write(tmp_path / "gateway.yaml", content)
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "doctor", "--config", str(file)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
            timeout=60,
            env={"PATH": "/usr/bin:/bin", **environment},
        )
        assert done.stderr == ""
        for secret in (UPSTREAM_KEY, PASSWORD, ACME):
            assert secret not in done.stdout
        return Told(done.returncode, done.stdout)

    return ask


class Vendor:
    """Answers every request with what `answer` then returns."""

    def __init__(self, answer: Callable[[], str]) -> None:
        self.asked: list[bytes] = []
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._socket.accept()
                with peer:
                    self.asked.append(peer.recv(65536))
                    peer.sendall(self._answer().encode())

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@contextmanager
def vendor(
    status: int, body: str = "", *, skew_s: float | None = None, **headers: str
) -> Iterator[Vendor]:
    """`skew_s`: its clock is so much fast, and every answer has its date."""

    def answer() -> str:
        more = {} if skew_s is None else {"date": formatdate(time() + skew_s, usegmt=True)}
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers | more).items())
        head = f"HTTP/1.1 {status} Status\r\n{lines}connection: close\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n{body}"

    server = Vendor(answer)
    yield server
    server.close()


def at(port: int) -> str:
    return f"http://127.0.0.1:{port}/api/v1"


def test_all_is_well(doctor: Ask, simulator: SimulatedDashScope, redis_url: str) -> None:
    """A line each, and nothing was generated."""
    told = doctor(document(simulator.base_url, redis={"url": redis_url}))

    assert told.status == 0, told.text
    assert {line[:9].strip() for line in told.lines} == {"ok"}
    assert any("its key is taken" in line for line in told.of("account one"))
    assert any("takes a script of each kind" in line for line in told.of("redis"))
    state = simulator.state()
    assert (state["calls"], state["paid"], state["log"]) == ({}, {}, [])


def test_without_redis_that_is_said(doctor: Ask, simulator: SimulatedDashScope) -> None:
    told = doctor(document(simulator.base_url))

    assert told.status == 0
    assert told.of("redis") == [
        "ok       redis: none: limits and results are those of a single worker"
    ]


def test_a_key_that_is_refused(doctor: Ask, simulator: SimulatedDashScope) -> None:
    simulator.configure(api_keys=["sk-another"])
    told = doctor(document(simulator.base_url))

    assert told.status == 1
    [line] = told.failing()
    assert line == (
        "fails    account one: its key is refused: InvalidApiKey"
        " -> look at api_key, and whether it is one of this region"
    )


def test_a_key_that_cannot_be_tried_is_no_failure(doctor: Ask) -> None:
    with vendor(404) as server:
        told = doctor(document(at(server.port)))

    assert told.status == 0
    assert any("cannot be tried at no cost" in line for line in told.of("account one"))
    assert all(request.startswith(b"GET /api/v1/tasks/") for request in server.asked)
    assert [UPSTREAM_KEY.encode() in request for request in server.asked] == [False, True]


@pytest.mark.parametrize("status", [200, 302, 407, 500, 503])
def test_an_answer_that_is_not_the_vendor_s(status: int, doctor: Ask) -> None:
    with vendor(status, "<html>") as server:
        told = doctor(document(at(server.port)))

    assert told.status == 1
    [line] = told.failing()
    assert f"answers {status}" in line
    assert " -> " in line
    assert len(server.asked) == 1, "the key goes only to a host that answers as the vendor does"


def test_a_host_that_is_away(doctor: Ask) -> None:
    with closed_port() as port:
        told = doctor(document(at(port)))

    assert told.status == 1
    [line] = told.failing()
    assert f"127.0.0.1:{port} cannot be reached" in line
    assert "egress.proxy" in line


def test_a_name_without_an_address(doctor: Ask) -> None:
    told = doctor(document("https://dashscope.invalid/api/v1"))

    assert told.status == 1
    [line] = told.failing()
    assert line.startswith("fails    account one: dashscope.invalid has no address")


@pytest.mark.parametrize(
    ("skew_s", "state"), [(0, "ok"), (20, "warning"), (-20, "warning"), (600, "fails")]
)
def test_the_clock(skew_s: float, state: str, doctor: Ask) -> None:
    with vendor(404, skew_s=skew_s) as server:
        told = doctor(document(at(server.port)))

    [line] = [line for line in told.of("account one") if "clock" in line]
    assert line.split()[0] == state
    assert told.status == (state == "fails")
    assert ("set the clock" in line) == (state != "ok")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return make_certificate(tmp_path / "vendor.pem", VENDOR, "localhost")


def test_a_certificate_that_is_not_trusted(
    doctor: Ask, simulator: SimulatedDashScope, certificate: Path
) -> None:
    """As behind a proxy that opens TLS; with its authority trusted, all is well."""
    with ForwardProxy({VENDOR: simulator.port}, certificate) as proxy:
        content = document(
            f"https://{VENDOR}/api/v1", egress={"proxy": f"http://127.0.0.1:{proxy.port}"}
        )
        refused = doctor(content)
        trusted = doctor(content, SSL_CERT_FILE=str(certificate))

    [line] = refused.failing()
    assert "certificate that is not trusted" in line
    assert "SSL_CERT_FILE" in line
    assert trusted.status == 0, trusted.text
    assert f"by the proxy 127.0.0.1:{proxy.port}" in trusted.of("account one")[0]


def test_a_proxy_that_wants_a_password(
    doctor: Ask, simulator: SimulatedDashScope, certificate: Path
) -> None:
    with ForwardProxy(
        {VENDOR: simulator.port}, certificate, credentials=f"user:{PASSWORD}"
    ) as proxy:
        content = document(f"https://{VENDOR}/api/v1")
        without = doctor(content, HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}")
        content["egress"] = {"proxy": f"http://user:{PASSWORD}@127.0.0.1:{proxy.port}"}
        with_it = doctor(content, SSL_CERT_FILE=str(certificate))

    assert without.status == 1
    [line] = without.failing()
    assert "the proxy answers 407" in line
    assert "user and password" in line
    assert any("stands (HTTPS_PROXY)" in line for line in without.of("proxy"))
    assert with_it.status == 0, with_it.text


def test_a_proxy_that_is_away(doctor: Ask) -> None:
    with closed_port() as port:
        told = doctor(
            document("https://dashscope.aliyuncs.com/api/v1"),
            HTTPS_PROXY=f"http://127.0.0.1:{port}",
        )

    assert told.status == 1
    assert "change HTTPS_PROXY" in told.failing()[0]


# --- Redis


def redis_lines(doctor: Ask, simulator: SimulatedDashScope, url: str, **more: Any) -> Told:
    return doctor(document(simulator.base_url, redis={"url": url, **more}))


def test_a_redis_that_is_away(doctor: Ask, simulator: SimulatedDashScope) -> None:
    with closed_port() as port:
        told = redis_lines(doctor, simulator, f"redis://127.0.0.1:{port}/0")

    assert told.status == 1
    assert "start it, or look at the host and port" in told.failing()[0]


def test_a_wrong_password(doctor: Ask, simulator: SimulatedDashScope) -> None:
    with RedisServer(config="requirepass right") as redis:
        told = redis_lines(doctor, simulator, f"redis://:{PASSWORD}@127.0.0.1:{redis.port}/0")

    assert told.status == 1
    assert "look at the user and password in the address" in told.failing()[0]


def test_a_redis_that_may_evict(doctor: Ask, simulator: SimulatedDashScope) -> None:
    arguments = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]
    with RedisServer(args=arguments) as redis:
        told = redis_lines(doctor, simulator, redis.url)

    assert told.status == 1
    assert "set maxmemory-policy to noeviction" in told.failing()[0]


def test_a_cluster_s_node_by_the_address_of_one_server(
    doctor: Ask, simulator: SimulatedDashScope
) -> None:
    with RedisServer(args=["--cluster-enabled", "yes"]) as redis:
        told = redis_lines(doctor, simulator, redis.url)

    assert told.status == 1
    assert "this is a cluster: use redis+cluster://" in told.failing()[0]


def test_a_replica(doctor: Ask, simulator: SimulatedDashScope) -> None:
    with (
        RedisServer() as primary,
        RedisServer(args=["--replicaof", "127.0.0.1", str(primary.port)]) as replica,
    ):
        told = redis_lines(doctor, simulator, replica.url)

    assert told.status == 1
    assert "use the primary's address" in told.failing()[0]


def test_a_user_who_may_run_no_script(doctor: Ask, simulator: SimulatedDashScope) -> None:
    rule = "user weak on >pw ~* &* +@all -evalsha -eval -script"
    with RedisServer(config=rule) as redis:
        told = redis_lines(doctor, simulator, f"redis://weak:pw@127.0.0.1:{redis.port}/0")

    assert told.status == 1
    assert "a script is refused" in told.failing()[0]


def test_a_proxy_that_wants_keys_named_literally(
    doctor: Ask, simulator: SimulatedDashScope
) -> None:
    """Tair's and ApsaraDB's, in cluster mode: PING passes and each limit would fail."""
    with RedisServer() as redis, RedisProxy(redis.port) as proxy:
        refused = redis_lines(doctor, simulator, proxy.url)
        proxy.script_check_enable = False
        taken = redis_lines(doctor, simulator, proxy.url)

    assert refused.status == 1
    assert proxy.refused
    [line] = refused.failing()
    assert "script_check_enable" in line
    assert taken.status == 0, taken.text


def test_the_store_of_images_may_evict(
    doctor: Ask, simulator: SimulatedDashScope, redis_url: str
) -> None:
    arguments = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]
    with RedisServer(args=arguments) as images:
        content = document(
            simulator.base_url, redis={"url": redis_url}, image_cache={"url": images.url}
        )
        told = doctor(content)

    assert told.status == 0, told.text
    assert len(told.of("image cache")) == 1


# --- what else


def test_what_will_hurt_later_is_said_too(doctor: Ask, simulator: SimulatedDashScope) -> None:
    told = doctor(document(simulator.base_url, drain_s=10))

    assert told.status == 0
    assert told.lines[0].startswith("warning  configuration: drain_s: ")


def test_a_usage_record_that_cannot_be_written(
    doctor: Ask, simulator: SimulatedDashScope, tmp_path: Path
) -> None:
    told = doctor(document(simulator.base_url, usage_log=str(tmp_path / "no" / "usage.jsonl")))

    assert told.status == 1
    assert "cannot be written" in told.failing()[0]


def test_where_pictures_wait(doctor: Ask, simulator: SimulatedDashScope, tmp_path: Path) -> None:
    gone, little = tmp_path / "no", 2**60

    told = doctor(document(simulator.base_url, uploads={"directory": str(gone)}))
    assert told.status == 1
    assert "cannot be written" in told.failing()[0]

    told = doctor(document(simulator.base_url, uploads={"worker_bytes": little}))
    assert told.status == 0
    assert told.of("uploads.directory")[0].startswith("warning")


def test_every_account_is_asked_in_the_order_of_the_file(
    doctor: Ask, simulator: SimulatedDashScope
) -> None:
    with closed_port() as port:
        accounts = [
            one_account(at(port), name="away"),
            one_account(simulator.base_url, name="there"),
        ]
        told = doctor(document(simulator.base_url, accounts=accounts))

    assert told.status == 1
    subjects = [line[9:].partition(":")[0] for line in told.lines]
    assert subjects[:4] == ["account away", *["account there"] * 3]


def test_a_faulty_file_is_told_as_check_config_does(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("accounts: []\ntenants: []\n")

    done = subprocess.run(
        [sys.executable, "-m", "gateway", "doctor", "--config", str(file)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )

    assert done.returncode == 1
    assert "accounts: at least one account is needed" in done.stderr

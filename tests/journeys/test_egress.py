"""A network whose only way out is a proxy: for the calls to the vendor, and for the images."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.config import Images, Proxies
from gateway.config.egress import parse_proxy
from gateway.tenants.keys import hash_key
from gateway.upstream.images import LOOK_AGAIN_S
from tests.certificates import make_certificate
from tests.forward_proxy import ForwardProxy
from tests.redis_server import RedisServer
from tests.running import (
    ACME,
    UPSTREAM_KEY,
    GatewayProcess,
    HeldClock,
    Logs,
    account,
    closed_port,
    config_for,
    until,
)
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

VENDOR, IMAGES = "vendor.test", "r.images.test"
CREDENTIALS = "gate", "s@cr\u00e9t/word"
ENCODED = "gate:s%40cr%C3%A9t%2Fword"
CONFIG = """\
listen: {{host: 127.0.0.1, port: 0}}
accounts:
  - {{name: one, base_url: "https://{vendor}/api/v1", api_key: {key}, rates: {{"*": unlimited}}}}
images: {{allowed_hosts: ["{images}"]}}
tenants:
  - {{name: acme, keys: [{{hash: "{hash}"}}]}}
{more}
"""

TINYPROXY = """\
Listen 127.0.0.1
Port {port}
Timeout 60
Allow 127.0.0.1
BasicAuth gate swordfish9
LogLevel Connect
LogFile "{log}"
"""


class Site:
    """A gateway whose hosts nobody knows but its proxy, over TLS."""

    def __init__(self, folder: Path, simulator: SimulatedDashScope, **proxy: Any) -> None:
        self.simulator = simulator
        names = (VENDOR, IMAGES, "localhost")
        self.certificate = make_certificate(folder / "hosts.pem", *names)
        self.stack = ExitStack()
        hosts = {VENDOR: simulator.port, IMAGES: simulator.port}
        self.proxy = self.stack.enter_context(ForwardProxy(hosts, self.certificate, **proxy))
        self.file = folder / "gateway.yaml"
        simulator.configure(image_base=f"https://{IMAGES}")

    def start(
        self, more: str = "", vendor: str = VENDOR, images: str = ".images.test", **environment: str
    ) -> GatewayProcess:
        text = CONFIG.format(
            vendor=vendor, images=images, key=UPSTREAM_KEY, hash=hash_key(ACME), more=more
        )
        self.file.write_text(text)
        trusted = {"SSL_CERT_FILE": str(self.certificate)}
        return self.stack.enter_context(
            GatewayProcess.serving(self.file, environment=trusted | environment)
        )

    def paid(self) -> int:
        return sum(self.simulator.state(log=0)["paid"].values())


@pytest.fixture
def site(tmp_path: Path, simulator: SimulatedDashScope) -> Iterator[Site]:
    site = Site(tmp_path, simulator, credentials=":".join(CREDENTIALS))
    with site.stack:
        yield site


def ask(gateway: GatewayProcess, **body: Any) -> httpx.Response:
    return httpx.post(
        f"{gateway.url}/v1/images/generations",
        json={"model": "qwen-image-2.0", "prompt": "a fox", **body},
        headers={"authorization": f"Bearer {ACME}"},
        trust_env=False,
        timeout=60,
    )


def lines(gateway: GatewayProcess, event: str) -> list[dict[str, Any]]:
    told = [json.loads(line) for line in gateway.output.splitlines() if line.startswith("{")]
    return [line for line in told if line["event"] == event]


def ended(gateway: GatewayProcess) -> str:
    gateway.stop()
    gateway.ended()
    return gateway.output


def test_both_legs_leave_by_the_proxy_of_the_environment(
    site: Site, own_redis_server: RedisServer
) -> None:
    """With its credentials, which are printed nowhere; Redis is reached directly."""
    url = f"http://{ENCODED}@127.0.0.1:{site.proxy.port}"
    gateway = site.start(f"redis: {{url: {own_redis_server.url}}}", https_proxy=url, ALL_PROXY=url)

    image = ask(gateway, response_format="b64_json")
    link = ask(gateway)

    assert (image.status_code, link.status_code) == (200, 200), gateway.output
    assert link.json()["data"][0]["url"].startswith(f"https://{IMAGES}/")
    # The connection that is made ahead of a call is the one that the call takes.
    assert site.proxy.targets("CONNECT") == [f"{VENDOR}:443", f"{IMAGES}:443"]
    output = ended(gateway)
    header = site.proxy.asked[0].authorization or ""
    for secret in (ENCODED.partition(":")[2], CREDENTIALS[1], header.removeprefix("Basic ")):
        assert secret
        assert secret not in output


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_of_the_file(tmp_path: Path, simulator: SimulatedDashScope, scheme: str) -> None:
    """Which may itself speak TLS; the environment's does not count then."""
    site = Site(tmp_path, simulator, over_tls=scheme == "https")
    with site.stack, closed_port() as nobody:
        egress = f"egress: {{proxy: '{scheme}://localhost:{site.proxy.port}'}}"
        gateway = site.start(egress, HTTPS_PROXY=f"http://127.0.0.1:{nobody}")

        assert ask(gateway, response_format="b64_json").status_code == 200, gateway.output
        assert len(site.proxy.targets("CONNECT")) == 2


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        (407, "the proxy does not take the user and password"),
        (403, "the proxy does not allow this host"),
        (502, "the proxy could not connect to this host"),
        (-1, None),
    ],
)
def test_a_call_that_the_proxy_refuses_was_never_sent(
    site: Site, refusal: int, advice: str | None
) -> None:
    """It is sent again, as long as there is time, and the log says what to do."""
    site.proxy.refuse[VENDOR] = refusal
    gateway = site.start(HTTPS_PROXY=f"http://{ENCODED}@127.0.0.1:{site.proxy.port}")

    answer = ask(gateway)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "upstream_unreachable")
    assert answer.headers.get("x-should-retry") != "false"
    assert site.paid() == 0
    assert len(site.proxy.targets("CONNECT")) > 1
    told = lines(gateway, "proxy_refused")
    if advice is not None:
        shown = {"host": VENDOR, "setting": "HTTPS_PROXY", "status": refusal, "advice": advice}
        assert {name: told[0][name] for name in shown} == shown
    assert CREDENTIALS[1] not in ended(gateway)


def test_wrong_credentials_are_named_as_such(site: Site) -> None:
    gateway = site.start(f"egress: {{proxy: 'http://gate:wrong1@127.0.0.1:{site.proxy.port}'}}")

    assert ask(gateway).status_code == 503
    told = lines(gateway, "proxy_refused")[0]
    assert (told["status"], told["setting"]) == (407, "egress.proxy")
    assert "wrong1" not in ended(gateway)


def test_a_proxy_that_nobody_listens_at(site: Site) -> None:
    with closed_port() as nobody:
        gateway = site.start(HTTPS_PROXY=f"http://127.0.0.1:{nobody}")

        answer = ask(gateway)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "upstream_unreachable")


def test_images_that_the_proxy_refuses_are_paid_for_once(site: Site) -> None:
    """What it lets through is its host list's business; then ours is to pay for no more."""
    site.proxy.refuse[IMAGES] = 403
    gateway = site.start(HTTPS_PROXY=f"http://{ENCODED}@127.0.0.1:{site.proxy.port}")

    first = ask(gateway, response_format="b64_json", seed=1)
    second = ask(gateway, response_format="b64_json", seed=2)

    assert (first.status_code, first.json()["error"]["code"]) == (502, "image_unavailable")
    assert (second.status_code, second.json()["error"]["code"]) == (503, "image_hosts_unreachable")
    assert site.paid() == 1
    assert lines(gateway, "proxy_refused")[0]["host"] == IMAGES
    assert ask(gateway, seed=3).status_code == 200


def test_tinyproxy(site: Site, tmp_path: Path) -> None:
    """A proxy of the field, with credentials; it looks names up like every program."""
    program = shutil.which("tinyproxy")
    if program is None:
        pytest.skip("tinyproxy was not found: install tinyproxy-bin")
    with closed_port() as port:
        pass
    log, settings = tmp_path / "tinyproxy.log", tmp_path / "tinyproxy.conf"
    settings.write_text(TINYPROXY.format(port=port, log=log))
    front = f"localhost:{site.proxy.fronts[VENDOR]}"
    site.simulator.configure(image_base=f"https://{front}")
    with subprocess.Popen([program, "-d", "-c", settings], stderr=subprocess.DEVNULL) as tinyproxy:
        site.stack.callback(tinyproxy.kill)
        until(lambda: is_open(port))
        egress = f"egress: {{proxy: 'http://gate:%73wordfish9@127.0.0.1:{port}'}}"
        gateway = site.start(egress, vendor=front, images=front)

        assert ask(gateway, response_format="b64_json").status_code == 200, gateway.output
        tinyproxy.kill()
    assert log.read_text().count(f"CONNECT {front}") == 2
    assert site.proxy.asked == []


def is_open(port: int) -> bool:
    """Whether a port takes connections."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_plain_http_goes_to_the_proxy_itself(
    start: Start, simulator: SimulatedDashScope, clock: HeldClock, logs: Logs
) -> None:
    """Where it is allowed; a refusal on the way to an image holds until it is lifted."""
    with ForwardProxy({"127.0.0.1": simulator.port}, credentials="u:p") as proxy:
        way = parse_proxy(f"http://u:p@127.0.0.1:{proxy.port}", "HTTP_PROXY")
        images = Images(allowed_hosts=("127.0.0.1",), allow_http=True)
        gateway = start(
            config_for(account(simulator.base_url), images=images, proxies=Proxies(http=way))
        )

        def b64(seed: int) -> httpx.Response:
            return gateway.generate(model="qwen-image-2.0", response_format="b64_json", seed=seed)

        assert b64(1).status_code == 200
        assert [each.method for each in proxy.asked] == ["POST", "GET"]
        proxy.refuse_reads = 407
        assert b64(2).status_code == 502
        assert b64(3).json()["error"]["code"] == "image_hosts_unreachable"
        assert logs.named("proxy_refused")[0]["setting"] == "HTTP_PROXY"
        proxy.refuse_reads = 200
        clock.ahead_s += LOOK_AGAIN_S
        assert b64(4).status_code == 200

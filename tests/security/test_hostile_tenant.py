"""What a tenant would try, to get at others, at the operator's pages or into the logs."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from msgspec.structs import replace

from gateway.config import Cache, Metrics
from tests.operations.site import document, tenant, write
from tests.running import (
    ACME,
    ROOT,
    STRICT,
    Client,
    HeldClock,
    account,
    config_for,
    tenants,
)
from tests.running_fixtures import Start
from tests.security.calls import MODEL, PATH, paid
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

FORWARDED: Final = ("x-forwarded-for", "forwarded", "x-real-ip", "via")

# -- what belongs to another tenant


@pytest.fixture
def today(clock: HeldClock) -> None:
    """The vendor's signed URLs are still good, so that results may be kept."""
    clock.now = time.time()


@pytest.mark.usefixtures("today")
def test_tenants_share_no_result(gateway: Client, simulator: SimulatedDashScope) -> None:
    """The same prompt and seed: each pays for its own."""
    first = gateway.generate(model=MODEL, seed=7, size="1024x1024")
    second = gateway.generate(model=MODEL, seed=7, key=STRICT, size="1024x1024")
    again = gateway.generate(model=MODEL, seed=7, size="1024x1024")

    assert [first.headers["x-cache"], second.headers["x-cache"]] == ["miss", "miss"]
    assert again.headers["x-cache"] == "hit"
    assert first.json()["data"] != second.json()["data"]


@pytest.mark.usefixtures("today")
def test_no_header_or_field_reaches_another_tenant_s_results(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    gateway.generate(model=MODEL, seed=7, size="1024x1024")
    for headers in ({"x-tenant": "acme"}, {"x-cache-group": "acme"}, {"vary": "*"}):
        answer = gateway.generate(
            model=MODEL, seed=7, size="1024x1024", key=STRICT, headers=headers, user="acme"
        )
        assert answer.headers["x-cache"] in {"miss", "hit"}
    assert paid(simulator) == 2
    only = {"cache-control": "only-if-cached"}
    assert gateway.generate(model=MODEL, seed=8, key=STRICT, headers=only).status_code == 504


@pytest.mark.usefixtures("today")
def test_a_group_shares_because_its_operator_said_so(
    start: Start, simulator: SimulatedDashScope
) -> None:
    """The one way, so that the tests above fail for the right reason."""
    shared = tuple(replace(each, cache=Cache(group="both")) for each in tenants())
    gateway = start(config_for(account(simulator.base_url), tenants=shared))
    gateway.generate(model=MODEL, seed=7, size="1024x1024")
    answer = gateway.generate(model=MODEL, seed=7, size="1024x1024", key=STRICT)

    assert answer.headers["x-cache"] == "hit"
    assert paid(simulator) == 1


@pytest.mark.usefixtures("today")
def test_an_idempotency_key_is_its_tenant_s_own(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    headers = {"idempotency-key": "order-1"}
    first = gateway.generate(model=MODEL, headers=headers)
    other = gateway.generate(model=MODEL, headers=headers, key=STRICT, size="1024x1024")

    assert first.json()["data"] != other.json()["data"]
    assert other.headers["x-cache"] != "replayed"
    assert paid(simulator) == 2


@pytest.mark.parametrize("key", ["", "a" * 256, "a\tb", "ключ\u200b"])
def test_an_idempotency_key_that_is_none_is_refused(gateway: Client, key: str) -> None:
    headers: Any = {"idempotency-key": key.encode()}

    assert gateway.generate(model=MODEL, headers=headers).status_code == 400


# -- the operator's own pages


@pytest.mark.parametrize("name", FORWARDED)
def test_metrics_are_not_for_whoever_comes_through_a_proxy(gateway: Client, name: str) -> None:
    answer = gateway.ask("GET", "/metrics", headers={name: "127.0.0.1"})

    assert answer.status_code == 404


def test_metrics_are_for_allowed_peers_alone(start: Start, simulator: SimulatedDashScope) -> None:
    allowed = Metrics(allow=("10.9.9.0/24",))
    gateway = start(config_for(account(simulator.base_url), metrics=allowed))
    for headers in ({}, {"x-client-ip": "10.9.9.1"}, {"host": "10.9.9.1"}):
        assert gateway.ask("GET", "/metrics", headers=headers).status_code == 404


def test_a_forged_origin_changes_nothing(gateway: Client, simulator: SimulatedDashScope) -> None:
    """No limit, log line or URL is taken from what a client says of itself."""
    headers = {
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "javascript",
        "x-forwarded-host": "evil.example",
        "x-request-id": "req_" + "0" * 32,
    }
    answer = gateway.generate(model=MODEL, headers=headers)

    assert "evil.example" not in answer.text
    assert answer.headers["x-request-id"] != headers["x-request-id"]


# -- writing into logs and metrics

ESCAPES: Final = (
    '\r\n{"event":"answered","status":200}\x1b[2J\x1b]0;owned\x07\u2028\x85\u202e\x9b2J'
)


OBEYED: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys, or a reader may take for the end of a line; a line's own end is none."""


@pytest.mark.parametrize("on_terminal", [False, True])
def test_nothing_a_caller_sends_begins_a_line_of_the_log(
    on_terminal: bool, simulator: SimulatedDashScope, tmp_path: Path
) -> None:
    """In the bytes that are written: of a tenant too that has its prompts logged, whole."""
    content = document(simulator.base_url, tenants=[tenant("acme", ACME, log_prompts=True)])
    file = write(tmp_path / "gateway.yaml", content)
    near, far = pty.openpty() if on_terminal else os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--config", str(file)],
        stdout=subprocess.PIPE,
        stderr=far,
        text=True,
        cwd=ROOT,
    )
    os.close(far)
    assert process.stdout is not None
    written = b""
    try:
        url = process.stdout.readline().split()[-1]
        with httpx.Client(base_url=url, trust_env=False, timeout=10) as client:
            for prompt, model in ((ESCAPES, ESCAPES), (ESCAPES, MODEL)):
                body = {"prompt": prompt, "model": model, "user": ESCAPES}
                client.post(PATH, json=body, headers={"authorization": f"Bearer {ACME}"})
            client.get("/v1/%0d%0a%1b%5b2J%e2%80%a8%c2%85" + "a" * 5000)
        process.terminate()
        with suppress(OSError):  # how a terminal says that its other side is gone
            while part := os.read(near, 65536):
                written += part
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
        os.close(near)

    text = written.decode().replace("\r\n", "\n")
    if on_terminal:
        text = re.sub(r"\x1b\[\d*m", "", text)  # the colours of the gateway's own
    lines = text.splitlines()
    assert not OBEYED.search(text)
    assert sum("answered" in line and "upstream" not in line for line in lines) >= 3
    assert len(lines) == text.count("\n")
    assert max(map(len, lines)) < 4000
    for line in lines:
        assert re.match(r"\d{4}-" if on_terminal else r"\{\"", line)
        if not on_terminal:
            assert json.loads(line)["event"] != "owned"


def test_callers_cannot_make_new_series(gateway: Client) -> None:
    """A thousand names of models and paths are one label each."""
    for number in range(40):
        gateway.generate(model=f'made-up-{number}"}} 1\ngateway_evil 1')
        gateway.ask("GET", f"/made-up-{number}")
    shown = gateway.ask("GET", "/metrics").text

    assert "made-up" not in shown
    assert "gateway_evil" not in shown
    assert 'model="other"' in shown

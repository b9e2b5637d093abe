"""What an attacker would try, each attempt refused: by a caller, by the vendor, by a file."""

from __future__ import annotations

import gc
import gzip
import json
import os
import pty
import re
import resource
import socket
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from msgspec.structs import replace

from gateway.config import Cache, Images, Limits, Metrics, Reading
from gateway.server.bounds import Bounds
from tests.operations.site import document, tenant, write
from tests.running import (
    ACME,
    EXPIRED,
    LIMITED,
    ROOT,
    STRICT,
    UPSTREAM_KEY,
    Client,
    HeldClock,
    Logs,
    RunningGateway,
    account,
    config_for,
    key_of,
    tenants,
)
from tests.running_fixtures import Start
from tests.security.hostile import HostileVendor, Listener, response, result
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

PATH: Final = "/v1/images/generations"
MODEL: Final = "qwen-image-2.0"
BODY: Final = json.dumps({"prompt": "a fox", "model": MODEL}).encode()
FORWARDED: Final = ("x-forwarded-for", "forwarded", "x-real-ip", "via")


def paid(simulator: SimulatedDashScope) -> int:
    """How many images the vendor has made."""
    return sum(simulator.state(0)["paid"].values())


def talk(gateway: Client, data: bytes, *, timeout_s: float = 5) -> bytes:
    """What comes back over a bare socket until the gateway hangs up."""
    received = b""
    port = int(gateway.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(data)
        while part := connection.recv(65536):
            received += part
    return received


def post(*lines: bytes, body: bytes = BODY, path: bytes = PATH.encode()) -> bytes:
    """A POST with a valid key and these further header lines."""
    head = (
        b"POST " + path + b" HTTP/1.1",
        b"host: gateway",
        b"authorization: Bearer " + ACME.encode(),
        b"content-type: application/json",
        *lines,
    )
    return b"\r\n".join(head) + b"\r\n\r\n" + body


# -- getting in without a key


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({"authorization": "Bearer"}, id="empty"),
        pytest.param({"authorization": "Bearer null"}, id="null"),
        pytest.param({"authorization": f"Basic {ACME}"}, id="another scheme"),
        pytest.param({"authorization": ACME}, id="no scheme"),
        pytest.param({"authorization": f"Bearer {ACME[:-1]}"}, id="cut off"),
        pytest.param({"authorization": f"Bearer {ACME.upper()}"}, id="capitals"),
        pytest.param({"authorization": f"Bearer {ACME} x"}, id="more behind"),
        pytest.param({"authorization": f"Bearer {ACME}\t{ACME}"}, id="twice in one"),
        pytest.param({"authorization": f"Bearer Bearer {ACME}"}, id="the scheme twice"),
        pytest.param({"authorization": f'Bearer "{ACME}"'}, id="quoted"),
        pytest.param({"authorization": f"Bearer {EXPIRED}"}, id="expired"),
        pytest.param({"authorization": f"Bearer {UPSTREAM_KEY}"}, id="the vendor's"),
        pytest.param({"authorization": f"Bearer {'A' * 20_000}"}, id="long"),
        pytest.param({"authorization": "Bearer ' OR '1'='1"}, id="quote"),
        pytest.param({"authorization": "Bearer *"}, id="glob"),
        pytest.param({"api-key": LIMITED, "authorization": f"Bearer {ACME}"}, id="two that differ"),
        pytest.param({"x-api-key": ACME}, id="another header"),
        pytest.param({"proxy-authorization": f"Bearer {ACME}"}, id="a proxy's"),
        pytest.param({"cookie": f"authorization=Bearer {ACME}"}, id="a cookie"),
        pytest.param({"x-original-url": "/healthz", "x-rewrite-url": "/healthz"}, id="another URL"),
        pytest.param({"x-http-method-override": "GET"}, id="another method"),
        pytest.param({"x-tenant": "acme", "x-forwarded-user": "acme"}, id="a name alone"),
    ],
)
def test_no_header_stands_in_for_a_key(
    gateway: Client, simulator: SimulatedDashScope, headers: dict[str, str]
) -> None:
    answer = gateway.ask("POST", PATH, key=None, headers=headers, content=BODY)

    assert answer.status_code == 401
    assert paid(simulator) == 0


@pytest.mark.parametrize("form", ["hash", "sha256:"])
def test_a_stored_hash_is_no_key(gateway: Client, form: str) -> None:
    """Whoever reads the configuration file cannot call the gateway with what it says."""
    stored = tenants()[0].keys[0].hash
    presented = stored if form == "sha256:" else stored.removeprefix("sha256:")

    assert gateway.generate(key=presented).status_code == 401


def test_another_tenant_s_key_opens_that_tenant_s_models_alone(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    assert gateway.generate(key=LIMITED, model=MODEL).status_code == 403
    assert gateway.generate(key=LIMITED, model=MODEL, user="acme").status_code == 403
    assert gateway.ask("GET", f"/v1/models/{MODEL}", key=LIMITED).status_code in {403, 404}
    assert paid(simulator) == 0


def test_the_time_of_a_refusal_tells_nothing_of_a_key(gateway: Client) -> None:
    """A key that is nearly right takes as long as one that is nothing like it."""
    near, far = ACME[:-7] + "0" + ACME[-6:], key_of("nobody")
    seconds: dict[str, list[float]] = {near: [], far: []}
    gc.collect()
    for _ in range(150):
        for key, taken in seconds.items():
            started = time.perf_counter()
            gateway.ask("GET", "/v1/models", key=key)
            taken.append(time.perf_counter() - started)
    quick = [statistics.median(sorted(taken)[:75]) for taken in seconds.values()]

    assert max(quick) < 1.5 * min(quick)


# -- making two servers disagree on where a request ends

SMUGGLED: Final = b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param((b"content-length: 4", b"transfer-encoding: chunked"), id="CL and TE"),
        pytest.param((b"transfer-encoding: chunked", b"content-length: 4"), id="TE and CL"),
        pytest.param((b"content-length: 4", b"content-length: 99"), id="two lengths"),
        pytest.param((b"content-length: 4, 99",), id="two lengths in one"),
        pytest.param((b"content-length: +4",), id="a sign"),
        pytest.param((b"content-length: 0x4",), id="hexadecimal"),
        pytest.param((b"content-length: -1",), id="below zero"),
        pytest.param((b"content-length : 4",), id="a space before the colon"),
        pytest.param((b"transfer-encoding: chunked", b"transfer-encoding: x"), id="two encodings"),
        pytest.param((b"transfer-encoding: \x0bchunked",), id="vertical tab"),
        pytest.param(
            (b"transfer-encoding: x\r\n chunked", b"content-length: 4"), id="a folded one"
        ),
        pytest.param((b"x: a\nhost: b", b"content-length: 4"), id="bare LF"),
        pytest.param((b"content-length: 4\n\nGET /v1/models HTTP/1.1",), id="bare LFs at the end"),
    ],
)
def test_a_request_of_two_lengths_is_one_refusal(
    gateway: Client, simulator: SimulatedDashScope, lines: tuple[bytes, ...]
) -> None:
    """And what was hidden behind it is never answered."""
    received = talk(gateway, post(*lines, b"connection: close", body=SMUGGLED))

    assert received.count(b"HTTP/1.1 ") == 1, received
    assert received.startswith(b"HTTP/1.1 4")
    assert paid(simulator) == 0


@pytest.mark.parametrize("size", [b"-1", b"0x4", b"ffffffffffffffffff", b"4;" + b"a" * 40_000])
def test_a_chunk_of_no_size_is_refused(
    gateway: Client, simulator: SimulatedDashScope, size: bytes
) -> None:
    chunks = size + b"\r\n" + BODY + b"\r\n0\r\n\r\n"
    received = talk(gateway, post(b"transfer-encoding: chunked", b"connection: close", body=chunks))

    assert received.startswith(b"HTTP/1.1 4")
    assert paid(simulator) == 0


# -- holding connections and memory


def test_a_head_that_never_ends_is_cut_off(
    gateway: Client, running_gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte at a time buys no more than the time-out."""
    monkeypatch.setattr(running_gateway, "bounds", Bounds(head_s=0.5))
    port = int(gateway.url.rpartition(":")[2])
    started = time.monotonic()
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.settimeout(0.1)
        connection.sendall(b"GET / HTTP/1.1\r\nx-slow: ")
        while not received and time.monotonic() < started + 5:
            with suppress(TimeoutError, BrokenPipeError):
                connection.sendall(b"a")
                received += connection.recv(4096)
    assert received.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 4


def test_a_body_that_never_ends_is_cut_off(start: Start, simulator: SimulatedDashScope) -> None:
    reading = Reading(body_timeout_s=0.5)
    gateway = start(config_for(account(simulator.base_url), reading=reading))

    started = time.monotonic()
    received = talk(gateway, post(b"content-length: 5000", b"connection: close"))

    assert received.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 4
    assert paid(simulator) == 0


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param((b"x: " + b"a" * 100_000,), id="one long header"),
        pytest.param(tuple(b"x-%d: y" % n for n in range(6000)), id="many headers"),
    ],
)
def test_a_head_without_bounds_is_refused(gateway: Client, lines: tuple[bytes, ...]) -> None:
    assert talk(gateway, post(*lines)).startswith(b"HTTP/1.1 431")


def test_a_target_without_bounds_is_refused(gateway: Client) -> None:
    received = talk(gateway, post(b"connection: close", path=b"/" + b"a" * 100_000))

    assert received.startswith((b"HTTP/1.1 431", b"HTTP/1.1 414"))


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_without_bounds_is_refused(
    gateway: Client, simulator: SimulatedDashScope, declared: bool
) -> None:
    huge = json.dumps({"prompt": "x" * 2_000_000}).encode()
    content: Any = huge if declared else iter([huge])
    headers = {"content-type": "application/json"}

    assert gateway.ask("POST", PATH, content=content, headers=headers).status_code == 413
    assert paid(simulator) == 0


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP", "gzip, identity"])
def test_a_compressed_body_is_not_unpacked(gateway: Client, encoding: str) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    headers = {"content-encoding": encoding, "content-type": "application/json"}

    assert gateway.ask("POST", PATH, content=bomb, headers=headers).status_code == 415


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"[" * 100_000, id="lists"),
        pytest.param(b'{"a":' * 20_000, id="objects"),
        pytest.param(b'{"n": 1' + b"0" * 100_000 + b"}", id="digits"),
        pytest.param(b'{"seed": 1e999999999}', id="an exponent"),
    ],
)
def test_deep_and_long_json_is_refused(gateway: Client, content: bytes) -> None:
    headers = {"content-type": "application/json"}

    assert gateway.ask("POST", PATH, content=content, headers=headers).status_code == 400


# -- paths, names and keys that mean something elsewhere


@pytest.mark.parametrize(
    "path",
    [
        b"/../../etc/passwd",
        b"/v1/models/../../../../etc/passwd",
        b"/v1/models/..%2f..%2fetc%2fpasswd",
        b"/v1/models/%2e%2e/%2e%2e/metrics",
        b"/v1/models/..;/..;/metrics",
        b"//metrics",
        b"/metrics/",
        b"/METRICS",
        b"/%6d%65trics/",
        b"/static/../gateway.yaml",
        b"/.env",
        b"http://127.0.0.1/metrics/",
    ],
)
def test_no_path_leads_to_files_or_around_a_rule(gateway: Client, path: bytes) -> None:
    received = talk(
        gateway,
        b"GET " + path + b" HTTP/1.1\r\nhost: gateway\r\nx-forwarded-for: 1.2.3.4\r\n"
        b"authorization: Bearer " + ACME.encode() + b"\r\nconnection: close\r\n\r\n",
    )

    assert received.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert b"root:" not in received
    assert b"gateway_requests" not in received


@pytest.mark.parametrize(
    "name", ["__proto__", "constructor", "__class__", "$where", "toString", "prompt\0", "Prompt"]
)
def test_a_key_that_means_something_elsewhere_is_unknown_here(gateway: Client, name: str) -> None:
    answer = gateway.post({"prompt": "a fox", name: {"admin": True}})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unknown_parameter"


def test_a_key_that_stands_twice_is_refused(gateway: Client) -> None:
    content = b'{"prompt": "harmless", "prompt": "the other one"}'
    headers = {"content-type": "application/json"}

    assert gateway.ask("POST", PATH, content=content, headers=headers).status_code == 400


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("ｑｗｅｎ-image-plus", id="full width"),
        pytest.param("qwen-image-plus\u200b", id="zero width"),
        pytest.param("qwen\u2010image\u2010plus", id="other hyphens"),
        pytest.param("qwеn-image-plus", id="a Cyrillic letter"),
        pytest.param("\u202eqwen-image-plus", id="right to left"),
        pytest.param("qwen-image-plus\0", id="NUL"),
        pytest.param("qwen-image-plus\n", id="line end"),
        pytest.param(" qwen-image-plus", id="space"),
        pytest.param("QWEN-IMAGE-PLUS", id="capitals"),
        pytest.param("qwen-image-*", id="glob"),
        pytest.param("../qwen-image-plus", id="path"),
        pytest.param("x" * 10_000, id="long"),
    ],
)
def test_no_other_spelling_is_a_model(
    gateway: Client, simulator: SimulatedDashScope, model: str
) -> None:
    """The tenant's globs are matched against the very name that is sent to the vendor."""
    assert gateway.generate(key=LIMITED, model=model).status_code in {400, 403, 404}
    assert paid(simulator) == 0


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


# -- a vendor that has been taken over


def test_a_vendor_s_count_is_not_believed(
    start: Start, vendor: HostileVendor, logs: Logs, tmp_path: Path
) -> None:
    """One answer with 20,000 addresses used up a tenant's budgets of a day and a month."""
    urls = [f"http://127.0.0.1:{vendor.port}/{number}.png" for number in range(20_000)]
    vendor.answers(result(*urls, urls[0]))
    limited = replace(tenants()[0], limits=Limits(images_per_day=10))
    config = config_for(
        account(vendor.base_url), tenants=(limited,), usage_log=str(tmp_path / "usage.jsonl")
    )
    gateway = start(config)

    answer = gateway.generate(model=MODEL, n=2)

    assert [image["url"] for image in answer.json()["data"]] == urls[:2]
    record = json.loads((tmp_path / "usage.jsonl").read_text())
    assert record["images"] == 2
    [told] = logs.named("surplus_images")
    assert told["surplus"] == 20_001 - 2
    assert gateway.generate(model=MODEL, n=8).status_code == 200


def hostile_gateway(start: Start, vendor: HostileVendor) -> Client:
    images = Images(
        allowed_hosts=(f"127.0.0.1:{vendor.port}", ".aliyuncs.com"),
        allow_http=True,
        timeout_s=3.0,
        max_bytes=1_000_000,
    )
    return start(config_for(account(vendor.base_url), images=images))


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("response_format", ["url", "b64_json"])
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{inside}/",
        "http://localhost:{inside}/",
        "http://[::1]:{inside}/",
        "http://[::ffff:127.0.0.1]:{inside}/",
        "http://2130706433:{inside}/",
        "http://0x7f000001:{inside}/",
        "http://127.1:{inside}/",
        "http://0:{inside}/",
        "http://127.0.0.1:{vendor}@127.0.0.1:{inside}/",
        "http://x.aliyuncs.com@127.0.0.1:{inside}/",
        "http://127.0.0.1:{inside}/#.aliyuncs.com",
        "http://127.0.0.1:{inside}\\@x.aliyuncs.com/",
        "http://127.0.0.1.nip.io:{inside}/x.aliyuncs.com",
        "https://x.aliyuncs.com.evil.example/",
        "https://aliyuncs.com.:{inside}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://metadata.google.internal/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{inside}/_GET",
        "javascript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "//127.0.0.1:{inside}/",
        "http://127.0.0.1:{vendor}/a\r\nX-Evil: 1",
        "http://127.0.0.1:{vendor}/ GET /",
        "",
        "a" * 100_000,
    ],
)
def test_no_result_leads_anywhere_else(
    start: Start, vendor: HostileVendor, inside: Listener, url: str, response_format: str
) -> None:
    """Neither fetched, nor handed to a client who would fetch it."""
    filled = url.replace("{inside}", str(inside.port)).replace("{vendor}", str(vendor.port))
    vendor.answers(result(filled))
    answer = hostile_gateway(start, vendor).generate(model=MODEL, response_format=response_format)

    assert answer.status_code == 502
    assert inside.reached == 0
    assert "127.0.0.1" not in answer.text


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize(
    "image",
    [
        pytest.param(
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:INSIDE/\r\n", id="redirect"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n", id="compressed"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n", id="huge"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n", id="below zero"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000 + b"\r\n", id="a long header"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n", id="no image"),
    ],
)
def test_an_image_host_cannot_lead_on_or_fill_the_memory(
    start: Start, vendor: HostileVendor, inside: Listener, image: bytes
) -> None:
    vendor.answers(result(f"http://127.0.0.1:{vendor.port}/a.png"))
    vendor.image = image.replace(b"INSIDE", b"%d" % inside.port) + b"\r\n<script>"
    answer = hostile_gateway(start, vendor).generate(model=MODEL, response_format="b64_json")

    assert answer.status_code == 502
    assert inside.reached == 0
    assert not any(UPSTREAM_KEY.encode() in asked for asked in vendor.asked if b"GET" in asked)


DEEP: Final = b'{"output":' * 100_000
INJECTION: Final = {"code": "X\r\nset-cookie: a=b", "message": "\x1b[2J<script>"}
BOMB: Final = gzip.compress(b'{"output": "' + b"a" * 200_000_000 + b'"}', 9)


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize(
    "says",
    [
        pytest.param(response(b"x" * 3_000_000), id="huge"),
        pytest.param(response(DEEP), id="deep"),
        pytest.param(response(b'{"output": {"choices": "a string"}}'), id="another type"),
        pytest.param(response(b'{"output": [1, 2, 3]}'), id="a list"),
        pytest.param(
            response(b'{"output": {"choices": [{"message": {"content": [{"image": 7}]}}]}}'),
            id="a number",
        ),
        pytest.param(response(b"[]"), id="no object"),
        pytest.param(response(b"\xff\xfe\x00"), id="no text"),
        pytest.param(response(b""), id="nothing"),
        pytest.param(response(b"<html>" + UPSTREAM_KEY.encode()), id="HTML with the key"),
        pytest.param(response(BOMB, head="content-encoding: gzip\r\n"), id="gzip bomb"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000, id="a head without end"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", id="another protocol"),
        pytest.param(
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
            id="redirect",
        ),
        pytest.param(
            response(b"{}", head="retry-after: 99999999999999\r\n", status=429), id="wait for ever"
        ),
        pytest.param(response(b"{}", head="retry-after: nan\r\n", status=429), id="wait for NaN"),
        pytest.param(
            response(
                b'{"code": "X\\r\\nset-cookie: a=b", "message": "\\u001b[2J<script>"}', status=400
            ),
            id="an error with line ends",
        ),
    ],
)
def test_a_vendor_s_answer_that_is_none_is_an_error_of_the_gateway(
    start: Start, vendor: HostileVendor, says: bytes
) -> None:
    """In the published form, without its words, and without much memory."""
    vendor.says = says
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = hostile_gateway(start, vendor).generate(model=MODEL)

    assert answer.status_code in {400, 429, 502, 503, 504}
    assert "set-cookie" not in answer.headers
    assert "<script>" not in answer.text
    assert "\\u001b" not in answer.text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


# -- files that are traps

LAUGHS: Final = "\n".join(
    ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(LAUGHS, id="a billion laughs"),
        pytest.param("a: &a [*a]", id="a list of itself"),
        pytest.param("a: &a {b: *a}", id="a mapping of itself"),
        pytest.param("[" * 50_000, id="deep"),
        pytest.param("!!python/object/apply:os.system ['id']", id="a call"),
        pytest.param("accounts: !!python/name:os.system", id="a name"),
        pytest.param("accounts: 2026-99-99", id="no day"),
        pytest.param("accounts: !!binary '*'", id="no base 64"),
        pytest.param("accounts: !!int ''", id="no number"),
        pytest.param("accounts: {? [a, b] : c}", id="a list as a key"),
        pytest.param("accounts: {? {a: b} : c}", id="a mapping as a key"),
        pytest.param("\x00", id="NUL"),
        pytest.param("tenants: ${" + "A" * 100_000, id="a reference without end"),
    ],
)
def test_a_file_that_is_a_trap_ends_in_a_fault(tmp_path: Path, text: str) -> None:
    """Named, with status 1, in bounded time and memory, and without a stack trace."""
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    limit = 400 * 1024 * 1024
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "check-config", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 1
    assert "fault" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_gateway_still_serves(gateway: Client) -> None:
    """After all of that."""
    with httpx.Client(trust_env=False):
        assert gateway.generate(model=MODEL).status_code == 200

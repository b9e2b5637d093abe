"""What a caller would try, with or without a key, to get in, get around or use up."""

from __future__ import annotations

import gzip
import json
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

import pytest
from msgspec.structs import replace

from gateway.config import Reading
from gateway.domain.errors import InvalidKey
from gateway.server.bounds import Bounds
from gateway.tenants.keys import KeyRing
from tests.running import (
    ACME,
    EXPIRED,
    LIMITED,
    UPSTREAM_KEY,
    Client,
    RunningGateway,
    account,
    config_for,
    key_of,
    tenants,
)
from tests.running_fixtures import Start
from tests.security.calls import BODY, MODEL, PATH, paid, post, talk
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow


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


class Watched(str):
    """A stored hash that notes what it is compared with."""

    __slots__ = ()
    seen: ClassVar[list[object]] = []

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        self.seen.append(other)
        return str(self) == other


@pytest.mark.parametrize(
    "presented",
    [
        pytest.param(ACME[:-7] + "0" + ACME[-6:], id="nearly right"),
        pytest.param(ACME[:-1], id="right as far as it goes"),
        pytest.param(key_of("nobody"), id="nothing like it"),
    ],
)
def test_the_time_of_a_refusal_tells_nothing_of_a_key(presented: str) -> None:
    """A comparison ends where two texts begin to differ, so no stored key is compared at all."""
    acme = tenants()[0]
    [key, *_] = acme.keys
    watched = replace(key, hash=Watched(key.hash))
    ring, now = KeyRing([replace(acme, keys=(watched,))]), datetime(2026, 1, 1, tzinfo=UTC)
    Watched.seen.clear()

    with pytest.raises(InvalidKey):
        ring.find(presented, now)

    assert Watched.seen == []
    assert ring.find(ACME, now).tenant.name == acme.name
    assert Watched.seen == [key.hash]


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

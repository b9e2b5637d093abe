"""Each metric by itself: when it is recorded, and that its table is current."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.config import Key, Limits, Redis, Tenant
from gateway.config.decode import Secret
from gateway.domain.catalogue import Rate
from gateway.observability.log_writer import log_writer
from gateway.observability.metrics import STORE_SECONDS, Metrics
from gateway.tenants.keys import hash_key
from gateway.tenants.usage_log import PaidCall, UsageLog
from tests.observability.scraping import MODEL, configuration
from tests.running import ACME, ROOT, Client, HeldClock, Logs, account, config_for, until
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope


def value(gateway: Client, series: str) -> float:
    """One line of /metrics; 0 where it is not there."""
    text = gateway.http.get(f"{gateway.url}/metrics").text
    found = [line for line in text.splitlines() if line.startswith(series)]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def test_the_documents_tables_are_current() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "write-tables", "--check"], check=True)


def test_each_metric_is_declared_once_and_explained() -> None:
    declared = Metrics().declared
    names = [one.name for one in declared]

    assert len(set(names)) == len(names)
    assert all(one.meaning.endswith(".") for one in declared)
    forbidden = {"prompt", "key", "user", "request_id", "path", "address"}
    assert not forbidden & {label for one in declared for label in one.labels}


def test_names_that_nobody_configured_are_other(gateway: Client) -> None:
    """Whatever clients send, they make no series."""
    for number in range(5):
        gateway.generate(model=f"made-up-{number}")
        gateway.generate(key=f"sk-made-up-{number}")

    assert value(gateway, 'gateway_requests_total{model="other",outcome="model_not_found"') == 5
    assert value(gateway, 'gateway_requests_total{model="other",outcome="invalid_key"') == 5
    assert "made-up" not in gateway.http.get(f"{gateway.url}/metrics").text


def test_a_download_is_counted_in_bytes_and_seconds(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    simulator.configure(image_bytes=100_000)
    gateway.generate(model=MODEL, n=2, response_format="b64_json")

    assert value(gateway, "gateway_download_bytes_total") >= 200_000
    assert value(gateway, "gateway_download_seconds_count") == 1


@pytest.mark.parametrize("form", ["url", "b64_json"])
def test_an_answer_is_counted_before_its_client_has_it(form: str, gateway: Client) -> None:
    """At once, not a moment later: a kill in between would lose it."""
    for number in range(1, 20):
        gateway.generate(model=MODEL, response_format=form, seed=1)
        assert value(gateway, "gateway_requests_total") == number


@pytest.mark.slow
def test_a_budget_is_shown_and_renews(
    start: Start, simulator: SimulatedDashScope, clock: HeldClock
) -> None:
    tenant = Tenant(name="acme", keys=(Key(hash=hash_key(ACME)),), limits=Limits(images_per_day=4))
    config = config_for(account(simulator.base_url), tenants=(tenant,))
    gateway = start(config)
    series = 'gateway_budget_used_ratio{limit="images_per_day",tenant="acme"}'
    gateway.generate(model=MODEL, n=3)

    until(lambda: value(gateway, series) == 0.75)
    clock.now += 86_400
    until(lambda: value(gateway, series) == 0)


@pytest.mark.parametrize("by", ["store", "worker"])
def test_what_the_limits_decided_is_counted(
    by: str, start: Start, simulator: SimulatedDashScope, clock: HeldClock
) -> None:
    """With Redis, and with none at its address."""
    limits = Limits(requests_per_minute=2)
    tenant = Tenant(name="acme", keys=(Key(hash=hash_key(ACME)),), limits=limits)
    lost = Redis(url=Secret("redis://127.0.0.1:1")) if by == "worker" else None
    gateway = start(config_for(account(simulator.base_url), tenants=(tenant,), redis=lost))
    if by == "worker":
        clock.now = time.time()

    statuses = [gateway.generate(model=MODEL).status_code for _ in range(3)]

    assert statuses == [200, 200, 429]
    admitted = f'gateway_limiter_admissions_total{{by="{by}",tenant="acme"}}'
    assert value(gateway, admitted) == 2
    refused = 'gateway_limiter_refusals_total{limit="requests_per_minute",tenant="acme"}'
    assert value(gateway, refused) == 1


@pytest.mark.slow
def test_log_lines_that_were_lost_are_counted(
    gateway: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = value(gateway, "gateway_log_lines_lost_total")
    monkeypatch.setattr(log_writer, "_dropped", log_writer.lost + 7)
    until(lambda: value(gateway, "gateway_log_lines_lost_total") == before + 7)


def test_images_are_delivered_though_the_usage_record_cannot_be_written(
    start: Start, simulator: SimulatedDashScope, logs: Logs
) -> None:
    """They are paid for. The line is in the log instead."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    gateway = start(config_for(account(simulator.base_url), usage_log="/dev/full"))

    answer = gateway.generate(model=MODEL, n=2)

    assert answer.status_code == 200
    assert value(gateway, "gateway_usage_records_lost_total") == 1
    assert value(gateway, "gateway_images_total") == 2
    [line] = logs.named("usage_record_lost")
    assert (line["record"]["images"], line["record"]["tenant"]) == (2, "acme")


def test_a_tally_shows_what_the_histogram_would_have() -> None:
    """On a bucket's bound, between two and beyond the last; twice flushed is counted once."""
    tallied, observed = Metrics(), Metrics()
    for amount in (0.0, 0.0005, 0.0006, 0.7, 1.0, 30.0):
        for operation in ("enter", "end"):
            tallied.store_seconds.observe(operation, amount)
            observed.store_seconds.histogram.labels(operation).observe(amount)
        tallied.store_seconds.flush()
        tallied.store_seconds.flush()

    assert store_lines(tallied) == store_lines(observed)
    assert len(store_lines(tallied)) == 2 * (len(STORE_SECONDS) + 3)


def store_lines(metrics: Metrics) -> list[str]:
    lines = metrics.render().decode().splitlines()
    return [
        line
        for line in lines
        if line.startswith("gateway_store_seconds_") and "_created" not in line
    ]


@pytest.mark.slow
def test_each_part_s_calls_of_redis_are_timed(
    start: Start, simulator: SimulatedDashScope, redis_url: str
) -> None:
    """Limits, ledger and pacing, by what they asked for; nobody else can name an operation."""
    paced = account(simulator.base_url, rates={"*": Rate(50)})
    gateway = start(config_for(paced, redis=Redis(url=Secret(redis_url))))
    gateway.generate(model=MODEL, response_format="b64_json")
    each = {"enter", "end", "leave", "pacing_claim"}
    series = 'gateway_store_seconds_count{{operation="{}"}}'

    until(lambda: all(value(gateway, series.format(operation)) >= 1 for operation in each))
    text = gateway.http.get(f"{gateway.url}/metrics").text
    lua = ROOT / "gateway" / "store" / "lua"
    scripts = {
        "_".join(path.relative_to(lua).with_suffix("").parts).removeprefix("requests_")
        for path in lua.rglob("*.lua")
    }
    assert set(re.findall(r'gateway_store_seconds_count{operation="(\w+)"}', text)) <= scripts


def test_a_heartbeat_is_shown(gateway: Client) -> None:
    now = datetime.now(UTC).timestamp()

    until(lambda: abs(value(gateway, "gateway_heartbeat_timestamp_seconds") - now) < 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("x-forwarded-host", "x-forwarded-proto", "x-forwarded-server", "x-forwarded"),
        *("x-envoy-external-address", "x-envoy-expected-rq-timeout-ms", "x-original-forwarded-for"),
        *("cf-connecting-ip", "cdn-loop", "true-client-ip", "x-amzn-trace-id", "x-azure-ref"),
    ],
)
def test_what_a_proxy_adds_closes_the_metrics(name: str, gateway: Client) -> None:
    """And nothing else that is served."""
    for path, status in (("/metrics", 404), ("/healthz", 200)):
        assert gateway.ask("GET", path, headers={name: "127.0.0.1"}).status_code == status


def test_metrics_are_not_read_in_http_1_0(gateway: Client) -> None:
    """As nginx asks for them with a bare `proxy_pass`, which adds no header to tell it by."""
    port = int(gateway.url.rpartition(":")[2])
    for version, status in ((b"1.0", b"404"), (b"1.1", b"200")):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
            line.sendall(b"GET /metrics HTTP/%s\r\nhost: a\r\nconnection: close\r\n\r\n" % version)
            received = line.makefile("rb").readline()
        assert received.split()[1] == status


@pytest.mark.slow
def test_usage_is_summed_by_the_command(tmp_path: Path) -> None:
    log = UsageLog(tmp_path / "usage.jsonl")
    for day, tenant, images in ((1, "acme", 1), (2, "acme", 2), (2, "small", 3)):
        log.append(
            PaidCall(
                at=datetime(2026, 11, day, 23, tzinfo=UTC),
                request_id="req_1",
                tenant=tenant,
                key="ci",
                model=MODEL,
                size=None,
                images=images,
                cost=images * 200_000,
            )
        )
    log.close()
    file = tmp_path / "gateway.yaml"
    document = json.loads(configuration("http://127.0.0.1:9/api/v1", "redis://127.0.0.1:9/0"))
    file.write_text(json.dumps(document | {"usage_log": str(tmp_path / "usage.jsonl")}))

    def usage(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gateway", "usage", "--config", str(file), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    summed = json.loads(usage("--since", "2026-11-02", "--by", "tenant,model,day", "--json").stdout)
    assert summed["rows"] == [
        {"tenant": "acme", "model": MODEL, "day": "2026-11-02", "generations": 1, "images": 2,
         "cost": "0.4"},
        {"tenant": "small", "model": MODEL, "day": "2026-11-02", "generations": 1, "images": 3,
         "cost": "0.6"},
    ]  # fmt: skip
    assert summed["total"] == {"generations": 2, "images": 5, "cost": "1"}
    table = usage("--by", "tenant").stdout.splitlines()
    assert [line.split() for line in table] == [
        ["tenant", "generations", "images", "CNY"],
        ["acme", "2", "3", "0.6"],
        ["small", "1", "3", "0.6"],
        ["total", "3", "6", "1.2"],
    ]
    wrong = usage("--by", "colour")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "'colour' is none of tenant" in wrong.stderr

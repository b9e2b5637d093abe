"""A real Prometheus, what it has of a run, and the client that counted every answer itself.

The rule, as docs/metrics.md has it: a whole answer is counted exactly once. A request that was lost
with its worker is not, unless the kill fell between its count and its last byte.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.observability.metrics import Metrics
from tests.observability.scraping import Run
from tests.running import ROOT

pytestmark = [pytest.mark.timing, pytest.mark.xdist_group("prometheus")]

DASHBOARD: Final = ROOT / "deploy" / "grafana" / "gateway.json"
RULES: Final = ROOT / "deploy" / "prometheus"


def test_requests_add_up_across_a_killed_worker(run: Run) -> None:
    counted = run.prometheus.query("sum by (outcome, tenant) (gateway_requests_total)")
    answered = {(outcome, tenant): n for (tenant, outcome), n in run.tally.answers.items()}

    assert len(answered) >= 6
    assert run.tally.lost, "the kill hit nothing that was in flight"
    extra = {key: counted.get(key, 0) - n for key, n in answered.items()}
    assert min(extra.values()) >= 0
    assert sum(counted.values()) - sum(answered.values()) <= len(run.tally.lost)
    assert counted.keys() == answered.keys()


def test_images_and_spend_add_up(run: Run) -> None:
    images = run.prometheus.query("sum by (tenant) (gateway_images_total)")
    spend = run.prometheus.query("sum by (tenant) (gateway_spend_total)")

    assert images.keys() == spend.keys() == {(tenant,) for tenant in run.tally.images}
    extra = sum(images.values()) - sum(run.tally.images.values())
    assert 0 <= extra <= run.tally.lost_images
    for tenant, number in images.items():
        assert number >= run.tally.images[tenant[0]]
        assert round(spend[tenant] * 1e6) == number * run.price.micros


def test_what_was_booked_was_made(run: Run) -> None:
    """The vendor made what was counted, what nobody asked for, and what died with the worker."""
    surplus = run.prometheus.query("sum (gateway_upstream_surplus_images_total)")[()]
    made = sum(run.simulator.state(log=0)["paid"].values()) - surplus
    booked = run.prometheus.query("sum (gateway_images_total)")[()]

    assert 0 <= made - booked <= run.tally.lost_images


def test_gauges_of_the_killed_worker_are_gone(run: Run) -> None:
    """It had requests in flight, which will never end."""
    assert run.prometheus.query("sum (gateway_requests_in_flight)") == {(): 0}
    assert run.prometheus.query("count (gateway_build_info == 1)") == {(): 2}
    age_s = run.prometheus.query("max (time() - gateway_heartbeat_timestamp_seconds)")[()]
    assert age_s < 10


def test_every_metric_is_there(run: Run) -> None:
    """The run had a bit of everything; a metric without a series would be one never recorded."""
    names = set(run.prometheus.ask("label/__name__/values"))
    for metric in Metrics().declared:
        suffix = "_count" if metric.kind == "histogram" else ""
        assert metric.name + suffix in names


def test_labels_are_closed_lists(run: Run) -> None:
    for label, allowed in {
        "tenant": {"acme", "small", "other"},
        "model": {"qwen-image-2.0", "other"},
        "account": {"one"},
    }.items():
        assert set(run.prometheus.ask(f"label/{label}/values")) <= allowed


def test_every_query_of_the_dashboard_returns_data(run: Run) -> None:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"].replace("$__rate_interval", "1m")
            values = run.prometheus.query(expr).values()
            assert any(not math.isnan(value) for value in values), (panel["title"], expr)


def test_every_rule_is_evaluated_without_error(run: Run) -> None:
    groups = run.prometheus.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}

    assert {rule["health"] for rule in rules} == {"ok"}
    assert not firing & {"ImageGatewayDown", "ImageGatewayAbsent", "ImageGatewayNoHeartbeat"}


def test_the_dashboard_is_what_its_program_writes() -> None:
    """Else run deploy/grafana/dashboard.py > deploy/grafana/gateway.json."""
    written = dashboard_module().dashboard()

    assert json.loads(DASHBOARD.read_text()) == written


def test_the_rules_pass_their_own_tests(promtool: str) -> None:
    commands: tuple[list[str | Path], ...] = (
        ["check", "rules", *sorted(RULES.glob("*.rules.yaml"))],
        ["check", "config", RULES / "prometheus.yaml"],
        ["test", "rules", *sorted(RULES.glob("*.tests.yaml"))],
    )
    for arguments in commands:
        subprocess.run([promtool, *arguments], check=True, capture_output=True)


def test_rules_and_dashboard_name_metrics_that_exist() -> None:
    """Also where no Prometheus is at hand."""
    known = {metric.name for metric in Metrics().declared}
    text = (RULES / "gateway.rules.yaml").read_text() + DASHBOARD.read_text()
    used = set(re.findall(r"\bgateway_\w+", text))

    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in used} <= known


def dashboard_module() -> Any:
    path = Path(DASHBOARD).with_name("dashboard.py")
    spec = importlib.util.spec_from_file_location("dashboard", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

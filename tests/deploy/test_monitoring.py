"""Prometheus finds gateways and rules, Grafana finds both, and whoever is alerted finds help."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.domain.errors import UpstreamBilling, UpstreamRefused, UpstreamThrottled
from gateway.translate.failure import TABLE, Remedy, Row
from tests.deploy.rendering import COMPOSE, DEPLOY, PRODUCTION, ROOT, load, only, render

SERVICES: Final[dict[str, Any]] = load(COMPOSE)["services"]
RULES: Final = DEPLOY / "prometheus" / "gateway.rules.yaml"
ALERTS: Final[dict[str, Any]] = {
    rule["alert"]: rule
    for group in load(RULES)["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
SCRAPES: Final = ("compose/prometheus.yaml", "prometheus/prometheus.yaml")


@pytest.mark.parametrize("name", SCRAPES)
def test_prometheus_reads_the_rules(name: str, tmp_path: Path) -> None:
    """Real promtool reads them through the configuration, whose paths are put where they are."""
    if not shutil.which("promtool"):
        pytest.skip("promtool was not found: install prometheus")
    config = (DEPLOY / name).read_text()
    for inside, here in mounts("prometheus").items():
        config = config.replace(inside, str(here))
    # Beside the rules, since a relative path starts at the file.
    shutil.copy(RULES, tmp_path)
    file = tmp_path / "prometheus.yaml"
    file.write_text(config)

    run = subprocess.run(
        ["promtool", "check", "config", file], capture_output=True, text=True, check=False
    )

    assert run.returncode == 0, run.stderr
    assert "1 rule files found" in run.stdout


def test_every_deployment_gives_the_gateways_the_job_that_the_alerts_ask_for() -> None:
    asked_for = {
        job for rule in ALERTS.values() for job in re.findall(r'job="([^"]+)"', rule["expr"])
    }
    given = [{one["job_name"] for one in load(DEPLOY / name)["scrape_configs"]} for name in SCRAPES]
    # The operator names a job after the Service, unless the ServiceMonitor says otherwise.
    monitor = only(render(PRODUCTION), "ServiceMonitor")["spec"]
    service = only(render(PRODUCTION), "Service")["metadata"]["name"]

    assert asked_for
    assert all(asked_for <= jobs for jobs in given)
    assert "jobLabel" not in monitor
    assert asked_for == {service}


@pytest.mark.parametrize(
    ("alert", "meant"),
    [
        ("ImageGatewayUpstreamThrottled", lambda row: row.error is UpstreamThrottled),
        ("ImageGatewayAccountOutOfCredit", lambda row: row.error is UpstreamBilling),
        (
            "ImageGatewayAccountRefused",
            lambda row: row.error is UpstreamRefused and row.remedy is Remedy.OTHER_ACCOUNT,
        ),
    ],
)
def test_an_alert_knows_every_code_of_the_vendor_s_for_it(
    alert: str, meant: Callable[[Row], bool]
) -> None:
    """And none that means something else."""
    (known,) = set(re.findall(r'code=~"([^"]+)"', ALERTS[alert]["expr"]))

    for row in TABLE:
        for label in {row.label(code) for code in row.codes or ("",)}:
            assert bool(re.fullmatch(known, label)) is meant(row), label


def test_a_roll_out_wakes_nobody() -> None:
    """A gateway that drains takes no new connection, Prometheus' neither."""
    pod = only(render(PRODUCTION), "Deployment")["spec"]["template"]["spec"]
    longest_s = max(
        pod["terminationGracePeriodSeconds"],
        int(SERVICES["gateway-1"]["stop_grace_period"].removesuffix("s")),
    )

    assert int(ALERTS["ImageGatewayDown"]["for"].removesuffix("m")) * 60 > longest_s


def test_grafana_finds_the_dashboard_and_its_data() -> None:
    provisioning = DEPLOY / "compose" / "grafana"
    (provider,) = load(provisioning / "dashboards" / "gateway.yaml")["providers"]
    (source,) = load(provisioning / "datasources" / "prometheus.yaml")["datasources"]
    folders = mounts("grafana")
    dashboard = json.loads((folders[provider["options"]["path"]] / "gateway.json").read_text())
    host, port = source["url"].removeprefix("http://").split(":")
    used = {panel["datasource"]["uid"] for panel in dashboard["panels"] if "datasource" in panel}

    assert folders["/etc/grafana/provisioning"] == provisioning
    assert used == {source["uid"]}
    assert set(SERVICES[host]["networks"]) & set(SERVICES["grafana"]["networks"])
    assert f":{port}/" in SERVICES[host]["healthcheck"]["test"][-1]


def test_a_cluster_is_given_the_same_dashboard() -> None:
    (held,) = [
        one["data"]
        for one in render(PRODUCTION)
        if one["metadata"].get("labels", {}).get("grafana_dashboard")
    ]

    assert held == {"gateway.json": (DEPLOY / "grafana" / "gateway.json").read_text()}


def test_every_alert_has_a_section_of_the_runbook_and_every_section_an_alert() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    runbook = text[text.index("\n## Runbook\n") :].split("\n## ")[1]
    sections = {
        heading: body
        for heading, _, body in (part.partition("\n") for part in runbook.split("\n### ")[1:])
    }
    anchors = {f"docs/operations.md#{heading.lower()}": heading for heading in sections}
    linked = {name: anchors.get(rule["annotations"]["runbook"]) for name, rule in ALERTS.items()}

    assert set(linked.values()) == set(sections)
    for name, heading in linked.items():
        assert heading is not None
        assert name == heading or f"`{name}`" in sections[heading], name


def mounts(service: str) -> dict[str, Path]:
    """What of this repository a container of deploy/compose sees, by where it sees it."""
    pairs = (volume.split(":")[:2] for volume in SERVICES[service]["volumes"])
    return {
        inside: (COMPOSE.parent / here).resolve() for here, inside in pairs if here.startswith(".")
    }

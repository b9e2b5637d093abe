#!/usr/bin/env python3
"""Write the dashboard: `deploy/grafana/dashboard.py > deploy/grafana/gateway.json`.

A panel is its title, its unit and its queries, each with a legend; a row has up to four of them.
"""

from __future__ import annotations

import json
import sys
from typing import Any

FAILED = "upstream_.+|incomplete_result|image_unavailable|service_unavailable|internal_fault"
HIT = "hit|joined|replayed"
CACHEABLE = '{result!="bypass"}'
IN_FLIGHT = "sum by (instance) (gateway_requests_in_flight)"
WITH_VERSION = "* on (instance) group_left (version) gateway_build_info"


def rate(metric: str, by: str = "", where: str = "") -> str:
    """A counter per second, summed over gateways."""
    return f"sum{f' by ({by})' if by else ''} (rate(gateway_{metric}{where}[$__rate_interval]))"


def share(metric: str, part: str, whole: str = "") -> str:
    """What part of a counter's growth some of its series have."""
    return f"({rate(metric, where=part)} or vector(0)) / {rate(metric, where=whole)}"


def quantiles(metric: str) -> list[tuple[str, str]]:
    """The median and the tail of a histogram."""
    buckets = rate(f"{metric}_bucket", "le")
    return [(f"histogram_quantile({q}, {buckets})", f"p{round(q * 100)}") for q in (0.5, 0.9, 0.99)]


def failed() -> str:
    """Of the requests that were to succeed: callers' mistakes and refusals say nothing of it."""
    failures = rate("requests_total", where=f'{{outcome=~"{FAILED}"}}')
    successes = rate("requests_total", where='{outcome="ok", tenant!="other"}')
    both = f"{failures.removeprefix('sum ')} or {successes.removeprefix('sum ')}"
    return f"({failures} or vector(0)) / sum ({both})"


Panel = tuple[str, str, list[tuple[str, str]]]

ROWS: dict[str, list[Panel]] = {
    "Requests": [
        ("Requests by outcome", "reqps", [(rate("requests_total", "outcome"), "{{outcome}}")]),
        ("Requests by tenant", "reqps", [(rate("requests_total", "tenant"), "{{tenant}}")]),
        (
            "Failed, of all",
            "percentunit",
            [(failed(), "failed")],
        ),
        (
            "In flight",
            "short",
            [(f"{IN_FLIGHT} {WITH_VERSION}", "{{instance}}, version {{version}}")],
        ),
    ],
    "Where the time goes": [
        ("Whole request", "s", quantiles("request_seconds")),
        ("The gateway's own", "s", quantiles("overhead_seconds")),
        ("Waiting for a slot", "s", quantiles("queue_seconds")),
        ("The vendor's answer", "s", quantiles("upstream_seconds")),
    ],
    "Images and money": [
        ("Images", "images/s", [(rate("images_total", "model, tier"), "{{model}} {{tier}}")]),
        (
            "Spend an hour, in the catalogue's currency",
            "short",
            [(f"3600 * {rate('spend_total', 'tenant')}", "{{tenant}}")],
        ),
        (
            "Budget used",
            "percentunit",
            [("max by (tenant, limit) (gateway_budget_used_ratio)", "{{tenant}} {{limit}}")],
        ),
        (
            "Refused by limits",
            "reqps",
            [(rate("limiter_refusals_total", "tenant, limit"), "{{tenant}} {{limit}}")],
        ),
    ],
    "Accounts": [
        (
            "Calls by code",
            "reqps",
            [(rate("upstream_calls_total", "account, code"), "{{account}} {{code}}")],
        ),
        (
            "Calls that wait for a slot",
            "short",
            [("sum by (model) (gateway_queue_length)", "{{model}}")],
        ),
        (
            "Sent again",
            "reqps",
            [(rate("upstream_retries_total", "account, remedy"), "{{account}} {{remedy}}")],
        ),
        (
            "Breakers open",
            "short",
            [("max by (account, model) (gateway_breaker_open)", "{{account}} {{model}}")],
        ),
    ],
    "Cache and images": [
        ("Look-ups", "reqps", [(rate("cache_results_total", "result"), "{{result}}")]),
        (
            "Hits, of what may be cached",
            "percentunit",
            [
                (share("cache_results_total", f'{{result=~"{HIT}"}}', CACHEABLE), "hits"),
            ],
        ),
        ("Age at a hit", "s", quantiles("cache_age_at_hit_seconds")),
        (
            "Images' bytes",
            "Bps",
            [
                (rate("download_bytes_total"), "fetched for answers"),
                (rate("image_cache_kept_bytes_total"), "kept"),
                (rate("image_cache_served_bytes_total"), "answered from those kept"),
            ],
        ),
    ],
    "The gateway itself": [
        ("Waiting for image hosts", "s", quantiles("download_seconds")),
        ("The store", "s", quantiles("store_seconds")),
        (
            "Without Redis, and owed to it",
            "short",
            [
                ("max by (function) (gateway_store_degraded)", "{{function}} alone"),
                ("sum (gateway_settlements_owed)", "settlements owed"),
                ("sum (increase(gateway_usage_records_lost_total[1h]))", "usage lines lost"),
            ],
        ),
        (
            "Since the last sign of life",
            "s",
            [("time() - gateway_heartbeat_timestamp_seconds", "{{instance}}")],
        ),
    ],
}
COLUMNS, WIDTH, HEIGHT = 4, 24, 8


def panel(number: int, place: tuple[int, int], content: Panel) -> dict[str, Any]:
    """One graph."""
    title, unit, queries = content
    x, y = place
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "gridPos": {"x": x, "y": y, "w": WIDTH // COLUMNS, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expr, "legendFormat": legend}
            for index, (expr, legend) in enumerate(queries)
        ],
    }


def dashboard() -> dict[str, Any]:
    """All of it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place})
        for column, content in enumerate(row):
            at = (column * WIDTH // COLUMNS, y + 1)
            panels.append(panel(len(panels) + 1, at, content))
        y += HEIGHT + 1
    return {
        "uid": "image-gateway",
        "title": "Image gateway",
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "utc",
        "panels": panels,
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=1)
    sys.stdout.write("\n")

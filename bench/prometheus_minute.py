"""A minute of load on 2 gateways of 2 workers, three of them killed, seen by a real Prometheus.

    .venv/bin/python bench/prometheus_minute.py [--seconds 60] [--kills 3]

Needs Debian's package `prometheus`. Prints what the client counted beside what Prometheus has; the
exit status is 1 where they differ by more than the requests that were lost (docs/metrics.md).
"""
# ruff: noqa: INP001, T201 - a program that measures others and prints

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.observability.scraping import Run, has_prometheus, loaded


def compare(run: Run) -> bool:
    """Print both sides; whether they agree."""
    query, tally = run.prometheus.query, run.tally
    counted = query("sum by (outcome, tenant) (gateway_requests_total)")
    answered = {(outcome, tenant): n for (tenant, outcome), n in tally.answers.items()}
    print(f"{'outcome':24}{'tenant':10}{'client':>10}{'Prometheus':>12}")
    for outcome, tenant in sorted(counted.keys() | answered.keys()):
        key = (outcome, tenant)
        print(f"{outcome:24}{tenant:10}{answered.get(key, 0):>10}{counted.get(key, 0):>12.0f}")
    images = query("sum (gateway_images_total)")[()]
    spend = query("sum (gateway_spend_total)")[()]
    seen = sum(tally.images.values())
    made = sum(run.simulator.state(log=0)["paid"].values())
    print(f"requests: client {sum(answered.values())}, Prometheus {sum(counted.values()):.0f}, ")
    print(f"  lost with their workers {len(tally.lost)}")
    print(f"images: client {seen}, Prometheus {images:.0f}, made by the vendor {made}")
    print(f"spend: client {seen * run.price.micros / 1e6:.2f}, Prometheus {spend:.2f}")
    more = sum(counted.values()) - sum(answered.values())
    exact = all(counted.get(key, 0) >= number for key, number in answered.items())
    return (
        exact
        and 0 <= more <= len(tally.lost)
        and 0 <= images - seen <= tally.lost_images
        and round(spend * 1e6) == images * run.price.micros
    )


def main() -> None:
    """Run, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kills", type=int, default=3)
    options = parser.parse_args()
    if not has_prometheus():
        sys.exit("Debian's package `prometheus` is not installed")
    with (
        tempfile.TemporaryDirectory() as folder,
        loaded(Path(folder), seconds=options.seconds, kills=options.kills) as run,
    ):
        agree = compare(run)
    print("they agree" if agree else "THEY DIFFER")
    sys.exit(not agree)


if __name__ == "__main__":
    main()

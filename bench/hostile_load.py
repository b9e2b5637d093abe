"""Attackers of each kind at once for minutes, beside a tenant that behaves.

    .venv/bin/python bench/hostile_load.py [--seconds 600]

Two gateways of two workers, a real Redis and a pretend vendor on this machine. Hostile header
lines, models that nobody has heard of, refused floods with fresh Idempotency-Keys, requests without
a key, pipelined requests that hang up, unfinished bodies, silent connections and slow readers, all
at once (tests/security/attackers.py). The exit status is 1 if a request of the tenant that behaves
is answered wrongly, if the gateway's own time of its requests has a p99 above 250 ms, or if Redis
or a worker grows from a third of the time to its end.
"""
# ruff: noqa: INP001, T201 - a program that measures others and prints

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.security.hostile_load import Outcome, run_load

P99_MS = 250.0
WORKER_MIB = 16.0
REDIS_KIB_EACH = 4.0
"""For each request of the tenant that behaves: what is remembered of it, for its retry."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    outcome = run_load(parser.parse_args().seconds)
    print(outcome.show())
    faults = list(faults_of(outcome))
    for fault in faults:
        print(f"MISSED: {fault}")
    return int(bool(faults))


def faults_of(outcome: Outcome) -> list[str]:
    growth = outcome.growth_mib()
    redis_mib = growth.pop("redis")
    faults = {
        "every request of the good tenant is answered": set(outcome.good) != {200},
        "its images are those in the usage record": outcome.recorded != outcome.images,
        "nobody gets a 500": any(kind.endswith("500") for kind in outcome.attacks),
        "no defect is logged": outcome.failures > 0,
        f"p99 at most {P99_MS:g} ms": outcome.p99_ms > P99_MS,
        "Redis is flat": redis_mib > 1 + outcome.asked * REDIS_KIB_EACH / 1024,
        f"no worker grows by {WORKER_MIB:g} MiB": max(growth.values()) > WORKER_MIB,
    }
    return [what for what, is_missed in faults.items() if is_missed]


if __name__ == "__main__":
    raise SystemExit(main())

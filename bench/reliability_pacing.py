"""Fair pacing at full length: 500, 5 and 1 requests wait for an account that takes two a second.

    .venv/bin/python bench/reliability_pacing.py [--replicas] [--seconds 270]

Starts the simulator in its strictest mode (no two calls closer than nine tenths of the even
distance) and one gateway, or with `--replicas` two of two workers each over a redis-server, as
`tests/reliability` does, which stops after some seconds. The exit status is 1 when a goal is
missed: no call refused, 95 % of the rate, and the small tenants within two slots of their ideal
turns.
"""
# ruff: noqa: INP001, T201 - a program that measures others and prints

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.reliability.pacing import (  # noqa: E402 - after the path
    RATE,
    WAITING,
    Run,
    alone,
    ideal_turns,
    replicas,
    run,
)

GOAL = 0.95


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replicas", action="store_true", help="two gateways of two workers")
    parser.add_argument("--seconds", type=float, default=270.0, help="until everyone hangs up")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        fleet, vendor = (replicas if arguments.replicas else alone)(stack)
        return report(asyncio.run(run(fleet, vendor, arguments.seconds)))


def report(found: Run) -> int:
    """The figures, printed; 1 if a goal is missed."""
    refused = sum(call.status != 200 for call in found.calls)
    at = [call.at for call in found.calls]
    closest = min(later - earlier for earlier, later in pairwise(at))
    print(f"calls      {len(found.calls)}, {refused} refused, the closest {closest:.3f} s apart")
    print(f"rate       {found.pace():.3f} of {RATE:g} a second: {found.pace() / RATE:.1%}")
    is_fair = True
    for tenant, ideal in ideal_turns().items():
        turns = found.turns(tenant)[: WAITING[tenant]]
        waits = sorted(answer.took_s for answer in found.answers[tenant])
        print(f"{tenant:10} slots {turns}, at best {ideal}; ", end="")
        print(f"waits {', '.join(f'{wait_s:.2f}' for wait_s in waits)} s")
        is_fair &= all(turn <= best + 2 for turn, best in zip(turns, ideal, strict=True))
    return int(bool(refused) or found.pace() < GOAL * RATE or not is_fair)


if __name__ == "__main__":
    os.chdir(ROOT)
    raise SystemExit(main())

"""Random histories of whole gateways, in virtual time: what was paid is what was booked.

    .venv/bin/python bench/histories.py [--first 0] [--count 1000] [--redis] [--only NUMBER]

Each history is known by its number, and a part of them is in the suite. This goes through more of
them, in two processes, and prints the number of each that breaks a rule of tests/paying/judge.py;
`--only` goes through that one again, with those before it that share its gateways. The exit status
is 1 if any does. With `--redis` the store is a real one, in one process.
"""
# ruff: noqa: INP001, T201 - a program that prints

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.paying.judge import batch_of, batches, judge  # noqa: E402 - after the path
from tests.virtual_redis import RedisSharedStore  # noqa: E402

PROCESSES = 2


def main() -> int:
    arguments = read_arguments()
    numbers = range(arguments.first, arguments.first + arguments.count)
    parts = [batch_of(arguments.only)] if arguments.only is not None else list(batches(numbers))
    started_at = time.perf_counter()
    seen, faults = (over_redis if arguments.redis else in_memory)(parts)
    print(f"{sum(map(len, parts))} histories in {time.perf_counter() - started_at:.1f} s")
    print(", ".join(f"{count} {what}" for what, count in sorted(seen.items())))
    for fault in faults:
        print(fault)
    return int(bool(faults))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--first", type=int, default=0, help="the number of the first")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--only", type=int, help="one that broke a rule")
    parser.add_argument("--redis", action="store_true", help="over a real Redis")
    return parser.parse_args()


def in_memory(parts: list[range]) -> tuple[Counter[str], list[str]]:
    with ProcessPoolExecutor(PROCESSES) as pool:
        return added(pool.map(judged, parts))


def over_redis(parts: list[range]) -> tuple[Counter[str], list[str]]:
    with RedisSharedStore() as store:
        return added(judged(part, store) for part in parts)


def judged(part: range, store: RedisSharedStore | None = None) -> tuple[Counter[str], str | None]:
    """What a batch saw, or what was wrong with it."""
    try:
        return judge(part, store), None
    except AssertionError as fault:
        return Counter(), str(fault)


def added(results: Iterable[tuple[Counter[str], str | None]]) -> tuple[Counter[str], list[str]]:
    seen, faults = Counter[str](), []
    for counted, fault in results:
        seen += counted
        faults += [fault] if fault else []
    return seen, faults


if __name__ == "__main__":
    raise SystemExit(main())

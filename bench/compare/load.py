"""Putting load on contenders in turns, by wrk."""
# ruff: noqa: INP001, S603, T201

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from contenders import KEY, SAME, Contender
from msgspec import Struct
from processes import OTHERS, cores

ASK = Path(__file__).parent / "ask.lua"
SEEDS = count(1_000_000, 500_000)
"""Where the next run begins: no two requests are the same."""
CONNECTIONS = 32


class Run(Struct, frozen=True):
    """One contender for some seconds."""

    answers: int
    rate: float
    """Of them a second, as seen."""
    cpu_us: float
    """Processor time of the contender, each."""
    p50_ms: float
    p99_ms: float
    refused: int
    broken: int


class Sample(Struct, frozen=True):
    """Several runs of one: the median, the least and the most."""

    median: float
    least: float
    most: float


def sample(values: Sequence[float]) -> Sample:
    return Sample(statistics.median(values), min(values), max(values))


def ask(
    contender: Contender,
    body: str = SAME,
    *,
    key: str = KEY,
    connections: int = CONNECTIONS,
    seconds: int = 3,
) -> Run:
    """Raises SystemExit: none was answered."""
    headers = [f"--header={name}: {value}" for name, value in contender.headers.items()]
    command = [
        *("taskset", "--cpu-list", str(cores()[OTHERS])),
        *("wrk", "--threads=1", f"--connections={connections}", f"--duration={seconds}s"),
        *("--timeout=30s", "--latency", f"--script={ASK}", *headers, contender.url),
        *("--", key, body, str(next(SEEDS))),
    ]
    before = contender.process.cpu_s()
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used_s = contender.process.cpu_s() - before
    found = json.loads(told.splitlines()[-1])
    if not found["requests"]:
        raise SystemExit(f"{contender.url} answered nothing:\n{told}")
    return Run(
        answers=found["requests"],
        rate=found["requests"] / found["seconds"],
        cpu_us=1e6 * used_s / found["requests"],
        p50_ms=found["p50_us"] / 1000,
        p99_ms=found["p99_us"] / 1000,
        refused=found["refused"],
        broken=found["broken"],
    )


class Workload(Struct, kw_only=True):
    """What is asked of each contender, in turns."""

    name: str
    contenders: dict[str, Contender]
    body: str = SAME
    keys: dict[str, str] = {}
    """By contender, where it is not the usual one."""
    connections: int = CONNECTIONS
    all_refused: tuple[str, ...] = ()
    """Those that are to answer 429."""

    def measure(self, rounds: int, seconds: int) -> dict[str, list[Run]]:
        """Some rounds; every other one in the opposite order."""
        runs: dict[str, list[Run]] = {name: [] for name in self.contenders}
        for name in self.contenders:
            self._ask(name, 1)
        for number in range(rounds):
            for name in sorted(runs, key=list(runs).index, reverse=bool(number % 2)):
                runs[name].append(self._ask(name, seconds))
        for name, all_of_it in runs.items():
            rate = sample([run.rate for run in all_of_it])
            cpu_us = sample([run.cpu_us for run in all_of_it])
            told = f"{rate.median:8,.0f}/s, {cpu_us.median:7.1f} us each"
            print(f"{self.name:16} {name:20} {told}", flush=True)
        return runs

    def _ask(self, name: str, seconds: int) -> Run:
        run = ask(
            self.contenders[name],
            self.body,
            key=self.keys.get(name, KEY),
            connections=self.connections,
            seconds=seconds,
        )
        is_wrong = (
            run.refused < run.rate * seconds * 0.9 if name in self.all_refused else run.refused
        )
        if is_wrong or run.broken:
            raise SystemExit(f"{self.name}: {name} answered otherwise than it should: {run}")
        return run

"""How fast this gateway is, beside the floor of its stack and other gateways, in one go.

    make bench          this gateway and its floor; 1 where a ratio has dropped (bench/ratios.json)
    make bench-full     everything, and writes docs/performance.md, .json and .png

    .venv/bin/python bench/compare/run.py [--full] [--rounds 3] [--seconds 2] [--only NAME]

Needs two cores and Debian's packages wrk and redis-server. Whoever is measured has the first core
to itself; wrk, Redis and the vendor's stand-in share the second. They take turns, several times
over, and ratios are of one turn's runs, so that a machine that slows down slows both.

A rate is what one processor does: answers, by the processor time that the contender used. Where
nobody else uses the core, it is the rate that is seen as well; both are printed.
"""
# ruff: noqa: INP001, T201 - a program that prints

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import contenders
import costs
import page
from contenders import ANOTHER, REFUSED_KEY, Contender
from load import Run, Sample, Workload, sample
from processes import OTHERS, ROOT, cores, free_port, require, started

RATIOS = ROOT / "bench" / "ratios.json"
DROP = 0.15
MISS, HIT, REFUSED, IN_PROCESS = "miss", "hit", "refused", "in-process hit"
GATEWAY, FLOOR, ECHO, DIRECT = "gateway", "floor", "echo", "direct"


def main() -> int:
    arguments = read_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and with it whatever was started
    cores()
    require({"wrk": "wrk", "redis-server": "redis-server", "taskset": "util-linux"})
    costs.allow_open_files()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        result: dict[str, Any] = {"ratios": {}}
        if arguments.only not in costs.ALL:
            with ExitStack() as stack:
                result = compare(stack, Path(folder), arguments)
        if arguments.full or arguments.only in costs.ALL:
            result["costs"] = costs.measure(Path(folder), arguments.only)
    return finish(arguments, result)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="with the peers and all other costs")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--seconds", type=int, default=2, help="of each turn")
    parser.add_argument("--only", metavar="NAME", help="one workload, or one cost; writes nothing")
    parser.add_argument("--write", action="store_true", help="write bench/ratios.json")
    return parser.parse_args()


def compare(stack: ExitStack, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every workload's runs, and their ratios."""
    port = free_port()
    redis = f"redis://127.0.0.1:{port}/0"
    program = ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no"]
    url = f"http://127.0.0.1:{port}"
    stack.enter_context(started(program, core=OTHERS, url=url, ready_path=None))
    vendor = stack.enter_context(contenders.upstream())
    peers: dict[str, Contender] = {}
    left_out: dict[str, str] = {}
    if arguments.full:
        names = contenders.PEERS_BY_NAME
        peers, left_out = contenders.open_peers(stack, names, folder, vendor.url)
    own = {
        GATEWAY: stack.enter_context(contenders.gateway(folder, vendor.url, redis)),
        "memory": stack.enter_context(contenders.gateway(folder, vendor.url, None)),
        **{
            path: stack.enter_context(contenders.floor(f"/{path}", vendor.url, redis))
            for path in ("miss", "hit", "echo")
        },
        DIRECT: Contender(vendor),
    }
    runs = {
        workload.name: workload.measure(arguments.rounds, arguments.seconds)
        for workload in workloads(own, peers)
        if arguments.only in {None, workload.name} and (arguments.full or is_short(workload))
    }
    started_in = {name: one.process for name, one in {GATEWAY: own[GATEWAY], **peers}.items()}
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "left_out": left_out,
        "rates": {name: summary(of) for name, of in runs.items()},
        "ratios": {key: value for name, of in runs.items() for key, value in ratios(name, of)},
        "starts": {
            name: {"start_s": one.start_s, "busy_mib": one.memory_mib()}
            for name, one in started_in.items()
        },
    }


def workloads(own: dict[str, Contender], peers: dict[str, Contender]) -> list[Workload]:
    """The cheapest last, so that what they compare with is warm."""
    gateway = own[GATEWAY]
    return [
        Workload(
            name=MISS,
            contenders={GATEWAY: gateway, FLOOR: own["miss"], **peers},
            body=ANOTHER,
        ),
        Workload(name=HIT, contenders={GATEWAY: gateway, FLOOR: own["hit"]}),
        Workload(
            name=REFUSED,
            contenders={GATEWAY: gateway, FLOOR: own["hit"]},
            keys={GATEWAY: REFUSED_KEY},
            all_refused=(GATEWAY,),
        ),
        Workload(name=IN_PROCESS, contenders={GATEWAY: own["memory"], ECHO: own["echo"]}),
        Workload(
            name="one connection",
            contenders={DIRECT: own[DIRECT], GATEWAY: gateway, FLOOR: own["miss"], **peers},
            body=ANOTHER,
            connections=1,
        ),
    ]


def is_short(workload: Workload) -> bool:
    return workload.connections > 1


def summary(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """By contender, medians and their range."""
    direct = runs.get(DIRECT)
    found: dict[str, Any] = {}
    for name, of in runs.items():
        found[name] = {
            "seen_per_s": sample([run.rate for run in of]),
            "per_processor_s": sample([1e6 / run.cpu_us for run in of]),
            "cpu_us": sample([run.cpu_us for run in of]),
        }
        if direct is not None:
            pairs = list(zip(of, direct, strict=True))
            found[name]["added_p50_ms"] = sample([one.p50_ms - bare.p50_ms for one, bare in pairs])
            found[name]["added_p99_ms"] = sample([one.p99_ms - bare.p99_ms for one, bare in pairs])
    return found


def ratios(name: str, runs: dict[str, list[Run]]) -> list[tuple[str, Sample]]:
    """The gateway's rate over each other's, turn by turn."""
    if DIRECT in runs:
        return []
    return [
        (
            f"{name} / {other}",
            sample([b.cpu_us / a.cpu_us for a, b in zip(runs[GATEWAY], of, strict=True)]),
        )
        for other, of in runs.items()
        if other != GATEWAY
    ]


def finish(arguments: argparse.Namespace, result: dict[str, Any]) -> int:
    """Print the ratios; write what is to be written; 1 where one has dropped."""
    committed = json.loads(RATIOS.read_text()) if RATIOS.exists() else {}
    dropped = []
    for name, ratio in result["ratios"].items():
        least = committed.get(name, 0.0) * (1 - DROP)
        is_low = ratio.median < least
        dropped += [name] if is_low else []
        told = f"; at least {least:.2f}: DROPPED" if is_low else ""
        spread = f"{ratio.least:.2f} to {ratio.most:.2f}"
        print(f"{name:26} {ratio.median:6.2f} ({spread}){told}")
    if arguments.only is None and (arguments.write or arguments.full):
        found = {
            name: round(ratio.median, 2)
            for name, ratio in result["ratios"].items()
            if name.endswith((FLOOR, ECHO))
        }
        RATIOS.write_text(json.dumps(found, indent=2) + "\n")
        dropped = []
    if arguments.full and arguments.only is None:
        page.write(result)
    return int(bool(dropped))


def machine() -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(": ")[2] for line in cpu.splitlines() if "model name" in line), "")
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "cpu": model,
        "cores": len(cores()),
        "python": sys.version.split()[0],
        "commit": told.stdout.strip(),
    }


if __name__ == "__main__":
    os.chdir(ROOT)
    raise SystemExit(main())

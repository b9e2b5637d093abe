"""What one request passes: files, functions and tasks of ours, and calls to Redis.

    .venv/bin/python bench/road.py [--calls 20] [--files]

Starts a Redis and the gateway, each as a process of its own, against the bundled simulator, and
sends requests of three kinds one after another: a cache miss, a hit, and one that its tenant's
limits refuse. The gateway is watched by `sys.setprofile` meanwhile. What tasks do that were there
before is left out; the calls to Redis are those of Redis' own statistics, less what an idle gateway
makes, answers' leavings included. `--files` lists the files on standard error.
"""
# ruff: noqa: INP001, S603, T201 - a program that measures others and prints

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import redis

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gateway.tenants.keys import hash_key, new_key  # noqa: E402 - after the path
from tests.redis_server import RedisServer  # noqa: E402
from tests.running import until  # noqa: E402
from tests.simulated import SimulatedDashScope  # noqa: E402

WATCHED = """
import asyncio, json, os, signal, sys
import gateway
from gateway.cli import main

PACKAGE = os.path.join(os.path.dirname(os.path.abspath(gateway.__file__)), "")
file = sys.argv.pop(1)
seen, tasks, before = set(), set(), set()

def note(frame, event, _):
    if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
        return
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    if task in before:
        return
    if task is not None:
        tasks.add((id(task), task.get_coro().__qualname__))
    seen.add((frame.f_code.co_filename[len(PACKAGE):], frame.f_code.co_qualname))

def start(*_):
    seen.clear(); tasks.clear(); before.clear()
    before.update(asyncio.all_tasks())
    sys.setprofile(note)

def stop(*_):
    sys.setprofile(None)
    with open(file + ".new", "w") as out:
        json.dump({"seen": sorted(seen), "tasks": sorted(name for _, name in tasks)}, out)
    os.rename(file + ".new", file)

signal.signal(signal.SIGUSR1, start)
signal.signal(signal.SIGUSR2, stop)
sys.exit(main())
"""
KEYS = {"free": new_key(), "used-up": new_key()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=20, help="of each kind")
    parser.add_argument("--files", action="store_true", help="list them, too")
    arguments = parser.parse_args()
    calls = arguments.calls
    with (
        tempfile.TemporaryDirectory() as folder,
        SimulatedDashScope(render="plain") as vendor,
        RedisServer() as store,
    ):
        watched = Watched(Path(folder), vendor.base_url, store.url, arguments.files)
        try:
            idle = watched.idle()
            watched.ask("free", 0)
            watched.ask("used-up", -1)  # its only one
            print("| request | files | functions | tasks | calls to Redis |\n|---|---|---|---|---|")
            seeds = {"miss": ("free", lambda n: n), "hit": ("free", lambda _: 0)}
            seeds["refused"] = ("used-up", lambda n: -n)
            for kind, (tenant, seed) in seeds.items():
                found = watched.measure(tenant, [1 + seed(n + 1) for n in range(calls)], idle)
                print(f"| {kind} | {found} |")
        finally:
            watched.stop()


class Watched:
    """A gateway whose calls are noted between two signals."""

    def __init__(self, folder: Path, vendor: str, store: str, files: bool) -> None:  # noqa: FBT001
        self._lists_files = files
        self._notes = folder / "seen.json"
        config = folder / "gateway.yaml"
        config.write_text(json.dumps(configuration(vendor, store)))
        serve = ["serve", "--config", str(config), "--port", "0"]
        self._log = (folder / "log").open("wb+")
        self._process = subprocess.Popen(
            [sys.executable, "-c", WATCHED, str(self._notes), *serve],
            stdout=self._log,
            stderr=self._log,
            cwd=ROOT,
        )
        until(lambda: self._address() is not None, 20)
        self._client = httpx.Client(base_url=str(self._address()), trust_env=False)
        self._redis = redis.Redis.from_url(store)

    def _address(self) -> str | None:
        found = re.search(r"listening on (http://\S+)", Path(self._log.name).read_text())
        return found[1] if found else None

    def ask(self, tenant: str, seed: int) -> int:
        return self._client.post(
            "/v1/images/generations",
            json={"prompt": f"fox {seed}", "model": "qwen-image-2.0", "seed": abs(seed)},
            headers={"authorization": f"Bearer {KEYS[tenant]}"},
        ).status_code

    def scripts(self) -> int:
        """How many scripts Redis has run."""
        stats: dict[str, Any] = self._redis.info("commandstats")
        return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])

    def idle(self, seconds: float = 5.0) -> float:
        """Scripts a second of a gateway that nobody asks."""
        before = self.scripts()
        time.sleep(seconds)
        return (self.scripts() - before) / seconds

    def measure(self, tenant: str, seeds: list[int], idle: float) -> str:
        time.sleep(1)
        scripts, began = self.scripts(), time.monotonic()
        for seed in seeds:
            self.ask(tenant, seed)
        time.sleep(1)
        took = time.monotonic() - began
        each = (self.scripts() - scripts - idle * took) / len(seeds)
        self._notes.unlink(missing_ok=True)
        os.kill(self._process.pid, signal.SIGUSR1)
        time.sleep(0.2)
        self.ask(tenant, seeds[0] + 1000 if tenant == "free" and len(set(seeds)) > 1 else seeds[0])
        time.sleep(0.5)
        os.kill(self._process.pid, signal.SIGUSR2)
        until(self._notes.exists)
        noted = json.loads(self._notes.read_text())
        files = {file for file, _ in noted["seen"]}
        if self._lists_files:
            print(*sorted(files), sep="\n", file=sys.stderr)
        tasks = Counter(noted["tasks"])
        named = ", ".join(f"{name} × {number}" for name, number in sorted(tasks.items()))
        return f"{len(files)} | {len(noted['seen'])} | {named} | {each:.1f}"

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)


def configuration(vendor: str, store: str) -> dict[str, Any]:
    return {
        "redis": {"url": store},
        "accounts": [
            {"name": "one", "base_url": vendor, "api_key": "sk-road", "rates": {"*": "unlimited"}}
        ],
        "images": {"allowed_hosts": ["127.0.0.1"], "allow_http": True},
        "tenants": [
            {
                "name": name,
                "keys": [{"hash": hash_key(key)}],
                "limits": {"images_per_day": 10_000} if name == "free" else {"images_per_day": 1},
            }
            for name, key in KEYS.items()
        ],
    }


if __name__ == "__main__":
    main()

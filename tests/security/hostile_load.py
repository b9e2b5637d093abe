"""Two gateways of two workers, attackers of each kind at once, and one tenant that behaves."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import quantiles
from typing import Any, Final, Self

from redis import Redis

from tests.operations.site import children_of, document, tenant, write
from tests.redis_server import RedisServer
from tests.reliability.client import Answer, Connection
from tests.reliability.fleet import VendorProcess
from tests.running import ROOT, key_of, until
from tests.security.attackers import KINDS, PATH, Attack, prompt

KEYS: Final = {name: key_of(name) for name in ("good", "mallory", "poor")}
MIB: Final = 1024 * 1024
VENDOR_S: Final = 0.2
GOOD_PER_S: Final = 6.0
GENEROUS: Final = {"requests_per_minute": 1_000_000, "images_per_day": 1_000_000}
LIMITS: Final[dict[str, dict[str, int]]] = {
    "good": GENEROUS,
    "mallory": {**GENEROUS, "requests_per_minute": 1200, "concurrent_requests": 60},
    "poor": {"requests_per_minute": 1},
}


class GatewayInFile:
    """`gateway serve`, whose log goes to a file: ten minutes of it are long."""

    def __init__(self, config: Path, log: Path) -> None:
        self._log = log
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--workers", "2"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        until(lambda: "listening on" in self._log.read_text(), 20)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    @property
    def port(self) -> int:
        found = re.search(r"listening on http://127.0.0.1:(\d+)", self._log.read_text())
        assert found is not None
        return int(found[1])

    def workers(self) -> list[int]:
        return children_of(self._process.pid)

    def lines(self) -> Iterator[dict[str, Any]]:
        with self._log.open() as lines:
            for line in lines:
                if line.startswith("{"):
                    yield json.loads(line)


class Levels:
    """What is held at one moment."""

    def __init__(self, redis: Redis, workers: list[int]) -> None:
        info: Any = redis.info("memory")
        self.redis_mib = info["used_memory"] / MIB
        self.workers_mib = {pid: resident_mib(pid) for pid in workers}
        self.files = {pid: len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in workers}


class Outcome:
    """What a load has shown."""

    def __init__(
        self, answers: list[Answer], attacks: Counter[str], overheads: list[float]
    ) -> None:
        self.good = Counter(answer.status for answer in answers)
        self.images = sum(len(one.body["data"]) for one in answers if one.status == 200)
        self.asked = len(answers)
        self.attacks = attacks
        percentiles = quantiles(overheads, n=100)
        self.p90_ms, self.p99_ms = percentiles[89], percentiles[98]
        self.recorded = 0
        """Of the good tenant's images, in the usage record."""
        self.failures = 0
        """Defects that the gateways logged."""
        self.levels: list[Levels] = []

    def growth_mib(self) -> dict[str, float]:
        """From the first look, a third into the load, to the last."""
        first, last = self.levels[0], self.levels[-1]
        grown = {f"worker {n}": last.workers_mib[pid] - first.workers_mib[pid]
                 for n, pid in enumerate(first.workers_mib)}  # fmt: skip
        return {"redis": last.redis_mib - first.redis_mib, **grown}

    def show(self) -> str:
        grown = ", ".join(f"{name} {mib:+.1f}" for name, mib in self.growth_mib().items())
        largest = [f"{max(each.workers_mib.values()):.1f}" for each in self.levels]
        attacks = ", ".join(f"{name}: {count}" for name, count in sorted(self.attacks.items()))
        return (
            f"good tenant: {self.asked} requests, {dict(self.good)}, {self.images} images, "
            f"{self.recorded} recorded\n"
            "gateway's own time of its requests, "
            f"p90: {self.p90_ms:.1f} ms, p99: {self.p99_ms:.1f} ms\n"
            f"growth in MiB: {grown}\n"
            f"largest worker in MiB, look by look: {' '.join(largest)}\n"
            f"open files at most: {max(max(each.files.values()) for each in self.levels)}\n"
            f"attacks: {attacks}"
        )


def run_load(seconds: float, looks: int = 12) -> Outcome:
    """All of it, from the start of the processes to their end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(RedisServer())
        vendor = stack.enter_context(VendorProcess(latency_s=VENDOR_S, image_bytes=1_000_000))
        record = folder / "usage.jsonl"
        config = write(folder / "gateway.yaml", content_of(vendor.base_url, redis.url, record))
        gateways = [GatewayInFile(config, folder / f"log-{number}") for number in range(2)]
        for gateway in gateways:
            stack.enter_context(gateway)
        ports = [gateway.port for gateway in gateways]
        workers = [pid for gateway in gateways for pid in gateway.workers()]
        store = stack.enter_context(Redis.from_url(redis.url))
        load = Load(ports, store, workers)
        asyncio.run(load.run(seconds, looks))
        lines = [line for gateway in gateways for line in gateway.lines()]
        outcome = Outcome(load.answers, load.attack.answers, overheads_of(lines))
        outcome.levels = load.levels
        outcome.recorded = recorded(record, "good")
        outcome.failures = sum(line.get("level") == "critical" or "exception" in line
                               for line in lines)  # fmt: skip
        assert [pid for gateway in gateways for pid in gateway.workers()] == workers, "one died"
        return outcome


class Load:
    """Attackers, and the tenant that behaves."""

    def __init__(self, ports: list[int], redis: Redis, workers: list[int]) -> None:
        self.attack = Attack(ports, KEYS, seed=1)
        self.answers: list[Answer] = []
        self.levels: list[Levels] = []
        self._ports = ports
        self._redis = redis
        self._workers = workers

    async def run(self, seconds: float, looks: int) -> None:
        attackers = [asyncio.create_task(kind(self.attack)) for kind in KINDS]
        good = asyncio.create_task(self._behave(seconds))
        await asyncio.sleep(seconds / 3)
        for _ in range(looks):
            self.levels.append(Levels(self._redis, self._workers))
            await asyncio.sleep(seconds / 3 * 2 / looks)
        await good
        for attacker in attackers:
            attacker.cancel()
        for ended in await asyncio.gather(*attackers, return_exceptions=True):
            assert isinstance(ended, asyncio.CancelledError), repr(ended)
        await asyncio.sleep(0.2)  # for their connections to close

    async def _behave(self, seconds: float) -> None:
        """Requests at a steady rate, some of them for base64, some twice with the same key."""
        end, number, tasks = time.monotonic() + seconds, 0, []
        while time.monotonic() < end:
            more = {"response_format": "b64_json"} if number % 4 == 0 else {}
            body = prompt(f"good {number}", n=1 + number % 2, **more)
            tasks.append(asyncio.create_task(self._ask(body, self._ports[number % 2])))
            number += 1
            await asyncio.sleep(1 / GOOD_PER_S)
        await asyncio.gather(*tasks)

    async def _ask(self, body: dict[str, Any], port: int) -> None:
        connection = await Connection.open(port)
        connection.send("POST", PATH, KEYS["good"], body)
        answer = await connection.answer()
        is_right = answer.status == 200 and len(answer.body["data"]) == body["n"]
        self.answers.append(answer if is_right else answer._replace(status=answer.status or -1))
        await connection.hang_up()


def content_of(vendor: str, redis: str, record: Path) -> dict[str, Any]:
    tenants = [
        tenant(name, key, limits=LIMITS[name], cache={"mode": "seeded"})
        for name, key in KEYS.items()
    ]
    patient = {"url": redis, "connect_timeout_ms": 1000, "command_timeout_ms": 1000}
    return document(vendor, tenants=tenants, redis=patient, usage_log=str(record))


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def overheads_of(lines: list[dict[str, Any]]) -> list[float]:
    """What the gateway itself took of each of the good tenant's requests, in milliseconds."""
    return [
        line["overhead_ms"]
        for line in lines
        if line.get("event") == "answered" and line.get("tenant") == "good"
    ]


def recorded(record: Path, name: str) -> int:
    lines = map(json.loads, record.read_text().splitlines())
    return sum(line["images"] for line in lines if line["tenant"] == name)

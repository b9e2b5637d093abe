"""Three eventful minutes of 2 gateways of 2 workers, as the dashboard shows them, printed as JSON.

    .venv/bin/python bench/dashboard_run.py > run.json

Needs Debian's package `prometheus`. Starts Redis, two pretend accounts of the vendor, the gateways
and a real Prometheus, puts load of several tenants on them, lets something go wrong now and then,
and asks Prometheus for every query of deploy/grafana/gateway.json over the whole time. `make
picture` draws what it prints (bench/dashboard_picture.py).
"""
# ruff: noqa: INP001 - a program that measures others and prints

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gateway.tenants.keys import hash_key  # noqa: E402 - after the path
from tests.observability.scraping import Prometheus, has_prometheus, kill_a_worker  # noqa: E402
from tests.redis_server import RedisServer  # noqa: E402
from tests.running import UPSTREAM_KEY, GatewayProcess, key_of  # noqa: E402
from tests.simulated import SimulatedDashScope  # noqa: E402

SECONDS = 180
RATE_INTERVAL = "10s"
"""What Grafana would put for $__rate_interval is four scrapes, of a second each here."""
IMAGE_BYTES = 150_000
URL_LIFE_S = 120
"""So short that the images kept are needed: the gateway trusts no URL in its last minute."""
STANDARD, PRO, WAN = "qwen-image-2.0", "qwen-image-2.0-pro", "wan2.6-t2i"
RATES = {STANDARD: "8/s", PRO: "2/s", WAN: "4/s"}
LATENCY_S = {STANDARD: (0.8, 2.0), PRO: (2.0, 6.0), "*": (1.0, 3.0)}
LIMITS: dict[str, dict[str, Any]] = {
    "storefront": {"images_per_day": 2000},
    "studio": {"spend_per_month": "400"},
    "newsletter": {},
    "intern": {"requests_per_minute": 20, "images_per_day": 60},
}
LOAD: dict[str, tuple[float, tuple[dict[str, Any], ...]]] = {
    # Pages that show one of eighty pictures: most are in the cache after a while.
    "storefront": (
        5,
        ({"model": STANDARD, "prompt": "page", "seed": 7, "response_format": "b64_json"},),
    ),
    "studio": (
        0.6,
        (
            {"model": PRO, "n": 2, "size": "2048x2048", "response_format": "b64_json"},
            {"model": PRO, "size": "1536x1024", "response_format": "b64_json"},
            {"model": WAN, "n": 2, "size": "1280x1280", "response_format": "b64_json"},
        ),
    ),
    "intern": (
        0.8,
        (
            {"model": STANDARD},
            {"model": STANDARD},
            {"model": WAN, "size": "1280x1280"},
            {"model": STANDARD, "n": 99},
            {"model": STANDARD, "prompt": "a fox [simulate:DataInspectionFailed]"},
        ),
    ),
    "stranger": (0.1, ({"model": STANDARD},)),
}
"""Requests a second of each tenant, and what it asks for; absent prompts are never the same."""


class World:
    """Everything that runs."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        options: dict[str, Any] = {
            "render": "plain",
            "image_bytes": IMAGE_BYTES,
            "latency_s": LATENCY_S,
            "url_life_s": URL_LIFE_S,
        }
        self.first = stack.enter_context(SimulatedDashScope(**options))
        self.second = stack.enter_context(SimulatedDashScope(**options))
        self.redis = stack.enter_context(RedisServer())
        self.images = stack.enter_context(RedisServer())
        file = folder / "gateway.yaml"
        file.write_text(self._configuration())
        serve = ("--port", "0", "--workers", "2")
        self.gateways = [
            stack.enter_context(GatewayProcess.serving(file, *serve)) for _ in range(2)
        ]
        self.urls = [gateway.url for gateway in self.gateways]
        self.prometheus = stack.enter_context(Prometheus(folder, self.urls))
        self.prometheus.await_scrape(len(self.urls))

    def _configuration(self) -> str:
        accounts = {"singapore": self.first, "beijing": self.second}
        document = {
            "redis": {"url": self.redis.url, "command_timeout_ms": 200},
            "image_cache": {"url": self.images.url},
            "accounts": [
                {"name": name, "base_url": one.base_url, "api_key": UPSTREAM_KEY, "rates": RATES}
                for name, one in accounts.items()
            ],
            "images": {"allowed_hosts": ["127.0.0.1"], "allow_http": True},
            "tenants": [
                {"name": name, "keys": [{"hash": hash_key(key_of(name))}], "limits": limits}
                for name, limits in LIMITS.items()
            ],
        }
        return json.dumps(document)

    def events(self, rush: Callable[[int], None]) -> dict[float, tuple[str, Callable[[], object]]]:
        """What happens, by the second."""

        def fail() -> None:
            self.first.fault("InternalError", model=STANDARD, count=50)
            rush(80)

        return {
            20: ("newsletter asks for 240 images at once", lambda: rush(240)),
            60: (
                "singapore refuses calls as too many",
                lambda: self.first.fault("Throttling.RateQuota", count=6),
            ),
            80: ("singapore fails, and newsletter asks for 80 images", fail),
            125: ("Redis hangs for 8 s", self.redis.stop),
            133: ("", self.redis.cont),
            155: ("a worker is killed", lambda: kill_a_worker(self.gateways[0])),
        }


class Load:
    """Requests at the tenants' rates, whether the former ones are answered or not."""

    def __init__(self, session: aiohttp.ClientSession, urls: list[str]) -> None:
        self._session = session
        self._urls = urls
        self._chance = random.Random(5)
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self, seconds: float) -> None:
        """All tenants, until the time is over and everything is answered."""
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._tenant(name, end) for name in LOAD))
        await asyncio.gather(*self._calls)

    def rush(self, number: int) -> None:
        """So many at once that calls have to wait."""
        for _ in range(number):
            self._start("newsletter", {"model": STANDARD, "size": "1024x1024"})

    async def _tenant(self, name: str, end: float) -> None:
        per_second, kinds = LOAD[name]
        while time.monotonic() < end:
            self._start(name, self._chance.choice(kinds))
            await asyncio.sleep(self._chance.expovariate(per_second))

    def _start(self, tenant: str, fields: dict[str, Any]) -> None:
        body = {"prompt": f"fox {self._chance.getrandbits(64):x}", **fields}
        if body["prompt"] == "page":
            body["prompt"] = f"page {int(self._chance.triangular(0, 80, 0))}"
        call = asyncio.create_task(self._call(tenant, body))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, tenant: str, body: dict[str, Any]) -> None:
        url = f"{self._chance.choice(self._urls)}/v1/images/generations"
        headers = {"authorization": f"Bearer {key_of(tenant)}"}
        try:
            async with self._session.post(url, json=body, headers=headers) as answer:
                await answer.read()
        except aiohttp.ClientError:
            pass  # its worker was killed


async def play(world: World) -> list[dict[str, object]]:
    """Load and events; the events with their times."""
    told: list[dict[str, object]] = []
    started = time.time()

    def happen(text: str, act: Callable[[], object]) -> None:
        if text:
            told.append({"at": round(time.time() - started, 1), "text": text})
        act()

    loop = asyncio.get_running_loop()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        load = Load(session, world.urls)
        for second, (text, act) in world.events(load.rush).items():
            loop.call_later(second, happen, text, act)
        await load.run(SECONDS)
    return told


def legend(form: str, labels: dict[str, str]) -> str:
    """As Grafana fills it in."""
    return re.sub(r"{{(\w+)}}", lambda name: labels.get(name[1], ""), form)


def evaluate(prometheus: Prometheus, expr: str, start: float, end: float) -> list[Any]:
    """The series of a query over the whole time."""
    query = expr.replace("$__rate_interval", RATE_INTERVAL)
    span = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": "1"}
    series: list[Any] = prometheus.ask("query_range", query=query, **span)["result"]
    return series


def panels(world: World, start: float, end: float) -> list[dict[str, Any]]:
    """Every panel with its series; instances are named as deploy/compose does."""
    names = {url.removeprefix("http://"): f"gateway-{n}" for n, url in enumerate(world.urls, 1)}
    found = json.loads((ROOT / "deploy/grafana/gateway.json").read_text())["panels"]
    return [
        {
            "title": one["title"],
            "grid": one["gridPos"],
            "unit": one.get("fieldConfig", {}).get("defaults", {}).get("unit", ""),
            "row": one["type"] == "row",
            "series": [
                {
                    "legend": legend(
                        target["legendFormat"],
                        {k: names.get(text, text) for k, text in series["metric"].items()},
                    ),
                    "points": [
                        [round(float(at) - start, 1), float(f"{float(value):.4g}")]
                        for at, value in series["values"]
                        if value not in {"NaN", "+Inf"}
                    ],
                }
                for target in one.get("targets", ())
                for series in evaluate(world.prometheus, target["expr"], start, end)
            ],
        }
        for one in found
    ]


def main() -> None:
    """Run, ask, print."""
    if not has_prometheus():
        sys.exit("Debian's package `prometheus` is not installed")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        world = World(stack, folder)
        start = time.time()
        events = asyncio.run(play(world))
        document = {
            "rate_interval": RATE_INTERVAL,
            "seconds": round(time.time() - start),
            "events": events,
            "panels": panels(world, start, time.time()),
        }
    json.dump(document, sys.stdout)


if __name__ == "__main__":
    main()

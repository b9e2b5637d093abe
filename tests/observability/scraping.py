"""Two gateways of two workers each, a load that counts its own answers, and a real Prometheus."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import aiohttp
import yaml

from gateway.domain.prices import Money, dearest
from gateway.tenants.keys import hash_key
from tests.redis_server import RedisServer
from tests.running import ROOT, UPSTREAM_KEY, GatewayProcess, key_of, shipped_catalogue
from tests.simulated import SimulatedDashScope

MODEL: Final = "qwen-image-2.0"
OUTCOMES: Final = {
    "invalid_value": "invalid_request",
    "invalid_api_key": "invalid_key",
    "rate_limit_exceeded": "rate_limited",
    "moderation_blocked": "moderation_blocked",
    "insufficient_quota": "upstream_billing",
    "upstream_error": "upstream_failed",
    "upstream_outcome_unknown": "upstream_ambiguous",
    "server_is_overloaded": "upstream_overloaded",
}
"""By the code that a client is shown, for the failures that this load provokes."""
KEYS: Final = {name: key_of(name) for name in ("acme", "small", "nobody")}
KINDS: Final[tuple[dict[str, Any], ...]] = (
    *[{"prompt": "unique"}] * 6,
    *[{"prompt": "unique", "n": 2}] * 3,
    {"prompt": "unique", "n": 7},  # two calls
    *[{"prompt": "again", "seed": 7}] * 3,
    {"prompt": "again", "seed": 7, "cache-control": "no-cache"},
    {"prompt": "unique", "response_format": "b64_json"},
    {"prompt": "unique", "response_format": "b64_json", "output_format": "jpeg"},
    {"prompt": "unique", "response_format": "b64_json", "seed": 7},  # its image is kept
    {"prompt": "unique", "response_format": "b64_json", "seed": 7, "size": "2048x2048"},  # not
    {"prompt": "a fox [simulate:DataInspectionFailed]"},
    {"prompt": "a fox [simulate:InternalError]"},
    {"prompt": "a fox", "n": 99},
    {"prompt": "unique", "key": "nobody"},
    {"prompt": "unique", "key": "small"},
)


def configuration(base_url: str, redis_url: str) -> str:
    """Of both gateways."""
    tenants: list[dict[str, Any]] = [
        {"name": "acme", "limits": {"images_per_day": 100_000, "spend_per_month": "100000"}},
        {"name": "small", "limits": {"requests_per_minute": 5}},
    ]
    for tenant in tenants:
        tenant["keys"] = [{"hash": hash_key(KEYS[tenant["name"]]), "label": "load"}]
    account = {"name": "one", "base_url": base_url, "api_key": UPSTREAM_KEY}
    document = {
        "redis": {"url": redis_url, "connect_timeout_ms": 3000, "command_timeout_ms": 3000},
        "accounts": [account | {"rates": {"*": "200/s"}}],
        "images": {"allowed_hosts": ["127.0.0.1"], "allow_http": True},
        "image_cache": {"url": redis_url, "max_image_bytes": 1024},
        "tenants": tenants,
    }
    return json.dumps(document)


class Tally:
    """What the client saw."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, str]] = Counter()
        """Whole answers by tenant and outcome."""
        self.images: Counter[str] = Counter()
        """Images by tenant that were generated for an answer, and not given a second time."""
        self.lost: list[dict[str, Any]] = []
        """Requests without a whole answer."""

    def note(self, tenant: str, status: int, cache: str | None, body: Any) -> None:
        outcome = "ok" if status == 200 else OUTCOMES[body["error"]["code"]]
        self.answers["other" if outcome == "invalid_key" else tenant, outcome] += 1
        if status == 200 and cache in {"miss", "bypass"}:
            self.images[tenant] += len(body["data"])

    @property
    def lost_images(self) -> int:
        """At most so many were made for nobody."""
        return sum(fields.get("n", 1) for fields in self.lost)


class Load:
    """Clients that call one after the other until told to stop."""

    def __init__(self, urls: list[str], clients: int = 12) -> None:
        self._urls = urls
        self._clients = clients
        self.tally = Tally()

    async def run(self, seconds: float, after: dict[float, Any]) -> None:
        """`after` has what is done meanwhile, by the second at which it is."""
        end = time.monotonic() + seconds
        loop = asyncio.get_running_loop()
        for second, act in after.items():
            loop.call_later(second, act)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
        ) as session:
            clients = (self._call_until(session, end, number) for number in range(self._clients))
            await asyncio.gather(*clients)

    async def _call_until(self, session: aiohttp.ClientSession, end: float, number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < end:
            kind: dict[str, Any] = {**chance.choice(KINDS)}
            tenant = str(kind.pop("key", "acme"))
            if kind["prompt"] == "unique":
                kind["prompt"] = f"fox {chance.getrandbits(64):x}"
            await self._call(session, chance.choice(self._urls), tenant, kind)

    async def _call(
        self, session: aiohttp.ClientSession, url: str, tenant: str, fields: dict[str, Any]
    ) -> None:
        body = {"model": MODEL, "size": "512x512", "response_format": "url", **fields}
        headers = {"authorization": f"Bearer {KEYS[tenant]}"}
        if directive := body.pop("cache-control", None):
            headers["cache-control"] = directive
        try:
            async with session.post(
                f"{url}/v1/images/generations", json=body, headers=headers
            ) as answer:
                cache = answer.headers.get("x-cache")
                self.tally.note(tenant, answer.status, cache, await answer.json())
        except aiohttp.ClientError:
            self.tally.lost.append(fields)


class Prometheus:
    """Debian's, scraping gateways every second with the project's own rules."""

    def __init__(self, folder: Path, urls: list[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(ROOT / "deploy/prometheus/*.rules.yaml")]
        targets = [url.removeprefix("http://") for url in urls]
        config["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
        file = folder / "prometheus.yaml"
        file.write_text(yaml.safe_dump(config))
        self._open = build_opener(ProxyHandler({})).open
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={file}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address={self._address}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(10)

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its API."""
        url = f"http://{self._address}/api/v1/{path}?{urlencode(parameters)}"
        with self._open(url, timeout=10) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        return document["data"]

    def query(self, expr: str) -> dict[tuple[str, ...], float]:
        """Values by their labels' values, in the order of the labels' names."""
        return {
            tuple(text for _, text in sorted(one["metric"].items())): float(one["value"][1])
            for one in self.ask("query", query=expr)["result"]
        }

    def scraped_after(self, moment: float, targets: int) -> bool:
        """Whether every target was scraped, with success, since a Unix time."""
        with suppress(OSError):
            # Of a selector, and of nothing else, this is the time of the scrape.
            times, is_up = self.query("timestamp(up)"), self.query("up")
            up = len(times) == targets and set(is_up.values()) == {1}
            return up and min(times.values()) > moment
        return False

    def await_scrape(self, targets: int) -> None:
        """Wait until what is there now is in its storage."""
        moment = time.time()
        end = time.monotonic() + 30
        while not self.scraped_after(moment, targets):
            assert time.monotonic() < end, "Prometheus does not scrape"
            time.sleep(0.1)


class Run:
    """What is left of a load: the client's tally, Prometheus with its storage, and the vendor."""

    def __init__(self, prometheus: Prometheus, tally: Tally, simulator: SimulatedDashScope) -> None:
        self.prometheus = prometheus
        self.tally = tally
        self.simulator = simulator

    @property
    def price(self) -> Money:
        """Of an image."""
        model = shipped_catalogue().models[MODEL]
        return dearest(model.price_lists("cn-beijing"), None)


@contextmanager
def loaded(folder: Path, *, seconds: float, kills: int = 1) -> Iterator[Run]:
    """Put load on two gateways, and kill a worker of one now and then."""
    with ExitStack() as stack:
        simulator = stack.enter_context(SimulatedDashScope(render="plain", latency_s=0.15))
        redis = stack.enter_context(RedisServer())
        file = folder / "gateway.yaml"
        file.write_text(configuration(simulator.base_url, redis.url))
        gateways = [
            stack.enter_context(GatewayProcess.serving(file, "--port", "0", "--workers", "2"))
            for _ in range(2)
        ]
        urls = [gateway.url for gateway in gateways]
        prometheus = stack.enter_context(Prometheus(folder, urls))
        prometheus.await_scrape(len(urls))
        load = Load(urls)
        moments = [seconds * (number + 1) / (kills + 1) for number in range(kills)]
        victims = {
            moment: lambda number=number: kill_a_worker(gateways[number % 2])
            for number, moment in enumerate(moments)
        }
        failing = {
            # A few calls fail without a trace and are sent again.
            seconds / 3 + 0.01: lambda: simulator.fault("ModelServingError", count=4),
            # Nobody knows how one has ended.
            seconds / 3 + 0.51: lambda: simulator.fault("reset_before", count=1),
            seconds / 3 + 1.01: lambda: simulator.fault("more_images", count=1),
        }
        asyncio.run(load.run(seconds, failing | victims))
        prometheus.await_scrape(len(urls))
        yield Run(prometheus, load.tally, simulator)


def kill_a_worker(gateway: GatewayProcess) -> None:
    """As the kernel does when memory runs out."""
    children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)


def has_prometheus() -> bool:
    return shutil.which("prometheus") is not None and shutil.which("promtool") is not None

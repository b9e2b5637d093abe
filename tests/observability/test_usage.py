"""Ten thousand requests of every kind, and the books that must agree to the last millionth."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.app import create_app
from gateway.cli.usage import recorded
from gateway.config import Cache, Key, Limits, Tenant, with_catalogue
from gateway.domain.prices import Money
from gateway.simulator.app import create_app as create_simulator
from gateway.simulator.settings import Settings
from gateway.store.memory import MemoryStore
from gateway.tenants.admission import to_store_limits
from gateway.tenants.keys import hash_key
from gateway.tenants.usage_log import read, sum_by, to_dimensions
from tests.running import HeldClock, account, captured_logs, config_for, key_of

pytestmark = pytest.mark.slow

REQUESTS: Final = 10_000
AT_ONCE: Final = 40
TENANTS: Final = ("acme", "globex", "initech")
MODELS: Final = ("qwen-image-2.0", "qwen-image-2.0-pro", "qwen-image-plus", "qwen-image-max")
FAULTS: Final = (
    {"kind": "fewer_images", "share": 0.05},
    {"kind": "DataInspectionFailed", "share": 0.03},
    {"kind": "InternalError", "share": 0.03},
    {"kind": "empty_choices", "share": 0.01},
)


def tenants() -> tuple[Tenant, ...]:
    """One has only seeded answers kept, one all of them, and one a budget that comes to its end."""
    limits = Limits(images_per_day=1_000_000, spend_per_month=Money(10**12))
    small = Limits(images_per_day=700, spend_per_month=Money(10**12))

    def tenant(name: str, **more: Any) -> Tenant:
        keys = tuple(
            Key(hash=hash_key(key_of(f"{name}{part}")), label=f"{part}") for part in range(2)
        )
        return Tenant(name=name, keys=keys, **more)

    return (
        tenant("acme", limits=limits),
        tenant("globex", limits=limits, cache=Cache(mode="always")),
        tenant("initech", limits=small),
    )


@asynccontextmanager
async def alive(app: Any) -> AsyncIterator[None]:
    """Start and end an ASGI application."""
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    task = asyncio.ensure_future(app(scope, events.get, answers.put))
    for event in ("startup", "shutdown"):
        await events.put({"type": f"lifespan.{event}"})
        assert (await answers.get())["type"] == f"lifespan.{event}.complete"
        if event == "startup":
            yield
    await task


def wishes(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """A key and a body."""
    tenant = chance.choice(TENANTS)
    body: dict[str, Any] = {
        "model": chance.choice(MODELS),
        "prompt": f"fox {chance.getrandbits(64):x}",
        "n": chance.choice((1, 1, 1, 1, 2, 3)),
        "response_format": "url",
    }
    match chance.randrange(10):
        case 0 | 1 | 2 | 3 if tenant != "initech":
            body |= {"prompt": f"fox {chance.randrange(80)}", "seed": 1, "n": 1}
        case 4:
            body["n"] = 99
        case 5:
            tenant = "nobody"
    return key_of(f"{tenant}{chance.randrange(2)}"), body


async def ask(app: Any, key: str, body: dict[str, Any]) -> int:
    """The status of an answer, by the shortest way there is."""
    text = json.dumps(body).encode()
    sent = [{"type": "http.request", "body": text, "more_body": False}]
    status = 0

    async def receive() -> Any:
        return sent.pop() if sent else await asyncio.Future()

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/images/generations",
        "raw_path": b"/v1/images/generations",
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"gateway"),
            (b"authorization", f"Bearer {key}".encode()),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(text)).encode()),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return status


async def ask_everything(app: Any) -> Counter[int]:
    chance = random.Random(1)
    statuses: Counter[int] = Counter()
    left = [wishes(chance) for _ in range(REQUESTS)]

    async def client() -> None:
        while left:
            statuses[await ask(app, *left.pop())] += 1

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return statuses


async def scrape(app: Any) -> list[Metric]:
    """What `/metrics` shows of the running application."""
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport) as client:
        answer = await client.get("http://gateway/metrics")
    return list(text_string_to_metric_families(answer.text))


def samples(shown: list[Metric], name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """A metric, summed by some labels."""
    sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for metric in shown:
        for sample in metric.samples:
            if sample.name == name:
                sums[tuple(sample.labels[label] for label in labels)] += sample.value
    return dict(sums)


@pytest.mark.usefixtures("quick_retries")
async def test_metrics_budgets_and_usage_record_agree(tmp_path: Path) -> None:
    log = tmp_path / "usage.jsonl"
    one = account("http://vendor/api/v1")
    config = with_catalogue(config_for(one, tenants=tenants(), usage_log=str(log)))
    clock = HeldClock().clock()
    store = MemoryStore(clock.now)
    settings = Settings(render="plain", image_base="http://127.0.0.1:9")
    simulator = create_simulator(settings, clock=clock.now, chance=random.Random(2))
    transport = httpx.ASGITransport(cast("Any", simulator))  # each has types of its own
    with captured_logs():
        app = create_app(config, store=store, transport=transport, clock=clock)
        async with alive(app), httpx.AsyncClient(transport=transport) as vendor:
            for fault in FAULTS:
                await vendor.post("http://vendor/_simulator/faults", json={**fault, "count": None})
            statuses = await ask_everything(app)
            shown = await scrape(app)
            state = (await vendor.get("http://vendor/_simulator/state?log=0")).json()
            budgets = [await store.usage(t.name, to_store_limits(t.limits)) for t in tenants()]

    assert {200, 400, 401, 429, 502} <= statuses.keys()
    assert sum(samples(shown, "gateway_requests_total").values()) == REQUESTS
    cache = samples(shown, "gateway_cache_results_total", "result")
    assert min(cache["hit",], cache["miss",], cache["bypass",]) > 100

    lines = sum_by(read(log, None, pytest.fail), to_dimensions("tenant,model"))
    assert {place: (total.images, total.cost) for place, total in lines.items()} == {
        (usage.tenant, model): (use.images, use.cost)
        for usage in budgets
        for model, use in usage.this_month.items()
        if use.images
    }
    images = samples(shown, "gateway_images_total", "tenant", "model")
    spend = samples(shown, "gateway_spend_total", "tenant", "model")
    assert images == {place: total.images for place, total in lines.items()}
    assert {k: round(v * 1e6) for k, v in spend.items()} == {k: t.cost for k, t in lines.items()}
    for usage in budgets:
        of_tenant = [total for (tenant, _), total in lines.items() if tenant == usage.tenant]
        day, month = usage.levels.day, usage.levels.month
        assert day is not None
        assert month is not None
        assert day.limit - day.remaining == sum(total.images for total in of_tenant)
        assert month.limit - month.remaining == sum(total.cost for total in of_tenant)
    assert sum(images.values()) == sum(state["paid"].values())
    total = json.loads(recorded(config, None, None, "tenant", json=True))["total"]
    assert total["images"] == sum(images.values())
    assert Money.parse(total["cost"]).micros == sum(t.cost for t in lines.values())

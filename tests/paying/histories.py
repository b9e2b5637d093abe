"""Random histories of whole gateways, each known by one number.

Clients ask, leave at any await, and send hostile headers; limits refuse; the vendor fails, makes
too few or too many, and does not say; workers are killed; the store goes away, swallows its
answers, loses its last writes or all of them.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from msgspec import Struct

from gateway.config import Cache, Config, Images, Key, Limits, Tenant, with_catalogue
from gateway.domain.catalogue import Rate
from gateway.tenants.keys import hash_key
from tests.running import account, config_for, key_of
from tests.virtual_gateway import (
    Call,
    Site,
    Visit,
    broken_off,
    made,
    now,
    refused,
    throttled,
    unreachable,
)

WORKERS = 2
PLACES = 40
BUDGET = 100_000
GROUPS = {"acme": "acme", "tight": "tight", "left": "pair", "right": "pair"}
TIGHT = Limits(requests_per_minute=4, concurrent_requests=1, images_per_day=8)
ROOMY = Limits(images_per_day=BUDGET, concurrent_requests=PLACES)
LIMITS = {name: TIGHT if name == "tight" else ROOMY for name in GROUPS}
CACHE_S = 300.0
SETTLED_S = 16.0
"""After a fault: a lease, and what it takes to notice."""
QUIET_S = 45.0
"""Behind everything: the longest lease, and more."""

WORKS: dict[str, dict[str, Any]] = {
    "fox": {"seed": 7},
    "foxes": {"seed": 7, "n": 3},
    "owls": {"seed": 7, "n": 3, "model": "qwen-image-plus"},
    "new": {},
}
"""What is asked for: the prompt, and what goes with it."""
DIRECTIVES = ["no-cache", "no-store", "only-if-cached", "max-age=5"]
HOSTILE = [
    [("cache-control", "a=" + " " * 31_000 + '"')],
    [("cache-control", "max-age=" + "9" * 900)],
    [("cache-control", "no-cache"), ("cache-control", "only-if-cached")],
    [("idempotency-key", "one"), ("idempotency-key", "two")],
    [("idempotency-key", "\xe9" * 300)],
    [("x-stainless-read-timeout", "nan"), ("x-stainless-retry-count", "9" * 400)],
    [("x-stainless-read-timeout", "1e309")],
    [("x-stainless-read-timeout", "-1"), ("x-stainless-retry-count", "-1")],
    [("authorization", "Bearer " + ":" * 30_000)],
]


class Ask(Struct, frozen=True):
    """One client's request, and when it leaves."""

    tenant: str
    worker: int
    work: str
    manner: str
    hostile: int | None
    is_retry: bool
    leaves_at: int | None
    hangs_up_s: float | None

    @property
    def fields(self) -> dict[str, Any]:
        return WORKS[self.work]

    @property
    def images(self) -> int:
        return int(self.fields.get("n", 1))

    @property
    def kind(self) -> tuple[str, str]:
        """Requests of one kind ask the same vendor for the same."""
        return GROUPS[self.tenant], self.work

    @property
    def is_shared(self) -> bool:
        """Its result may be given to anybody who asks for the same."""
        return "seed" in self.fields and self.manner in {"plain", "keyed"} and self.is_plain

    @property
    def is_plain(self) -> bool:
        return self.hostile is None

    def headers(self) -> list[tuple[str, str]]:
        headers = [] if self.hostile is None else list(HOSTILE[self.hostile])
        if self.manner == "keyed":
            headers.append(("idempotency-key", self.work))
        elif self.manner != "plain":
            headers.append(("cache-control", self.manner))
        if self.is_retry:
            headers.append(("x-stainless-retry-count", "1"))
        return headers


class Mishap(Struct, frozen=True):
    """Something that befalls a worker, or the store."""

    kind: str
    worker: int
    lasts_s: float


Step = Ask | Mishap | float
"""A number is a pause."""


def steps_of(number: int) -> list[Step]:
    """Most of each is about one tenant and one work, as only then anything is shared."""
    draw = random.Random(number)
    tenants = [draw.choice(list(GROUPS))] * 5 + list(GROUPS)
    works = [draw.choice(list(WORKS))] * 4 + list(WORKS)

    def ask() -> Ask:
        leaves = draw.choice(["never", "never", "at an await", "later"])
        return Ask(
            tenant=draw.choice(tenants),
            worker=draw.randrange(WORKERS),
            work=draw.choice(works),
            manner=draw.choice(["plain"] * 8 + ["keyed"] * 3 + DIRECTIVES),
            hostile=draw.randrange(len(HOSTILE)) if draw.random() < 0.1 else None,
            is_retry=draw.random() < 0.35,
            leaves_at=draw.randint(1, 60) if leaves == "at an await" else None,
            hangs_up_s=draw.choice([0.0, 0.3, 3.0]) if leaves == "later" else None,
        )

    def step() -> Step:
        kind = draw.choices(["ask", "pause", "mishap"], [10, 7, 1])[0]
        if kind == "ask":
            return ask()
        if kind == "pause":
            return draw.choice([0.0005, 0.01, 0.3, 1.0, 1.0, 4.0, 12.0, 40.0])
        what = draw.choice(["kill", "kill", "away", "silent", "failover", "lost"])
        return Mishap(what, draw.randrange(WORKERS), draw.choice([0.2, 1.0, 12.0]))

    return [step() for _ in range(draw.randint(8, 18))]


def config_of_all() -> Config:
    tenants = tuple(
        Tenant(
            name=name,
            keys=(Key(hash=hash_key(key_of(name))),),
            cache=Cache(mode="seeded", ttl_s=CACHE_S, group=None if group == name else group),
            limits=LIMITS[name],
        )
        for name, group in GROUPS.items()
    )
    vendor = account("http://127.0.0.1:9/api/v1", rates={"*": Rate(20)})
    images = Images(allowed_hosts=(".aliyuncs.com",))
    return with_catalogue(config_for(vendor, tenants=tenants, images=images))


MOODS = {
    "well": 14,
    "slow": 1,
    "few": 2,
    "many": 1,
    "throttled": 2,
    "away": 1,
    "silent": 2,
    "broken": 1,
    "refusing": 1,
}
"""Of the vendor, and how often each is."""
FAILURES: dict[str, Callable[[float], Awaitable[httpx.Response]]] = {
    "throttled": lambda _: throttled(),
    "away": lambda _: unreachable(),
    "broken": lambda after_s: refused(after_s, 500, "InternalError"),
    "refusing": lambda after_s: refused(after_s, 400, "DataInspectionFailed"),
}


class Moods:
    """What the vendor does with each call, by the history's number and the call's."""

    def __init__(self) -> None:
        self.number = 0
        self.unknown: set[int] = set()
        """Calls that ended without a word on their outcome."""

    async def reply(self, call: Call) -> httpx.Response:
        draw = random.Random(self.number * 1000 + call.number)
        (mood,) = draw.choices(list(MOODS), list(MOODS.values()))
        after_s = 25.0 if mood == "slow" else draw.choice([0.05, 0.5, 2.0])
        if mood in FAILURES:
            return await FAILURES[mood](after_s)
        if mood == "silent":
            self.unknown.add(call.number)
            return await broken_off(call, after_s)
        return await made(call, after_s, call.wanted + {"few": -1, "many": 2}.get(mood, 0))


class World:
    """One history: what happened."""

    def __init__(self, site: Site, moods: Moods, number: int) -> None:
        self.number = number
        self.site = site
        self.moods = moods
        self.asked: dict[Visit, Ask] = {}
        self.mishaps: Counter[str] = Counter()
        self.troubled: list[tuple[float, float]] = []
        """When the rules of paying once do not hold."""

    async def live(self) -> None:
        """All of it, until everybody has left."""
        site = self.site
        site.store.lose_everything()
        site.vendor.calls.clear()
        site.vendor.forget()
        site.store.forget()
        self.moods.number = self.number
        self.moods.unknown.clear()
        await asyncio.sleep(5.0)
        self._lines = [len(worker.recorded()) for worker in site.workers]
        tasks: list[asyncio.Task[None]] = []
        for step in steps_of(self.number):
            if isinstance(step, Ask):
                self.ask(step)
            elif isinstance(step, Mishap):
                tasks.append(asyncio.create_task(self.befall(step)))
            else:
                await asyncio.sleep(step)
        for task in tasks:
            await task
        for visit in self.asked:
            async with asyncio.timeout(700):
                await visit
        await asyncio.sleep(QUIET_S)

    def ask(self, ask: Ask) -> None:
        visit = self.site.ask(
            tenant=ask.tenant,
            worker=ask.worker,
            headers=ask.headers(),
            prompt=ask.work,
            **ask.fields,
        )
        visit.leaves_at = ask.leaves_at
        if ask.hangs_up_s is not None:
            asyncio.get_running_loop().call_later(ask.hangs_up_s, visit.hang_up)
        self.asked[visit] = ask

    async def befall(self, mishap: Mishap) -> None:
        store, kind = self.site.store, mishap.kind
        self.mishaps[kind] += 1
        lasts_s = {"kill": 0.0, "lost": 0.0, "failover": 0.5}.get(kind, mishap.lasts_s)
        self.troubled.append((now(), now() + lasts_s + SETTLED_S))
        match kind:
            case "kill":
                await self.site.kill(mishap.worker)
            case "lost":
                store.lose_everything()
            case "failover":
                await store.fail_over(lasts_s)
            case "away":
                store.away += 1
                await asyncio.sleep(lasts_s)
                store.away -= 1
            case "silent":
                store.silent += 1
                await asyncio.sleep(lasts_s)
                store.silent -= 1

    def lines(self) -> list[dict[str, Any]]:
        """Of the usage records."""
        before = self._lines + [0] * (len(self.site.workers) - len(self._lines))
        pairs = zip(self.site.workers, before, strict=True)
        return [line for worker, count in pairs for line in worker.recorded()[count:]]

    def is_troubled(self, start: float, end: float) -> bool:
        return any(begins <= end and ends >= start for begins, ends in self.troubled)

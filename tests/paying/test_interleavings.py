"""Random histories of two whole gateways over one store: what was paid, and what was handed out.

Clients ask, hang up and ask again; the vendor fails; cached images expire and are purged; the store
goes away, swallows its answers, or loses its data. Time is virtual, everything else is real.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from functools import cache
from itertools import count
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from msgspec import Struct

from gateway.app import create_app
from gateway.config import Cache, Config, Images, Key, Tenant, with_catalogue
from gateway.domain.clock import Clock
from gateway.results.cache_policy import MARGIN_S
from gateway.store.availability import StoreUnavailable
from gateway.store.memory import MemoryStore
from gateway.tenants.keys import hash_key
from tests.running import account, captured_logs, config_for, key_of
from tests.virtual_time import run

pytestmark = pytest.mark.slow

NOON = 1_800_000_000.0
URL_LIFE_S = 600.0
CACHE_S = 300.0
WORKERS = 2
SETTLED_S = 15.0
"""After a fault: a lease, and what it takes to notice."""
EXCUSE_S = 60.0
ADOPTED_S = 60.0
GROUPS = {"acme": None, "other": None, "left": "pair", "right": "pair"}
PARTS = 4
"""Tests that the histories are spread over: each has 120 s to itself."""
OTHER_MANNERS = ["keyed", "no-cache", "no-store", "only-if-cached", "max-age=5"]
STATUSES = {0, 200, 499, 502, 503, 504}
"""499 and 0: nobody is there to read the answer."""
KEEPING = {"plain", "keyed", "no-cache", "max-age=5"}
"""What of a seeded request goes into the cache."""


class TakeRequest(Struct, frozen=True):
    """One client's request, how long the vendor takes for it, and when it hangs up."""

    worker: int
    tenant: str
    body: str
    manner: str
    call_s: float
    fails: bool
    hangs_up_s: float | None
    is_retry: bool

    @property
    def scope(self) -> str:
        return GROUPS[self.tenant] or self.tenant

    @property
    def is_seeded(self) -> bool:
        return self.body != "unseeded"

    def fields(self) -> dict[str, Any]:
        seed = {"seed": 7} if self.is_seeded else {}
        return {"model": "qwen-image-2.0", "prompt": self.body, "response_format": "url", **seed}

    def headers(self) -> dict[str, str]:
        headers = {"authorization": f"Bearer {key_of(self.tenant)}"}
        if self.manner == "keyed":
            headers["idempotency-key"] = self.body
        elif self.manner != "plain":
            headers["cache-control"] = self.manner
        if self.is_retry:
            headers["x-stainless-retry-count"] = "1"
        return headers


class Mishap(Struct, frozen=True):
    """Something that befalls the store."""

    kind: str
    lasts_s: float


class Pause(Struct, frozen=True):
    """Time passes."""

    seconds: float


def history_of(seed: int) -> list[TakeRequest | Mishap | Pause]:
    """Most of each is about one request of one tenant, as only then anything is shared.

    Drawn evenly, which a strategy of hypothesis is not: with one, hits are rare.
    """
    draw = random.Random(seed)
    tenants = [draw.choice(list(GROUPS))] * 5 + list(GROUPS)
    bodies = [draw.choice(["fox", "fox", "unseeded"])] * 4 + ["fox", "unseeded"]

    def step() -> TakeRequest | Mishap | Pause:
        kind = draw.choices(["ask", "pause", "mishap"], [10, 8, 1])[0]
        if kind == "pause":
            return Pause(draw.choice([0.01, 1.0, 1.0, 4.0, 4.0, 40.0, 250.0, 320.0]))
        if kind == "mishap":
            what = draw.choice(["purge", "purge", "away", "silent", "lost"])
            return Mishap(what, draw.choice([0.2, 4.0, 25.0]))
        return TakeRequest(
            worker=draw.randrange(WORKERS),
            tenant=draw.choice(tenants),
            body=draw.choice(bodies),
            manner=draw.choice(["plain"] * 8 + OTHER_MANNERS),
            call_s=draw.choice([0.05, 0.05, 2.0, 30.0]),
            fails=draw.random() < 0.1,
            hangs_up_s=draw.choice([None, None, None, 0.0, 0.5, 3.0]),
            is_retry=draw.random() < 0.4,
        )

    return [step() for _ in range(draw.randint(6, 16))]


def now() -> float:
    return NOON + asyncio.get_running_loop().time()


class Call:
    """One upstream call: who paid for it, when it ran, and how it ended."""

    def __init__(self, number: int, payer: Visit) -> None:
        self.number = number
        self.payer = payer
        self.began = now()
        self.ended: float | None = None
        self.brought_images = False

    @property
    def dies(self) -> float:
        """Its URL."""
        assert self.ended is not None
        return int(self.ended + URL_LIFE_S)

    def helps(self, at: float) -> bool:
        """Whether it was running, or had brought images that may still be handed out."""
        if self.began > at - 0.05:
            return False
        if self.ended is None or self.ended >= at:
            return True
        return self.brought_images and self.dies - MARGIN_S > at


class Visit:
    """A client's request under way, and its answer."""

    def __init__(self, wanted: TakeRequest) -> None:
        self.wanted = wanted
        self.began = now()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.answered: float | None = None


VISITOR: ContextVar[Visit] = ContextVar("visitor")
"""Whose work is done: a task inherits it from the request that started it."""


class Till(httpx.AsyncBaseTransport):
    """The vendor, in this process, and its list of who called."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._numbers = count()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call = Call(next(self._numbers), VISITOR.get())
        self.calls.append(call)
        await asyncio.sleep(call.payer.wanted.call_s)
        call.ended = now()
        if call.payer.wanted.fails:
            return reply(500, {"code": "InternalError", "message": "no", "request_id": "1"})
        call.brought_images = True
        url = f"https://images.aliyuncs.com/{call.number}.png?Expires={call.dies:.0f}"
        message = {"role": "assistant", "content": [{"image": url}]}
        return reply(200, {"output": {"choices": [{"message": message}]}, "request_id": "1"})


def reply(status: int, body: object) -> httpx.Response:
    return httpx.Response(status, stream=httpx.ByteStream(json.dumps(body).encode()))


class FaultyStore:
    """A store that can be away, or do what it is asked and not answer."""

    def __init__(self) -> None:
        self.inner = MemoryStore(now)
        self.failures: list[str] = []
        self.away = 0
        self.silent = 0
        self.reconnects = 0

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        operation = getattr(self.inner, name)

        async def ask(*args: Any) -> Any:
            await asyncio.sleep(0.001)
            if self.away:
                raise StoreUnavailable("away")
            answer = await operation(*args)
            if self.silent:
                raise StoreUnavailable("silent", in_doubt=True)
            return answer

        return ask


class World:
    """Everything that happened."""

    def __init__(self) -> None:
        self.store = FaultyStore()
        self.till = Till()
        self.visits: list[Visit] = []
        self.troubled: list[tuple[float, float]] = []
        self.purged: list[tuple[float, str]] = []
        config = shop_config()
        clock = Clock(now, lambda: asyncio.get_running_loop().time(), lambda: 0.0)
        self._apps = [
            create_app(config, store=cast("Any", self.store), transport=self.till, clock=clock)
            for _ in range(WORKERS)
        ]

    async def live(self, history: list[TakeRequest | Mishap | Pause]) -> None:
        """All of it, and then everybody is waited for."""
        lives = [Life(app) for app in self._apps]
        for life in lives:
            await life.begin()
        tasks: list[asyncio.Task[None]] = []
        for step in history:
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, TakeRequest):
                tasks.append(asyncio.create_task(self.visit(step)))
            else:
                tasks.append(asyncio.create_task(self.befall(step)))
        await asyncio.sleep(0.01)
        for task in tasks:
            async with asyncio.timeout(400):
                await task
        await asyncio.sleep(40)  # for what is made for clients that left
        for life in lives:
            await life.end()

    async def visit(self, wanted: TakeRequest) -> None:
        visit = Visit(wanted)
        VISITOR.set(visit)
        self.visits.append(visit)
        incoming: asyncio.Queue[Any] = asyncio.Queue()
        body = json.dumps(wanted.fields()).encode()
        incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
        if wanted.hangs_up_s is not None:
            left = {"type": "http.disconnect"}
            asyncio.get_running_loop().call_later(wanted.hangs_up_s, incoming.put_nowait, left)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                visit.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                visit.body += message.get("body", b"")
                visit.answered = now()

        await self._apps[wanted.worker](scope_of(wanted), incoming.get, send)

    async def befall(self, mishap: Mishap) -> None:
        began = now()
        if mishap.kind == "purge":
            with suppress(StoreUnavailable):
                for scope in ("tenant:acme", "group:pair"):
                    await self.store.purge(scope)
                    self.purged.append((now(), scope.partition(":")[2]))
            return
        if mishap.kind == "lost":
            self.store.inner._scopes.clear()
            self.store.reconnects += 1
            self.troubled.append((began, began + SETTLED_S))
            return
        self.troubled.append((began, began + mishap.lasts_s + SETTLED_S))
        self._count(mishap.kind, 1)
        await asyncio.sleep(mishap.lasts_s)
        self._count(mishap.kind, -1)
        self.store.reconnects += 1

    def _count(self, kind: str, step: int) -> None:
        if kind == "away":
            self.store.away += step
        else:
            self.store.silent += step

    # -- what must hold

    def check(self) -> None:
        for visit in self.visits:
            if visit.status == 200 and visit.answered is not None:
                self._check_answer(visit)
            if visit.wanted.manner == "only-if-cached":
                assert not self._paid_by(visit), "only-if-cached was paid for"
            assert len(self._paid_by(visit)) <= 1, "one request, two calls"
            assert visit.status in STATUSES, f"{visit.status}: {visit.body!r}"
        for call in self.till.calls:
            if spared := self._needless(call):
                raise AssertionError(f"call {call.number} was paid, though {spared}")

    def _paid_by(self, visit: Visit) -> list[Call]:
        return [call for call in self.till.calls if call.payer is visit]

    def _check_answer(self, visit: Visit) -> None:
        cache = visit.headers["x-cache"]
        event(f"x-cache {cache}")
        (image,) = json.loads(visit.body)["data"]
        url = urlsplit(image["url"])
        call = self.till.calls[int(url.path.strip("/").removesuffix(".png"))]
        assert visit.answered is not None
        life_s = float(parse_qs(url.query)["Expires"][0]) - visit.answered
        assert life_s > (MARGIN_S - 1 if cache in {"hit", "replayed"} else 0), "a dead URL"
        assert call.payer.wanted.scope == visit.wanted.scope, "another tenant's image"
        assert call.payer.wanted.body == visit.wanted.body, "another request's image"
        assert abs(int(visit.headers["x-image-expires-in"]) - life_s) <= 1.1
        if cache == "hit":
            self._check_hit(visit, call)

    def _check_hit(self, visit: Visit, call: Call) -> None:
        assert call.payer.wanted.manner in KEEPING, "what was not to be stored"
        assert visit.wanted.is_seeded, "a picture that was to be new"
        assert call.ended is not None
        age_s = visit.began - call.ended
        limit_s = 5 if visit.wanted.manner == "max-age=5" else CACHE_S
        assert age_s <= limit_s + 0.1, "too old"
        for at, scope in self.purged:
            is_purged = scope == visit.wanted.scope and call.ended + 0.01 < at < visit.began
            assert not is_purged or self._is_troubled(call.ended, at), "purged"

    def _needless(self, call: Call) -> str | None:
        """Why the rules did not allow it."""
        at, payer = call.began, call.payer.wanted
        for other in self.till.calls:
            if other.payer.wanted.scope != payer.scope or other.payer.wanted.body != payer.body:
                continue
            if not other.helps(at) or self._is_troubled(other.began, at):
                continue
            if payer.manner in {"plain", "keyed"} and self._is_shared(other, call):
                return f"call {other.number} was there for everyone"
            if payer.is_retry and self._is_adoptable(other, call):
                return f"call {other.number} was there for this retry"
        return None

    def _is_shared(self, other: Call, call: Call) -> bool:
        """By the cache."""
        if not call.payer.wanted.is_seeded or other.payer.wanted.manner not in KEEPING:
            return False
        if other.ended is None or other.ended >= call.began:
            return True
        ended = other.ended
        scope = call.payer.wanted.scope
        is_purged = any(who == scope and ended <= at <= call.began for at, who in self.purged)
        return not is_purged and call.began - ended < CACHE_S - 0.1

    def _is_adoptable(self, other: Call, call: Call) -> bool:
        """By the hash of key and body; an error that was answered explains a retry."""
        one, two = other.payer.wanted, call.payer.wanted
        if one.tenant != two.tenant or "keyed" in {one.manner, two.manner}:
            return False
        if other.ended is not None and call.began - other.ended > ADOPTED_S:
            return False
        return not any(
            visit.wanted.tenant == two.tenant
            and visit.wanted.body == two.body
            and visit.status >= 400
            and visit.answered is not None
            and call.began - EXCUSE_S <= visit.answered <= call.began
            for visit in self.visits
        )

    def _is_troubled(self, start: float, end: float) -> bool:
        return any(begins <= end and ends >= start for begins, ends in self.troubled)


class Life:
    """An application's lifespan, as a server runs it."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._answers: asyncio.Queue[Any] = asyncio.Queue()

    async def begin(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        self._task = asyncio.ensure_future(self._app(scope, self._events.get, self._answers.put))
        await self._say("lifespan.startup")

    async def end(self) -> None:
        await self._say("lifespan.shutdown")
        await self._task

    async def _say(self, what: str) -> None:
        await self._events.put({"type": what})
        answer = await self._answers.get()
        assert answer["type"] == f"{what}.complete", answer


def scope_of(wanted: TakeRequest) -> Any:
    headers = {**wanted.headers(), "content-type": "application/json"}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/images/generations",
        "raw_path": b"/v1/images/generations",
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), text.encode()) for name, text in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }


@cache
def shop_config() -> Config:
    tenants = tuple(
        Tenant(
            name=name,
            keys=(Key(hash=hash_key(key_of(name))),),
            cache=Cache(mode="seeded", ttl_s=CACHE_S, group=group),
        )
        for name, group in GROUPS.items()
    )
    images = Images(allowed_hosts=(".aliyuncs.com",))
    config = config_for(account("http://127.0.0.1:9/api/v1"), tenants=tenants, images=images)
    return with_catalogue(config)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with captured_logs():
        yield


@pytest.mark.parametrize("part", range(PARTS))
@settings(
    max_examples=200 // PARTS,
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 2**30 - 1))
def test_any_history(part: int, seed: int) -> None:
    """Never a dead URL, never another tenant's image, never a call that the rules spare."""
    history = history_of(PARTS * seed + part)
    note(str(history))

    async def happen() -> World:
        world = World()
        await world.live(history)
        return world

    run(happen()).check()

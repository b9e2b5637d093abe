"""Whole gateways over one store and one vendor, in one process and in virtual time.

Everything is real but the wire: requests come by ASGI, the vendor answers in a transport, and the
store is the in-process one at the far end of a line that can fail.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextvars import Context, ContextVar, copy_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, cast

import aiohttp
import httpx
from aiohttp.client_reqrep import ConnectionKey
from msgspec.structs import replace

from gateway.app import create_app
from gateway.config import Config
from gateway.domain.clock import Clock
from gateway.store import limits
from gateway.store.availability import StoreUnavailable
from gateway.store.memory import MemoryStore
from tests.running import key_of

NOON = 1_800_000_000.0
LINE_S = 0.001
"""What the way to the store and back takes."""
URL_LIFE_S = 86_400.0
NOWHERE = ConnectionKey("nowhere", 443, True, True, None, None, None)

Json = dict[str, Any]


def now() -> float:
    """Unix time, as far as the loop has come."""
    return NOON + asyncio.get_running_loop().time()


# --- clients


class Visit:
    """A client's request under way, and its answer."""

    def __init__(self, tenant: str, body: Json, headers: Sequence[tuple[str, str]]) -> None:
        self.tenant = tenant
        self.body = body
        self.sent_headers = headers
        self.began = now()
        self.status = 0
        """0: nobody was answered."""
        self.headers: dict[str, str] = {}
        self.content = b""
        self.answered: float | None = None
        self.hung_up: float | None = None
        self.is_cut = False
        """Whether its worker was killed."""
        self.steps = 0
        """How often anything of it has run until its next await."""
        self.leaves_at: int | None = None
        """Hangs up after so many steps."""
        self.task: asyncio.Task[None] | None = None
        self._is_answered = asyncio.Event()
        self.incoming: asyncio.Queue[Json] = asyncio.Queue()
        sent = {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        self.incoming.put_nowait(sent)

    def hang_up(self) -> None:
        if self.hung_up is None:
            self.hung_up = now()
            self.incoming.put_nowait({"type": "http.disconnect"})

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.leaves_at:
            self.hang_up()

    async def take(self, message: Json) -> None:
        """What the gateway sends."""
        if self.is_cut:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): text.decode() for name, text in message["headers"]}
        else:
            self.content += message.get("body", b"")
            if not message.get("more_body"):
                self.answered = now()
                self._is_answered.set()

    async def until_answered(self) -> None:
        """The gateway may still be at work for it."""
        await self._is_answered.wait()

    @property
    def error(self) -> Json:
        return cast("Json", json.loads(self.content)["error"])

    @property
    def urls(self) -> list[str]:
        return [image["url"] for image in json.loads(self.content)["data"]]

    def __await__(self) -> Generator[Any, Any, None]:
        """Until the gateway has done everything for it."""
        assert self.task is not None
        yield from asyncio.wait([self.task]).__await__()
        if not self.task.cancelled():
            self.task.result()


VISIT: ContextVar[Visit] = ContextVar("visit")
"""Whose work is done: a task inherits it from the request that started it."""
WORKER: ContextVar[int] = ContextVar("worker")


class Stepped(Coroutine[Any, Any, Any]):
    """A coroutine of a visit's, whose steps are counted."""

    def __init__(self, work: Coroutine[Any, Any, Any], visit: Visit) -> None:
        self._work = work
        self._visit = visit

    def send(self, value: Any) -> Any:
        try:
            return self._work.send(value)
        finally:
            self._visit.step()

    def throw(self, *fault: Any) -> Any:
        try:
            return self._work.throw(*fault)
        finally:
            self._visit.step()

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Any:
        raise TypeError("for a task alone")


# --- the vendor


class Call:
    """One upstream call: who pays for it, and what it brought."""

    def __init__(self, number: int, visit: Visit, attempt: int, wanted: int) -> None:
        self.number = number
        self.visit = visit
        self.attempt = attempt
        """How many calls of the same prompt came before."""
        self.wanted = wanted
        self.began = now()
        self.ended: float | None = None
        self.images = 0
        """Made, and billed."""
        self.is_heard = False
        """Whether its worker learned how it ended."""


Reply = Callable[[Call], Awaitable[httpx.Response]]


class Vendor(httpx.AsyncBaseTransport):
    """Makes what it has begun, whatever becomes of the connection."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.calls: list[Call] = []
        self._attempts: dict[str, int] = {}

    def forget(self) -> None:
        """As if nothing had been asked for."""
        self.calls.clear()
        self._attempts.clear()

    @property
    def paid(self) -> int:
        return sum(call.images for call in self.calls)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        prompt = asked["input"]["messages"][0]["content"][0]["text"]
        attempt = self._attempts.get(prompt, 0)
        self._attempts[prompt] = attempt + 1
        wanted = asked["parameters"].get("n") or 1
        call = Call(len(self.calls), VISIT.get(), attempt, wanted)
        self.calls.append(call)
        making = asyncio.get_running_loop().create_task(self._make(call), context=Context())
        try:
            return await asyncio.shield(making)
        finally:
            call.is_heard = making.done()

    async def _make(self, call: Call) -> httpx.Response:
        try:
            return await self.reply(call)
        finally:
            call.ended = now()


async def made(call: Call, after_s: float, images: int | None = None) -> httpx.Response:
    """Some images, or all that were asked for."""
    await asyncio.sleep(after_s)
    call.images = call.wanted if images is None else images
    dies = int(now() + URL_LIFE_S)
    content = [
        {"image": f"https://images.aliyuncs.com/{call.number}-{index}.png?Expires={dies}"}
        for index in range(call.images)
    ]
    message = {"role": "assistant", "content": content}
    return response(200, {"output": {"choices": [{"message": message}]}, "request_id": "1"})


async def refused(after_s: float, status: int, code: str, **headers: str) -> httpx.Response:
    """An error of the vendor's: nothing was made."""
    await asyncio.sleep(after_s)
    return response(status, {"code": code, "message": "no", "request_id": "1"}, headers)


async def throttled() -> httpx.Response:
    return await refused(0.05, 429, "Throttling.RateQuota")


async def unreachable() -> httpx.Response:
    await asyncio.sleep(0.05)
    raise aiohttp.ClientConnectorError(NOWHERE, OSError("connection refused"))


async def broken_off(call: Call, after_s: float) -> httpx.Response:
    """Made, and billed, but the answer is lost."""
    await made(call, after_s)
    raise aiohttp.ServerDisconnectedError


def response(status: int, body: object, headers: Mapping[str, str] | None = None) -> httpx.Response:
    stream = httpx.ByteStream(json.dumps(body).encode())
    return httpx.Response(status, headers=headers, stream=stream)


# --- the store


class SharedStore:
    """The store itself, and what befalls it for all."""

    def __init__(self) -> None:
        self.inner = MemoryStore(now)
        self.away = 0
        self.silent = 0
        self.reconnects = 0
        self.admitted: set[str] = set()
        """Requests that it has ever let in."""
        self.refused: set[str] = set()
        """Those that it has not."""
        self.in_doubt: set[str] = set()
        """Those that were never told."""

    def lose_everything(self) -> None:
        """As a server that was restarted without its data."""
        self.inner = MemoryStore(now)

    def forget(self) -> None:
        """Whom it has let in."""
        self.admitted.clear()
        self.refused.clear()
        self.in_doubt.clear()

    def holds(self, requests: set[str]) -> set[str]:
        """Those of the requests that are named anywhere in it."""
        return requests & set(texts_in(self.inner, set()))

    async def fail_over(self, lost_s: float) -> None:
        """A replica takes its place, which lacks the last writes."""
        known = copy.deepcopy(vars(self.inner))
        await asyncio.sleep(lost_s)
        vars(self.inner).clear()
        vars(self.inner).update(known)
        self.reconnects += 1


def texts_in(held: Any, seen: set[int]) -> Iterator[str]:
    """Every text in an object, however deep."""
    if isinstance(held, str):
        yield held
    if isinstance(held, str | bytes | int | float | None) or id(held) in seen:
        return
    seen.add(id(held))
    if isinstance(held, Mapping):
        inside = [*held.keys(), *held.values()]
    elif isinstance(held, list | tuple | set | frozenset | deque):
        inside = list(held)
    else:
        names = [*getattr(held, "__dict__", ()), *getattr(held, "__slots__", ())]
        names += getattr(held, "__struct_fields__", ())
        inside = [getattr(held, name, None) for name in names]
    for each in inside:
        yield from texts_in(each, seen)


class Line:
    """One worker's way to the store."""

    def __init__(self, shared: SharedStore) -> None:
        self._shared = shared
        self.is_cut = False

    @property
    def reconnects(self) -> int:
        return self._shared.reconnects

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def ask(*args: Any) -> Any:
            shared = self._shared
            await asyncio.sleep(LINE_S)
            if self.is_cut or shared.away:
                raise StoreUnavailable("away")
            answer = await getattr(shared.inner, name)(*args)
            if name == "enter":
                known = shared.refused if answer.place is None else shared.admitted
                known.add(args[0].entry.request)
            if shared.silent:
                if name == "enter":
                    shared.in_doubt.add(args[0].entry.request)
                raise StoreUnavailable("silent", in_doubt=True)
            return answer

        return ask


# --- the gateways


class Worker:
    """One application with its lifespan, as a server runs it; it can be killed."""

    def __init__(self, number: int, config: Config, store: SharedStore, vendor: Vendor) -> None:
        self._number = number
        self.line = Line(store)
        self.is_killed = False
        self.tasks: set[asyncio.Task[Any]] = set()
        self.visits: list[Visit] = []
        self._usage_log = Path(config.usage_log or "/dev/null")
        self._recorded: list[Json] | None = None
        self._events: asyncio.Queue[Json] = asyncio.Queue()
        self._answers: asyncio.Queue[Json] = asyncio.Queue()
        clock = Clock(now, lambda: asyncio.get_running_loop().time(), lambda: 0.0)
        way = cast("Any", self.line)
        self.app: Any = create_app(config, store=way, transport=vendor, clock=clock)

    async def start(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        self.spawn(self.app(scope, self._events.get, self._answers.put))
        await self._say("lifespan.startup")

    async def stop(self) -> None:
        if not self.is_killed:
            await self._say("lifespan.shutdown")

    async def kill(self) -> None:
        """It ends without a word to anybody."""
        self._recorded = self.recorded()
        self.is_killed = self.line.is_cut = True
        for visit in self.visits:
            visit.is_cut = visit.answered is None
        while running := {task for task in self.tasks if not task.done()}:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=1)

    def spawn(self, work: Any, visit: Visit | None = None) -> asyncio.Task[Any]:
        context = copy_context()
        context.run(WORKER.set, self._number)
        if visit is not None:
            context.run(VISIT.set, visit)
        return asyncio.get_running_loop().create_task(work, context=context)

    def recorded(self) -> list[Json]:
        """The lines of its usage record."""
        if self._recorded is not None:
            return self._recorded
        try:
            lines = self._usage_log.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    async def _say(self, what: str) -> None:
        self._events.put_nowait({"type": what})
        answer = await self._answers.get()
        assert answer["type"] == f"{what}.complete", answer


class Site:
    """Some workers, one store, one vendor; usable as a context manager."""

    def __init__(
        self, config: Config, vendor: Vendor, workers: int = 1, store: SharedStore | None = None
    ) -> None:
        self.vendor = vendor
        self.store = store or SharedStore()
        self.visits: list[Visit] = []
        self._folder = TemporaryDirectory()
        self._config = config
        self.workers: list[Worker] = []
        """The killed ones too."""
        self._of_place: list[Worker] = [self._add() for _ in range(workers)]

    def _add(self) -> Worker:
        number = len(self.workers)
        log = str(Path(self._folder.name, f"usage-{number}.jsonl"))
        worker = Worker(number, replace(self._config, usage_log=log), self.store, self.vendor)
        self.workers.append(worker)
        return worker

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(self._make_task)
        for worker in self._of_place:
            await worker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self._of_place:
            await worker.stop()
        self._folder.cleanup()

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, work: Any, **more: Any
    ) -> asyncio.Task[Any]:
        context = more.get("context")
        if context is None:  # an empty one counts
            context = copy_context()
        visit = context.get(VISIT)
        if visit is not None:
            work = Stepped(work, visit)
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **{**more, "context": context})
        number = context.get(WORKER)
        if number is not None:
            tasks = self.workers[number].tasks
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        return task

    def ask(
        self,
        *,
        tenant: str = "acme",
        worker: int = 0,
        headers: Sequence[tuple[str, str]] = (),
        **fields: Any,
    ) -> Visit:
        """Send a request; await what is returned for its end."""
        body = {"model": "qwen-image-2.0", "response_format": "url", **fields}
        visit = Visit(tenant, body, headers)
        self.visits.append(visit)
        served_by = self._of_place[worker]
        served_by.visits.append(visit)
        work = served_by.app(scope_of(visit), visit.incoming.get, visit.take)
        visit.task = served_by.spawn(work, visit)
        return visit

    async def kill(self, place: int) -> None:
        """Kill a worker, and start another in its place."""
        await self._of_place[place].kill()
        self._of_place[place] = self._add()
        await self._of_place[place].start()

    async def usage(self, tenant: str, wanted: limits.Limits) -> limits.Usage:
        """What the store has of a tenant."""
        return await self.store.inner.usage(tenant, wanted)

    async def metrics(self, worker: int = 0) -> dict[str, float]:
        """Every sample of a worker, by its name and labels."""
        text = bytearray()

        async def take(message: Json) -> None:
            text.extend(message.get("body", b""))

        asked: asyncio.Queue[Json] = asyncio.Queue()
        asked.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        await self._of_place[worker].app(http_scope("GET", "/metrics"), asked.get, take)
        lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def recorded(self, *, doubtful: bool = False, tenant: str | None = None) -> int:
        """Images in the usage records."""
        lines = [line for worker in self.workers for line in worker.recorded()]
        return sum(
            line["images"]
            for line in lines
            if line.get("doubtful", False) is doubtful and tenant in {None, line["tenant"]}
        )


def scope_of(visit: Visit) -> Json:
    headers = [
        ("authorization", f"Bearer {key_of(visit.tenant)}"),
        ("content-type", "application/json"),
        *visit.sent_headers,
    ]
    return http_scope("POST", "/v1/images/generations", headers)


def http_scope(method: str, path: str, headers: Sequence[tuple[str, str]] = ()) -> Json:
    """Of ASGI."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), text.encode("latin-1")) for name, text in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }

"""A real gateway for tests: in a thread, or as the process that `gateway serve` is.

In a thread it listens on a loopback port like in production and can be given another configuration
between tests, which starts its application anew. Time and chance are held by the test.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import httpx
import structlog
import uvicorn
import uvloop
from msgspec.structs import replace
from structlog.processors import format_exc_info

from gateway.app import create_app
from gateway.config import Account, Config, Images, Key, Tenant, with_catalogue, with_prices
from gateway.config.decode import Secret
from gateway.domain.catalogue import Catalogue, Rate
from gateway.domain.clock import Clock
from gateway.observability.logs import to_json
from gateway.server.bounds import Bounds, Unread
from gateway.server.http import HttpProtocol
from gateway.server.worker import http_config
from gateway.tenants.keys import PREFIX, checksum, hash_key
from tests.openai_shapes import check_error, check_events, check_images
from tests.security.secrets_search import SHOWN

ROOT: Final = Path(__file__).parents[1]
UPSTREAM_KEY: Final = "sk-upstream-0f9b7c1d2e"
"""What the gateway presents to the vendor, and no client may ever see."""


def key_of(name: str) -> str:
    """A well-formed key that is the same in every process."""
    body = f"{PREFIX}{name:x<10}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return body + checksum(body)


ACME: Final = key_of("acme")
"""A key of the tenant that may do everything."""
OTHER_ACME: Final = key_of("acme2")
"""A second key of the same tenant."""
EXPIRED: Final = key_of("expired")
LIMITED: Final = key_of("limited")
"""A key of a tenant that may use qwen-image-plus and dall-e-* alone."""
STRICT: Final = key_of("strict")
"""A key of a tenant whose sizes must be legal as they are."""
SECRETS: Final = {
    "the vendor's key": UPSTREAM_KEY,
    **{f"the key {key[:16]}…": key for key in (ACME, OTHER_ACME, EXPIRED, LIMITED, STRICT)},
}
"""What no output of the whole suite may show."""
EXPIRES_AT: Final = 1_800_000_000
NOW: Final = EXPIRES_AT + 1
"""Where the clock of a gateway in a thread stands."""
REQUEST_ID: Final = re.compile(r"req_[0-9a-f]{32}")
SIGNS_OF_A_LEAK: Final = ("Traceback", 'File "', ".py", "aiohttp", "httpx", "msgspec", "aliyuncs")

Json = dict[str, Any]


def account(base_url: str, name: str = "one", key: str = UPSTREAM_KEY, **more: Any) -> Account:
    """A DashScope account that is not paced."""
    rates = {"*": Rate(None)}
    return Account(name=name, base_url=base_url, api_key=Secret(key), **{"rates": rates, **more})


def tenants() -> tuple[Tenant, ...]:
    """One of each kind."""

    def key(text: str, **more: Any) -> Key:
        return Key(hash=hash_key(text), label="test", **more)

    expires_at = datetime.fromtimestamp(EXPIRES_AT, UTC)
    return (
        Tenant(name="acme", keys=(key(ACME), key(OTHER_ACME), key(EXPIRED, expires_at=expires_at))),
        Tenant(
            name="limited",
            keys=(key(LIMITED),),
            models=("qwen-image-plus", "dall-e-*"),
            default_model="qwen-image-plus",
        ),
        Tenant(name="strict", keys=(key(STRICT),), size_policy="strict"),
    )


def config_for(*accounts: Account, **changes: Any) -> Config:
    """A whole configuration that takes results from a simulator on this machine."""
    images = Images(allowed_hosts=("127.0.0.1",), allow_http=True, timeout_s=5.0)
    settings: Json = {"tenants": tenants(), "images": images, **changes}
    config = Config(accounts=accounts, **settings)
    if config.aliases or config.models:
        return with_catalogue(config)
    return replace(config, catalogue=with_prices(shipped_catalogue(), accounts))


@cache
def shipped_catalogue() -> Catalogue:
    """The models and aliases that come with the gateway."""
    return with_catalogue(Config(accounts=(), tenants=())).catalogue


class HeldClock:
    """The wall clock stands still, the steady one runs; chance always says 0."""

    def __init__(self) -> None:
        self.now = float(NOW)
        self.ahead_s = 0.0

    def clock(self) -> Clock:
        """For `create_app`."""
        return Clock(lambda: self.now, lambda: time.monotonic() + self.ahead_s, lambda: 0.0)


class _Lifespan:
    """Starts and ends an ASGI application the way a server does."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._events: asyncio.Queue[Json] = asyncio.Queue()
        self._answers: asyncio.Queue[Json] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        self._task = asyncio.ensure_future(
            self.app(scope, self._events.get, self._answers.put)  # a server's two ends
        )
        await self._say("lifespan.startup")

    async def end(self) -> None:
        await self._say("lifespan.shutdown")
        if self._task is not None:
            await self._task

    async def _say(self, event: str) -> None:
        await self._events.put({"type": event})
        answer = await asyncio.wait_for(self._answers.get(), 10)
        assert answer["type"] == f"{event}.complete", answer


class RunningGateway:
    """The gateway on an ephemeral loopback port, in a thread with an event loop of its own."""

    def __init__(self) -> None:
        self._current: _Lifespan | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.bounds = Bounds()
        """Of connections that are made from now on."""
        self.unread = Unread()
        config = http_config(self._switch, "off")
        config.http = cast("Any", self._connection)
        self._server = uvicorn.Server(config)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._thread.start()

    def use(self, config: Config, clock: Clock | None = None) -> None:
        """Serve this configuration from now on, with nothing remembered."""
        asyncio.run_coroutine_threadsafe(self._use(config, clock), self._loop).result(30)

    def rest(self) -> None:
        """Serve nothing until the next `use`: what a gateway needs may end with its test."""
        self._loop.call_soon_threadsafe(self._end_current)

    def _connection(self, **more: Any) -> HttpProtocol:
        return HttpProtocol(**more, bounds=self.bounds, unread=self.unread)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Have its event loop do something else meanwhile, so that bytes gather in the kernel."""
        over = threading.Event()
        self._loop.call_soon_threadsafe(over.wait, 10)
        try:
            yield
        finally:
            over.set()

    def close(self) -> None:
        """End, and wait for it."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=10)
        self._socket.close()

    async def _use(self, config: Config, clock: Clock | None) -> None:
        self._end_current()
        current = _Lifespan(create_app(config, clock=clock))
        await current.start()
        self._current = current

    def _end_current(self) -> None:
        """Without waiting: what was paid for is finished first, however long that takes."""
        former, self._current = self._current, None
        if former is not None:
            task = asyncio.ensure_future(former.end())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def await_former(self) -> None:
        """Until those that it served before have ended. Raises TimeoutError after 20 seconds."""
        asyncio.run_coroutine_threadsafe(self._former_ended(), self._loop).result(30)

    async def _former_ended(self) -> None:
        async with asyncio.timeout(20):
            await asyncio.gather(*self._ending)

    async def _end(self) -> None:
        self._end_current()
        await self._former_ended()

    async def _switch(self, scope: Any, receive: Any, send: Any) -> None:
        assert self._current is not None, "no configuration is in use"
        await self._current.app(scope, receive, send)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve(sockets=[self._socket]))
        self._loop.close()


class Client:
    """Calls a gateway, and checks the form of every answer on the way."""

    def __init__(self, http: httpx.Client, url: str, hidden: Iterable[str] = ()) -> None:
        self.http = http
        self.url = url
        self._hidden = (UPSTREAM_KEY, *hidden)

    def generate(
        self,
        prompt: str = "a fox",
        *,
        key: str = ACME,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> httpx.Response:
        """Ask for images; `fields` are the further keys of the body."""
        return self.post({"prompt": prompt, **fields}, key=key, headers=headers)

    def post(
        self, body: object, *, key: str = ACME, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Send a body to the images endpoint."""
        return self.ask("POST", "/v1/images/generations", key=key, json=body, headers=headers)

    def ask(self, method: str, path: str, *, key: str | None = ACME, **more: Any) -> httpx.Response:
        """Any request."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        headers |= more.pop("headers", None) or {}
        response = self.http.request(method, self.url + path, headers=headers, **more)
        self.check(response)
        return response

    def check(self, response: httpx.Response) -> None:
        """What holds for every answer, whatever was asked."""
        assert REQUEST_ID.fullmatch(response.headers["x-request-id"])
        assert response.headers["openai-processing-ms"].isdigit()
        if response.status_code >= 400:
            if response.request.method != "HEAD":
                check_error(response)
            self._check_hidden(response)
        elif response.headers.get("content-type", "").startswith("text/event-stream"):
            check_events(response)
        elif response.request.method == "POST":
            check_images(response)

    def _check_hidden(self, response: httpx.Response) -> None:
        shown = "\n".join([response.text, *(f"{k}: {v}" for k, v in response.headers.items())])
        for text in (*self._hidden, *SIGNS_OF_A_LEAK):
            assert text not in shown


class Logs:
    """Every line that the gateway's log was given."""

    def __init__(self) -> None:
        self.lines: list[Json] = []

    def __call__(self, _: Any, method: str, line: Any) -> Any:
        self.lines.append({"level": method, **line})
        # What the vendor said is masked in the finished line; nothing else may need that.
        own = {name: value for name, value in line.items() if name != "upstream_message"}
        SHOWN.add("the log", to_json(format_exc_info(_, method, own)))
        raise structlog.DropEvent

    def named(self, event: str) -> list[Json]:
        """The lines of one kind."""
        return [line for line in self.lines if line["event"] == event]


@contextmanager
def captured_logs() -> Iterator[Logs]:
    """Collects what is logged, in any thread."""
    logs = Logs()
    structlog.configure(
        processors=[logs],
        # A command that ran in this process before may have silenced it.
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        cache_logger_on_first_use=False,
    )
    yield logs
    structlog.reset_defaults()


class GatewayProcess:
    """`python -m gateway …` as a process of its own; usable as a context manager."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gateway", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        self.output = ""
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @classmethod
    def serving(cls, config: Path, *arguments: str, **more: Any) -> Self:
        """`gateway serve`, once it takes requests."""
        gateway = cls("serve", "--config", str(config), *arguments, **more)
        gateway.wait_for(r"listening on")
        return gateway

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The whole group: a process that it started and left behind would hold the pipe open.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
        SHOWN.add("the output of a process", self.output)

    @property
    def url(self) -> str:
        """Where it listens, as it said itself."""
        return self.wait_for(r"listening on (http://\S+)")[1]

    @property
    def pid(self) -> int:
        """The process' number."""
        return self._process.pid

    def wait_for(self, pattern: str, timeout_s: float = 20) -> re.Match[str]:
        """What it printed, once that matches."""
        matched: re.Match[str] | None = None

        def found() -> bool:
            nonlocal matched
            matched = re.search(pattern, self.output)
            return matched is not None or not self._reader.is_alive()

        with self._grown:
            self._grown.wait_for(found, timeout_s)
        assert matched is not None, self.output
        return matched

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Tell it to end."""
        self._process.send_signal(number)

    def ended(self, timeout_s: float = 20) -> int:
        """Its exit status, once it has ended and everything it printed is read."""
        status = self._process.wait(timeout_s)
        self._reader.join(10)
        return status

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._grown:
                self.output += line
                self._grown.notify_all()
        with self._grown:
            self._grown.notify_all()


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses connections, and that nobody else can take meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    """Wait for something in another thread or process."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)

"""A gateway as it is deployed: real processes, a file, Redis, and callers who count answers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import aiohttp

from gateway.tenants.keys import hash_key
from tests.running import ACME, UPSTREAM_KEY, GatewayProcess

Json = dict[str, Any]
PATH: Final = "/v1/images/generations"
IMAGE: Final = {"prompt": "a fox", "model": "qwen-image-2.0", "size": "512x512"}


def document(base_url: str, **changes: Any) -> Json:
    """A configuration file's content: one account that is not paced, one tenant."""
    return {
        "listen": {"host": "127.0.0.1", "port": 0},
        "accounts": [one_account(base_url)],
        "images": {"allowed_hosts": ["127.0.0.1"], "allow_http": True},
        "tenants": [tenant("acme", ACME)],
        **changes,
    }


def one_account(base_url: str, **changes: Any) -> Json:
    return {
        "name": "one",
        "base_url": base_url,
        "api_key": UPSTREAM_KEY,
        "rates": {"*": "unlimited"},
        **changes,
    }


def tenant(name: str, *keys: str, **changes: Any) -> Json:
    entries = [{"hash": hash_key(key), "label": "test"} for key in keys]
    return {"name": name, "keys": entries, "cache": {"mode": "off"}, **changes}


def write(path: Path, content: Json) -> Path:
    """Replace the file as an operator should: whole, by a rename. JSON is YAML too."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content))
    fresh.rename(path)
    return path


class Site:
    """A configuration file and the processes that were started on it."""

    def __init__(self, folder: Path, base_url: str, redis_url: str) -> None:
        self.file = folder / "gateway.yaml"
        self.base_url = base_url
        self._redis = {"url": redis_url, "connect_timeout_ms": 2000, "command_timeout_ms": 2000}

    def write(self, **changes: Any) -> None:
        """Replace the file."""
        write(self.file, document(self.base_url, **{"redis": self._redis, **changes}))

    def start(self, *arguments: str, workers: int = 2) -> GatewayProcess:
        """A gateway that takes requests."""
        return GatewayProcess.serving(self.file, "--workers", str(workers), *arguments)


def session(**more: Any) -> aiohttp.ClientSession:
    """Connections without end, and nobody in between."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, **more),
        headers={"authorization": f"Bearer {ACME}"},
        timeout=aiohttp.ClientTimeout(total=60),
        trust_env=False,
    )


async def generate(client: aiohttp.ClientSession, url: str, **fields: Any) -> int:
    """One image; the status, once the whole answer is there."""
    async with client.post(url + PATH, json={**IMAGE, **fields}) as response:
        await response.read()
        return response.status


class Load:
    """Requests at a steady rate, whether the former ones are answered or not."""

    def __init__(self, url: str, per_second: float, **session_options: Any) -> None:
        self._url = url
        self._pause_s = 1 / per_second
        self._options = session_options
        self._stopped = False
        self.outcomes: Counter[str] = Counter()
        """Answers by status, and what went wrong by its name."""
        self.slowest_s = 0.0

    async def __aenter__(self) -> Self:
        self._client = session(**self._options)
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped = True
        await self._task
        await self._client.close()

    @property
    def sent(self) -> int:
        """How many have ended."""
        return self.outcomes.total()

    async def _run(self) -> None:
        due, calls = time.monotonic(), set()
        while not self._stopped:
            call = asyncio.create_task(self._one())
            calls.add(call)
            call.add_done_callback(calls.discard)
            due += self._pause_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*calls)

    async def _one(self) -> None:
        started = time.monotonic()
        try:
            outcome = str(await generate(self._client, self._url))
        except (aiohttp.ClientError, OSError, TimeoutError) as fault:
            outcome = f"{type(fault).__name__}: {fault}"
        self.outcomes[outcome] += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)


async def eventually(
    condition: Callable[[], Awaitable[object]], timeout_s: float = 10, every_s: float = 0.02
) -> float:
    """Wait for something; how many seconds it took."""
    started = time.monotonic()
    while not await condition():
        assert time.monotonic() < started + timeout_s, "it did not happen in time"
        await asyncio.sleep(every_s)
    return time.monotonic() - started


def children_of(pid: int) -> list[int]:
    """The workers of a supervisor."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Line:
    """A kept connection to one worker, and which worker that is."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, url: str) -> Line:
        host, _, port = url.removeprefix("http://").partition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    def worker(self, pids: list[int]) -> int | None:
        """Which of the processes holds the other end; None until it has been accepted."""
        own: socket.socket = self._writer.get_extra_info("socket")
        near, far = own.getsockname()[1], own.getpeername()[1]
        inode = next(
            (
                fields[9]
                for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
                if int(fields[1].split(":")[1], 16) == far
                and int(fields[2].split(":")[1], 16) == near
            ),
            None,
        )
        return next((pid for pid in pids if inode and holds(pid, inode)), None)

    async def ask(
        self, method: str, path: str, *, key: str = ACME, body: Json | None = None
    ) -> tuple[int, dict[str, str], Json]:
        """Status, headers and body of an answer."""
        content = json.dumps(body).encode() if body is not None else b""
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        self._writer.write(head.encode() + content)
        start = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in start[1:] if line)}
        answer = await self._reader.readexactly(int(headers["content-length"]))
        return int(start[0].split()[1]), headers, json.loads(answer)

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def holds(pid: int, inode: str) -> bool:
    """Whether a process has a socket open."""
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if os.readlink(each) == f"socket:[{inode}]":  # noqa: PTH115
                return True
    return False


async def line_to_each(url: str, pids: list[int]) -> list[Line]:
    """One kept connection to every worker; the caller closes them."""
    found: dict[int, Line] = {}

    async def all_found() -> bool:
        line = await Line.to(url)
        await line.ask("GET", "/healthz")
        pid = line.worker(pids)
        if pid is None or pid in found:
            line.close()
        else:
            found[pid] = line
        return len(found) == len(pids)

    await eventually(all_found, 20, 0.005)
    return list(found.values())

"""A client that sends thousands of requests at once, or a few dozen a second, and times each."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any, Final, NamedTuple

PATH: Final = "/v1/images/generations"
NUMBERS: Final = count()
CONNECTED_AT_ONCE = 250


class Answer(NamedTuple):
    """What came back, and when it was asked for; status 0 where the connection was lost."""

    at: float
    took_s: float
    status: int
    headers: dict[str, str]
    body: Any

    @property
    def code(self) -> str | None:
        """The error's code."""
        code: str | None = self.body["error"]["code"]
        return code


class Connection:
    """One connection, for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.at = 0.0

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, method: str, path: str, key: str = "", body: object = None) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        self.at = time.time()
        self._writer.write(head.encode() + content)

    async def answer(self) -> Answer:
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines if line)
            body = await self._reader.readexactly(int(headers["content-length"]))
        except (asyncio.IncompleteReadError, OSError):
            return Answer(self.at, time.time() - self.at, 0, {}, None)
        took_s = time.time() - self.at
        return Answer(self.at, took_s, int(status.split()[1]), headers, as_json(body))

    async def hang_up(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


def as_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()


def image_request(model: str = "qwen-image-2.0", n: int = 1, **more: object) -> dict[str, object]:
    """No two are the same, so that none can be taken for a repeat of another."""
    prompt = f"a fox, number {next(NUMBERS)}"
    return {"model": model, "prompt": prompt, "n": n, "response_format": "url", **more}


async def ask(port: int, key: str, **fields: Any) -> Answer:
    """One image request on a connection of its own."""
    async with asked(port, [key], **fields) as (connection,):
        return await connection.answer()


async def get(port: int, path: str) -> Answer:
    connection = await Connection.open(port)
    try:
        connection.send("GET", path)
        return await connection.answer()
    finally:
        await connection.hang_up()


@asynccontextmanager
async def asked(port: int, keys: Sequence[str], **fields: Any) -> AsyncIterator[list[Connection]]:
    """As many requests as keys, all sent before the first answer is read."""
    async with connected([port] * len(keys)) as connections:
        for connection, key in zip(connections, keys, strict=True):
            connection.send("POST", PATH, key, image_request(**fields))
        yield connections


@asynccontextmanager
async def connected(ports: Sequence[int]) -> AsyncIterator[list[Connection]]:
    """A connection to each; at the end, every one is hung up."""
    connections: list[Connection] = []
    try:
        for start in range(0, len(ports), CONNECTED_AT_ONCE):
            some = ports[start : start + CONNECTED_AT_ONCE]
            connections += await asyncio.gather(*map(Connection.open, some))
        yield connections
    finally:
        await asyncio.gather(*(connection.hang_up() for connection in connections))


async def burst(ports: Sequence[int], requests: int, key: str, **fields: Any) -> list[Answer]:
    """Connect everywhere, then send everything in one tick of the loop."""
    targets = [ports[number % len(ports)] for number in range(requests)]
    async with connected(targets) as connections:
        for connection in connections:
            connection.send("POST", PATH, key, image_request(**fields))
        return list(await asyncio.gather(*(one.answer() for one in connections)))


class Load:
    """So many requests a second for each of several keys, until it is ended."""

    def __init__(self, ports: Sequence[int], per_second: dict[str, float]) -> None:
        self._ports = ports
        self.answers: dict[str, list[Answer]] = {key: [] for key in per_second}
        self._under_way: set[asyncio.Task[None]] = set()
        self._senders = [
            asyncio.create_task(self._send(key, rate)) for key, rate in per_second.items()
        ]

    async def end(self) -> None:
        """Send no more, and wait for what was sent."""
        for sender in self._senders:
            sender.cancel()
        await asyncio.wait(self._senders)
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def _send(self, key: str, rate: float) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        for number in count():
            await asyncio.sleep(started + number / rate - loop.time())
            port = self._ports[number % len(self._ports)]
            task = asyncio.create_task(self._ask(port, key))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _ask(self, port: int, key: str) -> None:
        self.answers[key].append(await ask(port, key))


async def eventually(condition: Callable[[], Awaitable[bool]], within_s: float = 10) -> float:
    """Look again and again; how long it took to become true."""
    started = time.monotonic()
    while not await condition():
        assert time.monotonic() - started < within_s, "it did not happen in time"
        await asyncio.sleep(0.02)
    return time.monotonic() - started


def statuses(answers: Iterable[Answer]) -> dict[int, int]:
    """How many of each."""
    return dict(sorted(Counter(answer.status for answer in answers).items()))


def between(answers: Iterable[Answer], start: float, end: float) -> list[Answer]:
    """Those that were asked for in a span of time."""
    return [answer for answer in answers if start <= answer.at < end]


def percentile_ms(answers: Sequence[Answer], percent: float) -> float:
    """Of how long they took; 0 of none."""
    took = sorted(answer.took_s for answer in answers)
    return took[min(len(took) - 1, int(len(took) * percent / 100))] * 1000 if took else 0.0

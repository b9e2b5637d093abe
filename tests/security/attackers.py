"""Attackers of each kind: coroutines that go on until they are cancelled, at bounded rates.

What an attacker is answered is its own affair, but for a 500: nobody may get one.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, cast

PATH: Final = "/v1/images/generations"
KEEPS_S: Final = 60.0
"""How long an attacker keeps a connection that nobody ends."""
HOSTILE: Final = (
    b"cache-control: a=" + b" " * 31_000 + b'"',
    b"cache-control: " + b"max-age=1," * 100,
    b"idempotency-key: " + b"k" * 300 + b"\r\nidempotency-key: other",
    b"x-stainless-read-timeout: nan\r\nx-stainless-retry-count: " + b"9" * 400,
    b"x-" + b"a" * 30_000 + b": 1",
    b"\r\n".join(b"x-%d: 1" % number for number in range(250)),
    b"traceparent: 00-" + b"f" * 20_000,
)


class Attack:
    """Where to, with which keys, and what came of it."""

    def __init__(self, ports: Sequence[int], keys: dict[str, str], seed: int) -> None:
        self.ports = ports
        self.keys = keys
        self.answers: Counter[str] = Counter()
        """Kind of attack and status; `cut` where there was none."""
        self.draw = random.Random(seed)

    def request(self, tenant: str, body: Any, *lines: bytes, size: int | None = None) -> bytes:
        """The bytes of a request; a larger `size` says that more will come."""
        content = json.dumps(body).encode()
        head = (
            f"POST {PATH} HTTP/1.1".encode(),
            b"host: gateway",
            b"authorization: Bearer " + self.keys.get(tenant, "none").encode(),
            b"content-type: application/json",
            b"content-length: %d" % (size or len(content)),
            *lines,
        )
        return b"\r\n".join(head) + b"\r\n\r\n" + content

    async def connect(self, **more: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.draw.choice(self.ports), **more)

    async def ask(self, kind: str, request: bytes) -> None:
        """Send it, and count what comes back."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(30):
                reader, writer = await self.connect()
                try:
                    writer.write(request)
                    head = await reader.read(4096)
                    self.answers[f"{kind} {head[9:12].decode() or 'cut'}"] += 1
                finally:
                    writer.close()


def prompt(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "qwen-image-2.0", "prompt": text, "size": "512x512", **more}


async def at_rate(per_s: float, one: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Begin one so often, whether those before have ended or not."""
    tasks: set[asyncio.Task[None]] = set()
    try:
        while True:
            task = asyncio.create_task(one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(1 / per_s)
    finally:
        for task in tasks:
            task.cancel()


async def hostile_headers(attack: Attack) -> None:
    async def one() -> None:
        line = attack.draw.choice(HOSTILE)
        await attack.ask("headers", attack.request("mallory", prompt("a"), line))

    await at_rate(8, one)


async def made_up_models(attack: Attack) -> None:
    async def one() -> None:
        draw = attack.draw
        date = f"20{draw.randrange(100):02}-{draw.randrange(20):02}-{draw.randrange(40):02}"
        body = {"model": f"qwen-image-plus-{date}", "prompt": "a"}
        await attack.ask("models", attack.request("mallory", body))

    await at_rate(8, one)


async def refused_floods(attack: Attack) -> None:
    """Each with an Idempotency-Key that nobody has seen, far beyond the tenant's limit."""

    async def one() -> None:
        key = b"idempotency-key: %x" % attack.draw.getrandbits(128)
        await attack.ask("floods", attack.request("poor", prompt("a"), key))

    await at_rate(30, one)


async def without_keys(attack: Attack) -> None:
    async def one() -> None:
        await attack.ask("keyless", attack.request("nobody", prompt("a")))

    await at_rate(15, one)


async def pipelined_hang_ups(attack: Attack) -> None:
    """Ten requests at once, and nobody there for the answers."""

    async def one() -> None:
        with suppress(OSError):
            _, writer = await attack.connect()
            try:
                writer.write(attack.request("mallory", prompt("a")) * 10)
                await asyncio.sleep(attack.draw.choice([0.0, 0.05]))
            finally:
                cast("asyncio.Transport", writer.transport).abort()
                writer.close()  # the writer itself knows nothing of its transport's end

    await at_rate(2, one)


async def unfinished_bodies(attack: Attack) -> None:
    """All of a body but its end, then a byte now and then."""
    begun = attack.request("mallory", prompt("a" * 20_000), size=100_000)
    await asyncio.gather(*(hold(attack, "bodies", begun) for _ in range(40)))


async def silent_connections(attack: Attack) -> None:
    """Half a head, or nothing."""
    half = f"POST {PATH} HTTP/1.1\r\nx: ".encode()
    await asyncio.gather(*(hold(attack, "silent", half[: 30 * (n % 2)]) for n in range(40)))


async def hold(attack: Attack, kind: str, begun: bytes) -> None:
    """One connection after the other, each for as long as it is left to stand."""
    while True:
        with suppress(OSError):
            reader, writer = await attack.connect()
            try:
                writer.write(begun)
                ended = asyncio.create_task(reader.read(4096))
                for _ in range(round(KEEPS_S)):
                    if not ended.done():
                        await asyncio.wait([ended], timeout=1.0)
                        writer.write(b"x" * bool(begun))
                ended.cancel()
                await asyncio.wait([ended])
                head = b"" if ended.cancelled() or ended.exception() else ended.result()
                attack.answers[f"{kind} {head[9:12].decode() or 'cut'}"] += 1
            finally:
                writer.close()
        await asyncio.sleep(0.2)


async def slow_readers(attack: Attack) -> None:
    """Of images that were paid once, and are replayed to each."""
    body = prompt("slow", n=4, response_format="b64_json")
    request = attack.request("mallory", body, b"idempotency-key: slow")
    await asyncio.gather(*(read_slowly(attack, request) for _ in range(30)))


async def read_slowly(attack: Attack, request: bytes) -> None:
    """A kilobyte a second."""
    loop = asyncio.get_running_loop()
    while True:
        with socket.socket() as sock, suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", attack.draw.choice(attack.ports)))
            await loop.sock_sendall(sock, request)
            for _ in range(round(KEEPS_S)):
                if not await loop.sock_recv(sock, 1024):
                    break
                await asyncio.sleep(1.0)
        attack.answers["readers cut"] += 1
        await asyncio.sleep(0.2)


KINDS: Final[tuple[Callable[[Attack], Coroutine[Any, Any, None]], ...]] = (
    hostile_headers,
    made_up_models,
    refused_floods,
    without_keys,
    pipelined_hang_ups,
    unfinished_bodies,
    silent_connections,
    slow_readers,
)

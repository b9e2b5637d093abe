"""An image host for tests: real connections, and answers down to the byte."""

from __future__ import annotations

import asyncio
import random
import re
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
SMALLEST: Final = 69
ETAG: Final = '"5B3C1A2E053D763E1B002CC607C5A0FE"'


def png(length: int, width: int = 1024, height: int = 1024, seed: int = 0) -> bytes:
    """A PNG of exactly so many bytes, at least 69, most of them noise."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    end = chunk(b"IEND", b"")
    room = length - len(PNG_SIGNATURE + header + end) - 12
    return PNG_SIGNATURE + header + chunk(b"noIs", random.Random(seed).randbytes(room)) + end


class Asked(NamedTuple):
    """A request as it arrived."""

    target: str
    headers: dict[str, str]

    @property
    def start(self) -> int:
        """The first byte asked for."""
        return int(self._range[1])

    @property
    def end(self) -> int | None:
        """Behind the last byte asked for; None: to the end."""
        last = self._range[2]
        return int(last) + 1 if last else None

    @property
    def _range(self) -> re.Match[str]:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", "bytes=0-"))
        assert found is not None
        return found


class Answer(NamedTuple):
    """What is sent; then the connection is kept, closed (at once or later), or left hanging."""

    raw: bytes
    then: str = "keep"


Script = Callable[[Asked], Answer]


def answer(status: int, body: bytes, *, sent: int | None = None, **headers: str) -> Answer:
    """An answer that declares all of `body` and sends `sent` bytes of it, then cuts."""
    lines = {"content-length": str(len(body)), "content-type": "image/png", "etag": ETAG}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    raw = f"HTTP/1.1 {status} Status\r\n{head}\r\n".encode() + body[:sent]
    return Answer(raw, "keep" if sent is None else "close")


def serve(image: bytes, *, sent: int | None = None, **headers: str) -> Script:
    """The whole image, or the part that was asked for; cut after `sent` bytes."""

    def script(asked: Asked) -> Answer:
        start, end = asked.start, asked.end or len(image)
        if not start and asked.end is None:
            return answer(200, image, sent=sent, **headers)
        place = f"bytes {start}-{end - 1}/{len(image)}"
        return answer(206, image[start:end], sent=sent, **{"content_range": place, **headers})

    return script


def ignore_range(image: bytes, *, sent: int | None = None, **headers: str) -> Script:
    """The whole image, whatever was asked."""
    return lambda _: answer(200, image, sent=sent, **headers)


def chunked(image: bytes, *, sent: int | None = None, ends: bool = True) -> Script:
    """The image without a declared length."""

    def script(_: Asked) -> Answer:
        parts = [image[start : start + 50_000] for start in range(0, len(image[:sent]), 50_000)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        return Answer(head + body + (b"0\r\n\r\n" if ends else b""), "keep" if ends else "close")

    return script


class ImageHost:
    """Answers each request for a path with the next script of that path; the last one stays."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.port = 0
        self.connections = 0
        self._scripts: dict[str, list[Script]] = {}

    def add(self, *scripts: Script) -> str:
        """The URL of a new image."""
        path = f"/{len(self._scripts)}.png"
        self._scripts[path] = list(scripts)
        return f"http://127.0.0.1:{self.port}{path}?Expires=1&Signature=a%2Bb%3D"

    def starts(self) -> list[int]:
        """First bytes of all the requests so far."""
        return [each.start for each in self.asked]

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections -= 1
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked = parse(await reader.readuntil(b"\r\n\r\n"))
            self.asked.append(asked)
            scripts = self._scripts[asked.target.partition("?")[0]]
            reply = (scripts.pop(0) if len(scripts) > 1 else scripts[0])(asked)
            for start in range(0, len(reply.raw), 65536):
                writer.write(reply.raw[start : start + 65536])
                await writer.drain()
            if reply.then == "hang":
                await reader.read()
            if reply.then == "close later":
                await asyncio.sleep(0.05)
            if reply.then != "keep":
                return


def parse(head: bytes) -> Asked:
    line, *rest = head.decode().strip().split("\r\n")
    pairs = (re.split(r":\s*", each, maxsplit=1) for each in rest)
    return Asked(line.split(" ")[1], {name.lower(): value for name, value in pairs})


@asynccontextmanager
async def image_host() -> AsyncIterator[ImageHost]:
    """A host on a loopback port, in this event loop."""
    host = ImageHost()
    tasks: set[asyncio.Task[Any]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(host.connected(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    host.port = server.sockets[0].getsockname()[1]
    yield host
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

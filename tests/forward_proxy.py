"""A forward proxy for tests: tunnels and plain requests, credentials, refusals. It knows the names
of hosts that nobody else knows, so that what arrives there has come through it.
"""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
import threading
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from tests.running import until


class Asked(NamedTuple):
    """A request as the proxy got it."""

    method: str
    target: str
    authorization: str | None


class ForwardProxy:
    """On an ephemeral loopback port, in a thread of its own; usable as a context manager.

    `hosts` are ports on this machine that speak plain HTTP, by the names under which they are
    asked for. Behind a tunnel they speak TLS with `certificate`; so does the proxy itself, if
    `over_tls`. `refuse` maps hosts to the status that a request for them gets; -1 hangs up
    without one, 0 never answers. `refuse_reads` is the status that plain GET and HEAD get.
    """

    def __init__(
        self,
        hosts: dict[str, int],
        certificate: Path | None = None,
        *,
        credentials: str | None = None,
        over_tls: bool = False,
    ) -> None:
        self.hosts = hosts
        self.refuse: dict[str, int] = {}
        self.refuse_reads = 200
        self.asked: list[Asked] = []
        self.port = 0
        self.credentials = credentials
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._context.load_cert_chain(certificate)
        self._own_context = self._context if over_tls else None
        self.fronts: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        until(lambda: self.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def targets(self, method: str) -> list[str]:
        """What was asked for by a method."""
        return [each.target for each in self.asked if each.method == method]

    def _run(self) -> None:
        self._loop.run_until_complete(self._listen())
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _listen(self) -> None:
        for host, port in self.hosts.items():
            if self._context is not None:
                front = await asyncio.start_server(
                    partial(self._relay, port), "127.0.0.1", ssl=self._context
                )
                self._servers.append(front)
                self.fronts[host] = front.sockets[0].getsockname()[1]
        server = await asyncio.start_server(
            lambda r, w: self._spawn(self._serve(r, w), w), "127.0.0.1", ssl=self._own_context
        )
        self._servers.append(server)
        self.port = server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        while self._tasks:
            tasks = set(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await asyncio.sleep(0)  # for transports that were closed just now

    def _relay(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._spawn(relay(reader, writer, port), writer)

    def _spawn(self, work: Coroutine[Any, Any, None], writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Not by the work itself, which may be cancelled before it has begun.
        task.add_done_callback(lambda _: writer.close())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            await self._answer(head, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass

    async def _answer(
        self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        method, target, _ = head.split(" ", 2)
        found = re.search(r"(?im)^proxy-authorization: *(.*?)\r$", head)
        self.asked.append(Asked(method, target, found[1] if found else None))
        host = (urlsplit(f"//{target}" if method == "CONNECT" else target).hostname) or ""
        status = self._status(host, found[1] if found else "")
        if method in {"GET", "HEAD"} and status == 200:
            status = self.refuse_reads
        if status == 0:
            await reader.read()
        elif status == 200 and method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await relay(reader, writer, self.fronts.get(host, self.hosts[host]))
        elif status == 200:
            rest = re.sub(r"(?im)^(proxy-authorization|connection): .*\r\n", "", head)
            plain = rest.replace(target, re.sub(r"^http://[^/]*", "", target), 1)
            closing = plain.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
            await relay(reader, writer, self.hosts[host], closing.encode("latin-1"))
        elif status > 0:
            body = "the proxy refuses"
            writer.write(
                f"HTTP/1.1 {status} Refused\r\nProxy-Authenticate: Basic realm=proxy\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
            )
            await writer.drain()

    def _status(self, host: str, authorization: str) -> int:
        if self.credentials is not None:
            expected = "Basic " + base64.b64encode(self.credentials.encode()).decode()
            if authorization != expected:
                return 407
        return self.refuse.get(host, 200 if host in self.hosts else 502)


async def relay(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, first: bytes = b""
) -> None:
    """Pass bytes on between a client and a port, until either hangs up."""
    behind, ahead = await asyncio.open_connection("127.0.0.1", port)
    ahead.write(first)
    copying = [asyncio.ensure_future(each) for each in (copy(reader, ahead), copy(behind, writer))]
    try:
        await asyncio.wait(copying, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in copying:
            task.cancel()
        # Before anything that may itself be cancelled.
        ahead.close()
        writer.close()
        await asyncio.gather(*copying, return_exceptions=True)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Everything, as it comes."""
    while block := await reader.read(65536):
        writer.write(block)
        await writer.drain()

"""Plain ASGI: reading a body, sending an answer, cutting a connection.

The hot paths speak ASGI themselves, since a simulator must never be the slow side of a measurement.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any, Protocol

from litestar.enums import ScopeType
from litestar.types import Receive, Scope, Send
from msgspec import Struct

CHUNK_BYTES = 256 * 1024
TRANSPORT = "simulator.transport"
"""Key in `scope["extensions"]` under which `connection.py` leaves the socket's transport."""

Headers = list[tuple[bytes, bytes]]


class Answer(Struct, frozen=True):
    """One HTTP answer; `Content-Length` is added when it is sent."""

    status: int
    headers: Headers
    body: bytes


class Connection(Protocol):
    """The part of `asyncio.Transport` used here."""

    def abort(self) -> None:
        """Drops the connection and what was not sent yet."""

    def close(self) -> None:
        """Sends what is buffered, then closes."""

    def is_closing(self) -> bool:
        """Whether the connection is gone, by either side's doing."""

    def get_extra_info(self, name: str) -> Any:  # noqa: ANN401
        """The socket, for `name="socket"`."""


class TooLarge(Exception):
    """The request body is over the limit."""


class ClientGone(Exception):
    """The client hung up before its request was complete."""


class Cut(Exception):
    """The connection is to be cut: by a reset, or by an early but orderly end."""

    def __init__(self, *, orderly: bool = False) -> None:
        super().__init__("connection cut")
        self.orderly = orderly


def method(scope: Scope) -> str:
    """The request method."""
    return scope["method"] if scope["type"] == ScopeType.HTTP else ""


def header(scope: Scope, name: bytes) -> str:
    """The first value of a header, `name` in lower case; empty when absent."""
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return ""


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The whole request body; `TooLarge` beyond `max_bytes`, `ClientGone` if it never ends."""
    declared = header(scope, b"content-length")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise TooLarge
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        parts.append(message["body"])
        size += len(message["body"])
        if size > max_bytes:
            raise TooLarge
        if not message["more_body"]:
            return b"".join(parts)


async def send_head(send: Send, status: int, headers: Headers) -> None:
    """Status line and headers."""
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def send_part(send: Send, part: bytes, *, more: bool = True) -> None:
    """Some of the body."""
    await send({"type": "http.response.body", "body": part, "more_body": more})


async def send_answer(send: Send, answer: Answer) -> None:
    """The answer, in pieces small enough that a slow reader costs little memory."""
    body = answer.body
    length = (b"content-length", str(len(body)).encode())
    await send_head(send, answer.status, [*answer.headers, length])
    for start in range(0, len(body) - CHUNK_BYTES, CHUNK_BYTES):
        await send_part(send, body[start : start + CHUNK_BYTES])
    rest = (len(body) - 1) // CHUNK_BYTES * CHUNK_BYTES if body else 0
    await send_part(send, body[rest:], more=False)


def connection(scope: Scope) -> Connection | None:
    """The client's connection, when the server exposes it."""
    found: Connection | None = (scope.get("extensions") or {}).get(TRANSPORT)  # type: ignore[assignment]
    return found


def is_gone(scope: Scope) -> bool:
    """Whether the client has hung up."""
    transport = connection(scope)
    return transport is not None and transport.is_closing()


async def wait_until_gone(receive: Receive) -> None:
    """Returns once the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cut(scope: Scope, receive: Receive, *, orderly: bool = False) -> None:
    """Ends the connection: a TCP reset, or after what was sent so far when `orderly`.

    Needs the server of `connection.py`; under another one it raises `ConnectionResetError`, which
    becomes a 500, or an early end if part of the answer was sent.
    """
    transport = connection(scope)
    if transport is None:
        raise ConnectionResetError("the simulated connection is cut")
    if transport.is_closing():
        return  # the client was faster
    if orderly:
        transport.close()
    else:
        no_linger = struct.pack("ii", 1, 0)
        set_socket_option(transport, socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        transport.abort()
    # Until the server has noticed, it would log that the answer is incomplete.
    await wait_until_gone(receive)


def set_socket_option(transport: Connection, level: int, option: int, value: bytes) -> None:
    """Sets an option of the transport's socket, whichever event loop made it."""
    # uvloop's socket object has no setsockopt; the option belongs to the file, not the descriptor.
    descriptor = os.dup(transport.get_extra_info("socket").fileno())
    with socket.socket(fileno=descriptor) as same:
        same.setsockopt(level, option, value)

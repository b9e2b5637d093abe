"""A client of HTTP/1.1 that sends whatever bytes it is given, and reads one answer at a time."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple, Self

from tests.running import ACME, REQUEST_ID

PATH: Final = b"/v1/images/generations"
AUTH: Final = b"authorization: Bearer " + ACME.encode() + b"\r\n"
FIELDS: Final = b"host: gateway\r\ncontent-type: application/json\r\n" + AUTH
BODY: Final = b'{"prompt": "a fox", "model": "qwen-image-2.0", "size": "512x512"}'
NEXT: Final = b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\n" + AUTH + b"\r\n"
"""What is sent to learn whether a connection may be used again."""


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_last(self) -> bool:
        """Whether it says that the connection ends with it."""
        return self.headers.get("connection") == "close"

    @property
    def code(self) -> str | None:
        """Of the error."""
        error: dict[str, str | None] = json.loads(self.body)["error"]
        return error["code"]


def post(
    fields: bytes = b"",
    body: bytes = BODY,
    *,
    path: bytes = PATH,
    version: bytes = b"HTTP/1.1",
    common: bytes = FIELDS,
) -> bytes:
    """A POST whose framing is among `fields`."""
    return b"POST %b %b\r\n%b%b\r\n%b" % (path, version, common, fields, body)


def sized(fields: bytes = b"", body: bytes = BODY, **more: bytes) -> bytes:
    """A POST with the length of its body."""
    return post(fields + b"content-length: %d\r\n" % len(body), body, **more)


def chunked(fields: bytes = b"", body: bytes = BODY, *, end: bytes = b"0\r\n\r\n") -> bytes:
    """A POST with its body in one chunk."""
    chunk = b"%x\r\n%b\r\n" % (len(body), body)
    return post(fields + b"transfer-encoding: chunked\r\n", chunk + end)


class Line:
    """One connection."""

    def __init__(self, url: str, timeout_s: float = 10) -> None:
        port = int(url.rpartition(":")[2])
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def send(self, *packets: bytes) -> None:
        """Each in a packet of its own, as long as the server takes any."""
        with suppress(BrokenPipeError, ConnectionResetError):
            for packet in packets:
                self._socket.sendall(packet)

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        """Vanish."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._socket.close()

    def head(self) -> Answer:
        """The next head, with the body left where it is."""
        while b"\r\n\r\n" not in self._received:
            assert self._read(), f"closed after {self._received!r}"
        text, _, self._received = self._received.partition(b"\r\n\r\n")
        first, *rest = text.decode("latin-1").split("\r\n")
        names = [each.split(": ", 1)[0] for each in rest]
        assert len(names) == len(set(names)), f"a header stands twice: {names}"
        headers = dict(each.split(": ", 1) for each in rest)
        assert first.startswith("HTTP/1.1 ")
        return Answer(int(first.split(" ")[1]), headers, b"")

    def answer(self) -> Answer:
        """The next whole answer; none is chunked."""
        answer = self.head()
        assert REQUEST_ID.fullmatch(answer.headers["x-request-id"])
        length = int(answer.headers.get("content-length", 0))
        while len(self._received) < length:
            assert self._read(), "closed in the middle of a body"
        body, self._received = self._received[:length], self._received[length:]
        return answer._replace(body=body)

    def answers(self, count: int) -> list[Answer]:
        return [self.answer() for _ in range(count)]

    def rest(self) -> bytes:
        """What comes until the server closes, or resets."""
        with suppress(ConnectionResetError):
            while self._read():
                pass
        rest, self._received = self._received, b""
        return rest

    def takes(self, data: bytes) -> bool:
        """Whether the connection is still open for more."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def takes_no_more_after(self, limit_s: float, *, every_s: float, data: bytes = b"x") -> bool:
        """Whether the server ends it within this time, while more is sent all along."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if not self.takes(data):
                return True
            time.sleep(every_s)
        return False

    def is_silent(self, for_s: float) -> bool:
        """Whether nothing comes for so long, not even the end."""
        before = self._socket.gettimeout()
        self._socket.settimeout(for_s)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return not self._received
        else:
            return False
        finally:
            self._socket.settimeout(before)

    def goes_on(self) -> bool:
        """Whether a further request is answered, and nothing else is."""
        self.send(NEXT)
        answer = self.answer()
        return answer.status == 200 and "data" in json.loads(answer.body) and not self._received

    def has_ended(self) -> bool:
        """Whether a further request is not answered, nor anything else sent."""
        self.send(NEXT)
        return self.rest() == b""

    def _read(self) -> bool:
        part = self._socket.recv(65_536)
        self._received += part
        return bool(part)


Dial = Callable[[], Line]


def by_bytes(data: bytes) -> Iterable[bytes]:
    """One byte a packet."""
    return (data[place : place + 1] for place in range(len(data)))

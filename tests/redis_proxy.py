"""A stand-in for the proxy before Alibaba's Redis and Tair in cluster mode.

It passes commands on to a real server, but refuses scripts in which a key is not named literally,
as `KEYS[i]`; `script_check_enable` turns that off. In between it knows no script by its hash.
"""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

REFUSED: Final = (
    b"-ERR bad lua script for redis cluster, all the keys that the script uses should be passed "
    b"using the KEYS array\r\n"
)
UNKNOWN: Final = b"-NOSCRIPT No matching script. Please use EVAL.\r\n"
LITERAL: Final = re.compile(rb"redis\.p?call\(\s*'[A-Z]+'\s*,\s*KEYS\[")
CALL: Final = re.compile(rb"redis\.p?call\b(?!\(\s*'(?:TIME|INFO)')")


class RedisProxy:
    """On an ephemeral loopback port; usable as a context manager."""

    def __init__(self, port: int) -> None:
        self.script_check_enable = True
        self.refused = 0
        self._behind = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._behind))
        with peer, server, suppress(OSError, ValueError, EOFError):
            ahead, behind = peer.makefile("rb"), server.makefile("rb")
            while command := read_command(ahead):
                answer = self._refusal(command)
                if answer is None:
                    server.sendall(written(command))
                    answer = read_reply(behind)
                peer.sendall(answer)

    def _refusal(self, command: list[bytes]) -> bytes | None:
        """What the proxy answers itself; None for what it passes on."""
        if not self.script_check_enable:
            return None
        name = command[0].upper()
        if name == b"EVALSHA":
            return UNKNOWN
        if name == b"EVAL" and len(CALL.findall(command[1])) > len(LITERAL.findall(command[1])):
            self.refused += 1
            return REFUSED
        return None


def read_command(stream: object) -> list[bytes]:
    """One command, as clients write it; empty at the end."""
    line = stream.readline()  # type: ignore[attr-defined]
    if not line:
        return []
    parts = []
    for _ in range(int(line[1:])):
        length = int(stream.readline()[1:])  # type: ignore[attr-defined]
        parts.append(stream.read(length))  # type: ignore[attr-defined]
        stream.read(2)  # type: ignore[attr-defined]
    return parts


def written(command: list[bytes]) -> bytes:
    parts = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in command)
    return b"*%d\r\n%s" % (len(command), parts)


def read_reply(stream: object) -> bytes:
    """One reply of RESP2, as it came."""
    line: bytes = stream.readline()  # type: ignore[attr-defined]
    if not line:
        raise EOFError
    kind, rest = line[:1], line[1:].strip()
    if kind == b"$" and int(rest) >= 0:
        more: bytes = stream.read(int(rest) + 2)  # type: ignore[attr-defined]
        return line + more
    if kind == b"*" and int(rest) > 0:
        return line + b"".join(read_reply(stream) for _ in range(int(rest)))
    return line

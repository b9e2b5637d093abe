"""Peers that mean harm: a vendor that answers whatever a test says, and a service to be reached."""

from __future__ import annotations

import json
import re
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self


class Listener:
    """Counts the connections to a loopback port, and hangs up on each."""

    def __init__(self) -> None:
        self.reached = 0
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

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
            self.reached += 1
            with peer, suppress(OSError):
                peer.settimeout(5)
                self.talk(peer)

    def talk(self, peer: socket.socket) -> None:
        """Say nothing."""


class HostileVendor(Listener):
    """Answers every request with the bytes of `says`, or as `images` says for a GET."""

    def __init__(self) -> None:
        self.says = b""
        self.image = b""
        self.asked: list[bytes] = []
        super().__init__()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/v1"

    def answers(self, body: object, *, status: int = 200, head: str = "") -> None:
        """An HTTP answer with a JSON body, or with these bytes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.says = response(content, status=status, head=head)

    def talk(self, peer: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            part = peer.recv(65536)
            if not part:
                return
            request += part
        head, _, body = request.partition(b"\r\n\r\n")
        self.asked.append(head)
        declared = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        length = int(declared[1]) if declared else 0
        while len(body) < length:
            body += peer.recv(65536)
        peer.sendall(self.image if head.startswith(b"GET") else self.says)


def response(content: bytes, *, status: int = 200, head: str = "") -> bytes:
    """One HTTP answer, after which the connection ends."""
    lines = (
        f"HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\n{head}connection: close\r\n"
    )
    return f"{lines}content-length: {len(content)}\r\n\r\n".encode() + content


def result(*urls: Any) -> dict[str, Any]:
    """A success of the vendor's, with these image URLs."""
    content = [{"image": url} for url in urls]
    choices = [{"finish_reason": "stop", "message": {"role": "assistant", "content": content}}]
    return {"output": {"choices": choices}, "usage": {"image_count": 1}, "request_id": "r"}

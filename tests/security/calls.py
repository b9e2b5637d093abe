"""What every attack asks of the gateway, over HTTP or a bare socket."""

from __future__ import annotations

import json
import socket
from typing import Final

from tests.running import ACME, Client
from tests.simulated import SimulatedDashScope

PATH: Final = "/v1/images/generations"
MODEL: Final = "qwen-image-2.0"
BODY: Final = json.dumps({"prompt": "a fox", "model": MODEL}).encode()


def paid(simulator: SimulatedDashScope) -> int:
    """How many images the vendor has made."""
    return sum(simulator.state(0)["paid"].values())


def talk(gateway: Client, data: bytes, *, timeout_s: float = 5) -> bytes:
    """What comes back over a bare socket until the gateway hangs up."""
    received = b""
    port = int(gateway.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(data)
        while part := connection.recv(65536):
            received += part
    return received


def post(*lines: bytes, body: bytes = BODY, path: bytes = PATH.encode()) -> bytes:
    """A POST with a valid key and these further header lines."""
    head = (
        b"POST " + path + b" HTTP/1.1",
        b"host: gateway",
        b"authorization: Bearer " + ACME.encode(),
        b"content-type: application/json",
        *lines,
    )
    return b"\r\n".join(head) + b"\r\n\r\n" + body

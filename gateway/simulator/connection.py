"""Access to the client's connection, so that it can be cut like a real network does.

ASGI has no word for a TCP reset, so the server's protocol class hands the transport over.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.simulator.wire import TRANSPORT, set_socket_option


class ExposedConnection(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with the transport in `scope["extensions"]`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called once per connection."""
        super().connection_made(transport)
        # uvicorn writes head and body apart, and asyncio leaves Nagle's algorithm on for sockets
        # bound elsewhere: without this each answer waits 40 ms for an acknowledgement.
        on = struct.pack("i", 1)
        set_socket_option(transport, socket.IPPROTO_TCP, socket.TCP_NODELAY, on)

    def on_message_begin(self) -> None:
        """Called by the parser as a request starts, once per request."""
        super().on_message_begin()
        extensions: dict[str, Any] = {TRANSPORT: self.transport}
        self.scope["extensions"] = extensions

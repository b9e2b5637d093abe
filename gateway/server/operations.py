"""A worker's second address, for operators: served until the worker's very end."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import NamedTuple

import uvicorn

LAST_S = 1
"""How long begun answers may take at the end."""


class Sockets(NamedTuple):
    main: socket.socket
    operations: socket.socket | None = None

    def ports(self) -> tuple[int, int | None]:
        """The bound ones, where any would do."""
        own = self.operations
        return self.main.getsockname()[1], None if own is None else own.getsockname()[1]


class OperationsServer(uvicorn.Server):
    """Runs in the event loop of the worker, without a lifespan or signals of its own."""

    def __init__(self, config: uvicorn.Config, sock: socket.socket) -> None:
        super().__init__(config)
        config.timeout_graceful_shutdown = LAST_S
        self._sock = sock

    async def begin(self) -> None:
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup([self._sock])

    async def end(self) -> None:
        """Take no more; those that have come are answered. May be repeated."""
        if self.started:
            self.started = False
            await self.shutdown([self._sock])

    def tell(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """What every answer carries, such as the time."""
        self.server_state.default_headers = [*headers]

"""Noticing that the client of a request hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

CONNECTION = "gateway.api.disconnect"
"""Where a server that can tell puts the request's connection into its scope."""


class Connection(Protocol):
    """One client's."""

    on_hang_up: Callable[[], object] | None
    """Called when the client leaves."""
    transport: asyncio.Transport

    def unwatch(self) -> None:
        """Call nothing."""

    def read_on(self) -> None:
        """Go on reading, without which the end of the connection is not seen."""


def watch(
    scope: Any,  # noqa: ANN401 - any ASGI scope
    receive: Callable[[], Awaitable[Any]],
    on_hang_up: Callable[[], object],
) -> Callable[[], None]:
    """Have `on_hang_up` called when the client leaves, or at once if it has; returns how to stop.

    Thousands of requests wait at once, so on the gateway's own server this takes no task that
    reads the connection; on any other it does.
    """
    connection: Connection | None = scope.get(CONNECTION)
    if connection is None:
        return _read(receive, on_hang_up)
    if connection.transport.is_closing():
        on_hang_up()
    else:
        connection.on_hang_up = on_hang_up
        connection.read_on()
    return connection.unwatch


def _read(
    receive: Callable[[], Awaitable[Any]], on_hang_up: Callable[[], object]
) -> Callable[[], None]:
    async def read() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        on_hang_up()

    task = asyncio.create_task(read())

    def stop() -> None:
        task.cancel()

    return stop

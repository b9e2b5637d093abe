"""What a server can tell of a request's connection: that its body is whole, or its client gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

CONNECTION = "gateway.api.connection"
"""Where a server that can tell puts the request's connection into its scope."""


class Connection(Protocol):
    """The connection of one request, where the server reports a disconnect."""

    is_whole: bool
    """Whether all of its body has arrived."""

    def watch(self, on_hang_up: Callable[[], object]) -> Callable[[], None]:
        """Call `on_hang_up` when the client leaves, or at once; returns how to end this watch."""


def has_whole_body(scope: Any) -> bool:  # noqa: ANN401 - any ASGI scope
    """Whether all of a body has arrived, as far as the server tells: no time-out is needed then."""
    connection: Connection | None = scope.get(CONNECTION)
    return connection is not None and connection.is_whole


def watch(
    scope: Any,  # noqa: ANN401 - any ASGI scope
    receive: Callable[[], Awaitable[Any]],
    on_hang_up: Callable[[], object],
) -> Callable[[], None]:
    """Call `on_hang_up` when the client leaves, or at once; only on foreign servers by a task."""
    connection: Connection | None = scope.get(CONNECTION)
    if connection is None:
        return _read(receive, on_hang_up)
    return connection.watch(on_hang_up)


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

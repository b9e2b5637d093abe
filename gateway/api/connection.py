"""Waiting for work while watching the connection it is done for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from litestar.types import Receive

from gateway.errors import ClientGone, ServiceUnavailable, UpstreamTimeout

T = TypeVar("T")


async def result_of(
    task: asyncio.Task[T], receive: Receive, patience_s: float, leave: Callable[[], bool]
) -> T:
    """The task's result, unless the client hangs up or `patience_s` passes before.

    Then `leave` is called; it says whether the task goes on, having spent money. Thousands of
    requests wait here, so this takes no further task: the end of `task` interrupts the reading of
    the connection.

    Raises:
        ClientGone: the client hung up; nobody will read the answer.
        UpstreamTimeout, ServiceUnavailable: the time is over, after or before anything was sent.
    """
    try:
        async with asyncio.timeout(patience_s):
            await finished_or_gone(task, receive)
    except TimeoutError:
        if leave():
            # An SDK's retry is given what is being made now, so it costs nothing.
            error = UpstreamTimeout("The images were not ready in time; they are still being made.")
            error.should_retry = True
            raise error from None
        raise ServiceUnavailable("The deadline passed before the images were begun.") from None
    if task.done():
        return task.result()
    leave()
    raise ClientGone("The client closed the connection.")


async def finished_or_gone(task: asyncio.Task[T], receive: Receive) -> None:
    """Return when the task is done or the client has hung up."""
    reader = asyncio.current_task()
    if reader is None or task.done():
        return
    reading = True

    def interrupt(_: asyncio.Task[T]) -> None:
        if reading:
            reader.cancel("finished")

    task.add_done_callback(interrupt)
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except asyncio.CancelledError as cancelled:
        if cancelled.args != ("finished",):
            raise
        reader.uncancel()
    finally:
        reading = False
        task.remove_done_callback(interrupt)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do the work in this task, and cancel it when the client hangs up.

    Raises:
        ClientGone: the client hung up; nobody will read the answer.
    """
    worker = asyncio.current_task()
    watch = asyncio.create_task(until_disconnected(receive))
    watch.add_done_callback(
        lambda done: None if done.cancelled() or worker is None else worker.cancel()
    )
    try:
        return await work
    except asyncio.CancelledError:
        if not watch.done() or worker is None:
            raise
        worker.uncancel()
        raise ClientGone("The client closed the connection.") from None
    finally:
        watch.cancel()


async def until_disconnected(receive: Receive) -> None:
    """Return when the server says that the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass

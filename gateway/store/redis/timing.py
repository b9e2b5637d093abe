"""How long Redis takes, by operation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TypeAlias

from gateway.store.availability import StoreUnavailable
from gateway.store.redis.pipeliner import Reply

LatencyObserver: TypeAlias = Callable[[str, float], None]
"""Called with an operation and its seconds."""


def ignore_latency(operation: str, seconds: float) -> None:
    """The default."""


async def timed(took: LatencyObserver, operation: str, asked: Awaitable[Reply]) -> Reply:
    """A call that never left is not timed: it says nothing of Redis."""
    started = perf_counter()
    try:
        reply = await asked
    except StoreUnavailable as lost:
        if lost.in_doubt:
            took(operation, perf_counter() - started)
        raise
    took(operation, perf_counter() - started)
    return reply

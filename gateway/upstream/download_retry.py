"""How long, and how often, an image host is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import TypeVar

from structlog.typing import FilteringBoundLogger

from gateway.domain.clock import Clock
from gateway.domain.errors import ImageUnavailable

ATTEMPTS = 5
"""Without the progress below between them."""
PROGRESS_BYTES = 256 * 1024
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0
UNSEEN_WAITS_S = (1.0, 2.0, 4.0)
"""For a new image that its host does not show yet."""
JITTER = 0.5
UNSEEN_JITTER = 0.2

T = TypeVar("T")


class NotThere(Exception):
    """The host has no such image, or does not show a new one yet."""


class Deadline:
    """When the images of a request must be there; shared by them, and movable."""

    def __init__(self, at: float, steady: Callable[[], float]) -> None:
        self._at = at
        self._steady = steady

    def left_s(self) -> float:
        return self._at - self._steady()

    def restart(self, allowed_s: float) -> None:
        """Count again from now."""
        self._at = self._steady() + allowed_s

    def extend(self, by_s: float) -> None:
        """Give back time that was not spent on waiting for an image host."""
        self._at += by_s


class DownloadRetry:
    """What one download may take; `fresh`: the image was made just now."""

    def __init__(
        self,
        deadline: Deadline,
        idle_s: float,
        clock: Clock,
        log: FilteringBoundLogger,
        *,
        fresh: bool = False,
    ) -> None:
        self._deadline = deadline
        self._idle_s = idle_s
        self._clock = clock
        self._log = log
        self._failures = 0
        self._reached = 0
        self._unseen_waits = list(UNSEEN_WAITS_S if fresh else ())
        self.is_fresh = fresh

    async def limit(self, step: Awaitable[T]) -> T:
        """Raises TimeoutError if nothing happened for too long, or the deadline passed."""
        async with asyncio.timeout(min(self._idle_s, self._deadline.left_s())):
            return await step

    async def pause(self, cause: Exception, received: int) -> None:
        """Before the next attempt. Raises ImageUnavailable if no attempt or no time is left."""
        if isinstance(cause, NotThere):
            await self._wait_until_seen(cause)
            return
        if received - self._reached >= PROGRESS_BYTES:
            self._failures = 0
            self._reached = received
        self._failures += 1
        wait = min(FIRST_WAIT_S * 2**self._failures, LONGEST_WAIT_S)
        wait *= 1 - JITTER * self._clock.chance()
        facts = {"received": received, "failures": self._failures, "cause": type(cause).__name__}
        if self._failures >= ATTEMPTS or wait >= self._deadline.left_s():
            self._log.error("image_given_up", **facts)
            message = "A generated image could not be downloaded from the image service."
            raise ImageUnavailable(message) from cause
        self._log.warning("image_download_broke", **facts)
        await self._clock.sleep(wait)

    async def _wait_until_seen(self, cause: NotThere) -> None:
        wait = self._unseen_waits.pop(0) if self._unseen_waits else inf
        wait *= 1 + UNSEEN_JITTER * self._clock.chance()
        if wait >= self._deadline.left_s():
            self._log.error("image_given_up", cause=str(cause))
            raise ImageUnavailable("The image service does not show a generated image.") from cause
        self._log.warning("image_not_there_yet", cause=str(cause), wait_s=wait)
        await self._clock.sleep(wait)

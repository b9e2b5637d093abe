"""Image hosts that cannot be reached from here: known before more is paid for.

Private addresses or a strict proxy fail every download. After the first one, requests that need
downloads are refused until a host can be reached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gateway.domain.errors import ImageHostsUnreachable

LOOK_AGAIN_S = 30.0
MOST_HOSTS = 16


class ImageHosts:
    """The unreachable hosts. `reach` tries one, and raises ImageHostsUnreachable if that fails."""

    def __init__(
        self,
        reach: Callable[[str], Awaitable[None]],
        steady: Callable[[], float],
    ) -> None:
        self._reach = reach
        self._steady = steady
        self._blocked: dict[str, str] = {}
        """Messages for clients, by host."""
        self._look_at = 0.0

    def block(self, host: str, message: str) -> None:
        """A download from this host cannot even begin, because of our own network."""
        if len(self._blocked) < MOST_HOSTS or host in self._blocked:
            self._blocked[host] = message
        self._look_at = self._steady() + LOOK_AGAIN_S

    def unblock(self, host: str) -> None:
        """A download from this host has begun."""
        self._blocked.pop(host, None)

    async def require(self) -> None:
        """Raises ImageHostsUnreachable, which says what to set; costs nothing in the usual case."""
        if self._blocked and self._steady() >= self._look_at:
            self._look_at = self._steady() + LOOK_AGAIN_S  # others do not look meanwhile
            await self._look()
        for message in self._blocked.values():
            raise ImageHostsUnreachable(message)

    async def _look(self) -> None:
        for host in tuple(self._blocked):
            try:
                await self._reach(host)
            except ImageHostsUnreachable as error:
                self.block(host, error.message)
            else:
                self.unblock(host)

"""Whether the hosts of Redis can be found at all, asked without filling the threads that ask."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable


class DnsProbe:
    """One look-up of each name at a time.

    A look-up that nobody waits for any more goes on in its thread, for up to half a minute where
    name servers are silent, and the event loop has few threads for all names.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        self._hosts = [host for host in hosts if not is_address(host)]
        self._under_way: dict[str, asyncio.Task[object]] = {}

    async def are_found(self, within_s: float) -> bool:
        """Whether any of them is; without names there is nothing to find."""
        if not self._hosts:
            return True
        asked = [self._under_way.get(host) or self._ask(host) for host in self._hosts]
        done, _ = await asyncio.wait(asked, timeout=within_s)
        return any(not task.cancelled() and task.exception() is None for task in done)

    def close(self) -> None:
        """Wait for nothing."""
        for task in self._under_way.values():
            task.cancel()

    def _ask(self, host: str) -> asyncio.Task[object]:
        loop = asyncio.get_running_loop()
        task = self._under_way[host] = loop.create_task(look_up(host))
        task.add_done_callback(lambda _: self._ended(host, task))
        return task

    def _ended(self, host: str, task: asyncio.Task[object]) -> None:
        del self._under_way[host]
        if not task.cancelled():
            task.exception()  # whoever asked may wait no longer


async def look_up(host: str) -> object:
    """Raises OSError."""
    return await asyncio.get_running_loop().getaddrinfo(host, None)


def is_address(host: str) -> bool:
    """Whether there is nothing to look up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

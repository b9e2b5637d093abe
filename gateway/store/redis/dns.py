"""Whether the hosts of Redis can be found, without filling the threads that look names up."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable


class DnsProbe:
    """One look-up of each name at a time: a silent name server holds a thread for half a minute."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self._hosts = [host for host in hosts if not is_address(host)]
        self._under_way: dict[str, asyncio.Task[object]] = {}

    async def are_found(self, within_s: float) -> bool:
        """Whether any of them is; True without names."""
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
            task.exception()  # its caller may wait no longer


async def look_up(host: str) -> object:
    """Raises OSError."""
    return await asyncio.get_running_loop().getaddrinfo(host, None)


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

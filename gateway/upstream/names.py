"""Looking up the names of hosts that calls and downloads go to."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from aiohttp.abc import AbstractResolver, ResolveResult

THREADS = 4
RESOLVED = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
AS_NUMBERS = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV


class Resolver(AbstractResolver):
    """Asks the system in threads of its own.

    The event loop's are few, and all of them may be waiting for the name of a Redis that is away.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "upstream-names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of `host`. Raises OSError: there is none."""
        ask = partial(
            socket.getaddrinfo,
            host,
            port,
            family=family,
            type=socket.SOCK_STREAM,
            flags=socket.AI_ADDRCONFIG,
        )
        found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        return [
            ResolveResult(
                hostname=host,
                # Of a link-local address, the interface belongs to it.
                host=socket.getnameinfo(address, AS_NUMBERS)[0]
                if is_scoped(address)
                else address[0],
                port=port,
                family=of,
                proto=protocol,
                flags=RESOLVED,
            )
            for of, _, protocol, _, address in found
            if isinstance(address[0], str)
        ]

    async def close(self) -> None:
        """Wait for no look-up that is still under way."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def is_scoped(address: tuple[object, ...]) -> bool:
    """Whether an IPv6 address, which has four parts, is one of a certain interface."""
    return len(address) == 4 and bool(address[3])

"""Names of upstream hosts are looked up whatever the event loop's own threads are waiting for."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from gateway.upstream.names import Resolver

MORE_THAN_THERE_ARE = 64


async def test_names_are_found_while_the_loop_s_threads_are_taken() -> None:
    loop, free, resolver = asyncio.get_running_loop(), threading.Event(), Resolver()
    taken = [loop.run_in_executor(None, free.wait) for _ in range(MORE_THAN_THERE_ARE)]
    try:
        async with asyncio.timeout(5):
            found = await resolver.resolve("localhost", 443, socket.AF_INET)
    finally:
        free.set()
        await asyncio.gather(*taken)
        await resolver.close()
    assert {(one["hostname"], one["host"], one["port"]) for one in found} == {
        ("localhost", "127.0.0.1", 443)
    }


async def test_the_interface_of_a_link_local_address_belongs_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = socket.if_nametoindex("lo")
    address = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 443, 0, index))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [address])
    resolver = Resolver()
    (found,) = await resolver.resolve("near.example", 443, socket.AF_UNSPEC)
    await resolver.close()
    assert found["host"] == "fe80::1%lo"


async def test_a_name_that_is_none_is_an_os_error() -> None:
    resolver = Resolver()
    with pytest.raises(OSError, match=r"."):
        await resolver.resolve("no-such-name.invalid")
    await resolver.close()

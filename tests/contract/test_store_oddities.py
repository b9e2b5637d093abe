"""Whatever is at the address of Redis, or befalls a connection: it is an outage, never a defect."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.store.availability import StoreUnavailable
from gateway.store.limits import Limits
from gateway.store.redis import RedisStore, Timeouts
from gateway.store.redis.dns import DnsProbe
from gateway.store.redis.router import SingleNode
from tests.contract.stores import ask, take
from tests.redis_server import RedisServer
from tests.reliability.client import eventually

LIMITS = Limits(requests_per_minute=1_000_000)
QUICK = Timeouts(connect_s=0.2, command_s=0.2)
ANSWERS = {
    "http": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "nothing": b"",
    "noise": bytes(range(256)) * 4,
    "an error that is no text": b"-ERR \xff\xfe\r\n" * 8,
    "a map": b"%1\r\n+a\r\n+b\r\n" * 8,
    "a push": b">2\r\n+invalidate\r\n+x\r\n" * 8,
    "half a reply": b"*3\r\n$5\r\nab",
}


@pytest.fixture
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as lines:
        yield lines


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """Something on a port that says the same to everybody, and hangs up."""

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("form", ["redis://{}", "redis+cluster://{}", "redis+sentinel://{}/main"])
@pytest.mark.parametrize("answer", ANSWERS)
async def test_what_is_no_redis_is_unavailable(
    form: str, answer: str, logged: list[MutableMapping[str, Any]]
) -> None:
    """And said once, however many ask."""
    async with answering(ANSWERS[answer]) as port:
        store = RedisStore(form.format(f"127.0.0.1:{port}"), timeouts=QUICK)
        for number in range(3):
            with pytest.raises(StoreUnavailable):
                await take(store, ask(number, LIMITS))
        await store.aclose()
    assert [one["log_level"] for one in logged] == ["warning"]


async def test_a_cluster_that_tells_no_map_is_unavailable() -> None:
    """It agrees with everything it is asked."""
    async with answering(b"+OK\r\n" * 8) as port:
        store = RedisStore(f"redis+cluster://127.0.0.1:{port}", timeouts=QUICK)
        with pytest.raises(StoreUnavailable, match="no Redis node serves this key"):
            await take(store, ask(1, LIMITS))
        await store.aclose()


@pytest.mark.slow
async def test_a_server_that_answers_only_pings_holds_up_one_call_a_second(
    logged: list[MutableMapping[str, Any]],
) -> None:
    """As a proxy does that has lost what is behind it; between trials every call fails at once."""
    loop = asyncio.get_running_loop()
    trials: list[float] = []

    async def pong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while asked := await reader.read(4096):
            if b"PING" in asked:
                writer.write(b"+PONG\r\n")
            elif b"CLIENT" in asked:
                writer.write(b"+OK\r\n" * asked.count(b"CLIENT"))
            else:
                trials.append(loop.time())
        writer.close()

    server = await asyncio.start_server(pong, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = RedisStore(f"redis://127.0.0.1:{port}", timeouts=Timeouts(0.1, 0.05))
    started = loop.time()
    while loop.time() - started < 4:
        with pytest.raises(StoreUnavailable):
            await take(store, ask(1, LIMITS))
        await asyncio.sleep(0.01)
    # Twice before the loss is known, once after the first PING, and then each second.
    assert len(trials) >= 5
    assert all(later - earlier > 1 for earlier, later in pairwise(trials[2:]))
    assert [(one["event"], one["cause"]) for one in logged] == [("redis_lost", "Redis is silent")]
    await store.aclose()
    server.close()


@pytest.mark.slow
async def test_a_name_that_is_not_found_is_looked_up_once_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each waits in one of few threads, and other names with it."""
    loop, asked = asyncio.get_running_loop(), []
    answer: asyncio.Future[Any] = loop.create_future()

    async def look_up(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        return await asyncio.shield(answer)

    monkeypatch.setattr(loop, "getaddrinfo", look_up)
    store = RedisStore("redis://redis.example", timeouts=Timeouts(0.05, 0.05))
    with pytest.raises(StoreUnavailable):
        await take(store, ask(1, LIMITS))
    for_requests = len(asked)
    await asyncio.sleep(1.2)
    assert len(asked) == for_requests + 1
    answer.set_exception(OSError("no such name"))
    await eventually(lambda: true_when(len(asked) > for_requests + 1))
    await store.aclose()


async def test_a_look_up_that_fails_when_nobody_waits_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, logged: list[MutableMapping[str, Any]]
) -> None:
    async def look_up(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(0.1)
        raise OSError("no such name")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    names = DnsProbe(["redis.example", "127.0.0.1"])
    assert not await names.are_found(0.02)
    await asyncio.sleep(0.15)
    gc.collect()
    assert not logged
    assert not await names.are_found(1)
    assert await DnsProbe(["127.0.0.1", "::1"]).are_found(0)


async def true_when(condition: bool) -> bool:
    return condition


@pytest.mark.slow
@pytest.mark.parametrize("failures", [1, 2, 5])
@pytest.mark.parametrize("operations", [["get_connection"], ["get_connection", "disconnect"]])
async def test_an_exception_that_nobody_foresaw_is_an_outage_that_ends(
    operations: list[str],
    failures: int,
    own_redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    logged: list[MutableMapping[str, Any]],
) -> None:
    """On the way to a connection, and on the way to be rid of one."""
    store = RedisStore(own_redis_server.url, timeouts=QUICK)
    assert isinstance(store._servers, SingleNode)
    pool = store._servers._pipeliner._pool
    for name in operations:
        monkeypatch.setattr(pool, name, failing(getattr(pool, name), failures))

    async def answers() -> bool:
        try:
            return (await take(store, ask(1, LIMITS))).allowed
        except StoreUnavailable as lost:
            assert str(lost) == "Redis: TypeError: nobody foresaw this"  # noqa: PT017 - each of them
            return False

    await eventually(answers)
    said = [one["event"] for one in logged]
    expected = ["redis_lost", "redis_found"]
    # A single failure is repeated at once, unless the repetition fails of another.
    assert said == ([] if failures == 1 and len(operations) == 1 else expected)
    await store.aclose()


def failing(real: Callable[..., Awaitable[Any]], times: int) -> Callable[..., Awaitable[Any]]:
    """Raises so many times what a library should not."""
    left = times

    async def fail(*args: Any, **more: Any) -> Any:
        nonlocal left
        if left:
            left -= 1
            raise TypeError("nobody foresaw this")
        return await real(*args, **more)

    return fail

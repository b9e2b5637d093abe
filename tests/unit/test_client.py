"""What is known of a call: when it was written, and what the vendor's headers say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from email.utils import formatdate
from time import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Account, Upstream
from gateway.config.decode import Secret
from gateway.protocol.dashscope import GenerationRequest, Input, Message, Parameters, Text
from gateway.translate.failure import UpstreamFailure
from gateway.upstream.client import MAX_RETRY_AFTER_S, DashScope, retry_after
from gateway.upstream.transport import open_transport


def told(value: str) -> float | None:
    return retry_after(httpx.Headers({"retry-after": value}))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0.0), ("1", 1.0), ("2.5", 2.5), (" 3 ", 3.0), ("-5", 0.0), ("1e9", MAX_RETRY_AFTER_S),
     ("inf", MAX_RETRY_AFTER_S), ("nan", None), ("", None), ("soon", None), ("1 minute", None),
     ("Sun, 22 Nov 2026", None), ("1999-12-31", None)],
)  # fmt: skip
def test_seconds(value: str, seconds: float | None) -> None:
    assert told(value) == seconds


def test_none() -> None:
    assert retry_after(httpx.Headers({"x": "y"})) is None


def test_a_date() -> None:
    found = told(formatdate(time() + 90, usegmt=True))

    assert found is not None
    assert 80 < found <= 91
    assert told("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert told("Fri, 31 Dec 9999 23:59:59 GMT") == MAX_RETRY_AFTER_S


dates = st.builds(
    "{}, {:02} {} {} {:02}:{:02}:{:02} {}".format,
    st.sampled_from(["Mon", "Xxx", ""]),
    st.integers(0, 40),
    st.sampled_from(["Jan", "Feb", "Foo"]),
    st.integers(0, 99999),
    st.integers(0, 30),
    st.integers(0, 70),
    st.integers(0, 70),
    st.sampled_from(["GMT", "-0000", "+9999", "-9999", "EST", ""]),
)


@given(value=dates | st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_nonsense_is_no_failure(value: str) -> None:
    """It would turn a throttled call into a defect of the gateway."""
    found = told(value)

    assert found is None or 0 <= found <= MAX_RETRY_AFTER_S


# --- when a call is on its way

CALL = GenerationRequest("qwen-image", Input((Message((Text("a fox"),)),)), Parameters())


@contextlib.asynccontextmanager
async def vendor(arrived: list[str]) -> AsyncIterator[Account]:
    """Notes what arrives beside what the client was told, and hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"a fox")
        arrived.append("arrived")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield Account(name="intl", base_url=f"http://127.0.0.1:{port}", api_key=Secret("sk-x"))


async def test_the_moment_a_call_is_written_is_told_once() -> None:
    told: list[str] = []
    client = DashScope(Upstream(), open_transport(Upstream()))
    async with vendor(told) as account:
        with pytest.raises(UpstreamFailure):
            await client.generate(account, CALL, 5.0, lambda: told.append("sent"))
    await client.aclose()
    assert told == ["sent", "arrived"]


async def test_a_call_without_a_connection_was_not_sent() -> None:
    told: list[str] = []
    client = DashScope(Upstream(), open_transport(Upstream()))
    account = Account(name="intl", base_url="http://127.0.0.1:1", api_key=Secret("sk-x"))
    with pytest.raises(UpstreamFailure):
        await client.generate(account, CALL, 5.0, lambda: told.append("sent"))
    await client.aclose()
    assert told == []


async def test_a_call_takes_the_connection_that_was_made_for_it() -> None:
    """Of those made ahead of time there is one."""
    connections: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append("one")
        await reader.readuntil(b"a fox")
        writer.close()

    client = DashScope(Upstream(), open_transport(Upstream()))
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        account = Account(name="intl", base_url=url, api_key=Secret("sk-x"))
        for _ in range(2):
            client.connect_soon(account)
            client.connect_soon(account)
            await asyncio.sleep(0.1)
        assert connections == ["one"]
        with pytest.raises(UpstreamFailure):
            await client.generate(account, CALL, 5.0)
        assert connections == ["one"]
    await client.aclose()


async def test_a_host_that_cannot_be_reached_is_met_by_the_call() -> None:
    client = DashScope(Upstream(), open_transport(Upstream()))
    account = Account(name="intl", base_url="http://127.0.0.1:1", api_key=Secret("sk-x"))
    client.connect_soon(account)
    await asyncio.sleep(0.05)
    with pytest.raises(UpstreamFailure) as met:
        await client.generate(account, CALL, 5.0)
    assert met.value.label == "unreachable"
    await client.aclose()

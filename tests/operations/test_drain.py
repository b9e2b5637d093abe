"""SIGTERM: what was begun is finished, what was not is refused, and the end comes in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time

import aiohttp
import httpx
import pytest

from gateway.store.limits import Limits
from gateway.store.redis import RedisStore
from tests.contract.stores import PATIENT, remaining
from tests.image_events import EventReader
from tests.operations.site import (
    IMAGE,
    PATH,
    Line,
    Site,
    children_of,
    eventually,
    generate,
    one_account,
    session,
    tenant,
)
from tests.running import ACME, GatewayProcess
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.timing

IN_FLIGHT = 200
PACED = {"name": "one", "api_key": "sk-paced", "rates": {"*": "2/s"}}


async def begin(
    client: aiohttp.ClientSession, gateway: GatewayProcess, vendor: SimulatedDashScope, count: int
) -> list[asyncio.Task[int]]:
    """So many generations, all of them with the vendor."""
    calls = [asyncio.create_task(generate(client, gateway.url)) for _ in range(count)]

    async def all_begun() -> bool:
        state = await asyncio.to_thread(vendor.state, 0)
        return bool(state["in_flight"] == count)

    await eventually(all_begun, 30, 0.05)
    return calls


async def refused(url: str) -> bool:
    """Whether nothing listens there any more."""
    try:
        line = await Line.to(url)
    except ConnectionRefusedError:
        return True
    line.close()
    return False


async def test_a_signal_with_200_generations_in_flight_costs_none(
    site: Site, vendor: SimulatedDashScope
) -> None:
    """Not ready at once, refusing soon, and 200 whole answers before it ends with success."""
    vendor.configure(latency_s=6.0)
    site.write(lame_duck_s=1)
    with site.start() as gateway:
        async with session() as client:
            calls = await begin(client, gateway, vendor, IN_FLIGHT)
            with await Line.to(gateway.url) as line:
                gateway.stop()
                await asyncio.to_thread(gateway.wait_for, '"draining"')
                status, _, body = await line.ask("GET", "/readyz")
            assert (status, body) == (503, {"status": "draining"})
            await eventually(lambda: refused(gateway.url), 4)
            assert not any(call.done() for call in calls)
            assert await asyncio.gather(*calls) == [200] * IN_FLIGHT
        assert await asyncio.to_thread(gateway.ended) == 0
    assert vendor.state()["paid"] == {"qwen-image-2.0": IN_FLIGHT}


async def test_while_it_drains_each_answer_is_its_connection_s_last(
    site: Site, vendor: SimulatedDashScope
) -> None:
    """A proxy's kept connections run dry, so none is closed under a request."""
    site.write(lame_duck_s=3)
    with site.start() as gateway:
        with await Line.to(gateway.url) as kept:
            _, headers, _ = await kept.ask("GET", "/v1/models")
            assert "connection" not in headers
            gateway.stop()
            await asyncio.sleep(0.3)
            status, headers, _ = await kept.ask("GET", "/v1/models")
            assert (status, headers["connection"]) == (200, "close")
        with await Line.to(gateway.url) as fresh:
            status, headers, _ = await fresh.ask("GET", "/v1/models")
            assert (status, headers["connection"]) == (200, "close")
        assert await asyncio.to_thread(gateway.ended) == 0


async def test_calls_that_wait_for_their_slot_are_served_before_the_end(
    site: Site, vendor: SimulatedDashScope
) -> None:
    """They have waited in a fair queue, and elsewhere would start at its end."""
    site.write(accounts=[{**PACED, "base_url": vendor.base_url}], lame_duck_s=0)
    with site.start() as gateway:
        async with session() as client:
            calls = [asyncio.create_task(generate(client, gateway.url)) for _ in range(8)]
            await eventually(lambda: asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED))
            gateway.stop()
            assert await asyncio.gather(*calls) == [200] * 8
        assert await asyncio.to_thread(gateway.ended) == 0


def test_a_stream_that_has_begun_comes_to_its_end(
    site: Site, vendor: SimulatedDashScope, http: httpx.Client
) -> None:
    """Its second call waits for a slot at the signal."""
    site.write(accounts=[one_account(vendor.base_url, rates={"*": "1/s"})])
    asked = {**IMAGE, "model": "qwen-image-plus", "n": 2, "stream": True}
    headers = {"authorization": f"Bearer {ACME}"}
    with site.start() as gateway:
        with http.stream("POST", gateway.url + PATH, json=asked, headers=headers) as answer:
            events = EventReader(answer)
            events.event()
            gateway.stop()
            assert events.event()["type"] == "image_generation.completed"
            assert events.rest() == []
        assert gateway.ended() == 0
    assert vendor.state()["paid"] == {"qwen-image-plus": 2}


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_second_signal_ends_it_at_once(
    site: Site, vendor: SimulatedDashScope, workers: int
) -> None:
    """Whoever sends it does not want to wait; the status says that requests were cut."""
    vendor.configure(latency_s=30.0)
    site.write()
    with site.start(workers=workers) as gateway:
        async with session() as client:
            calls = await begin(client, gateway, vendor, 5)
            gateway.stop()
            await asyncio.sleep(0.5)
            assert not any(call.done() for call in calls)
            signalled = time.monotonic()
            gateway.stop(signal.SIGINT if workers == 1 else signal.SIGTERM)
            assert await asyncio.to_thread(gateway.ended, 10) == 1
            assert time.monotonic() - signalled < 6
            ends = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(end, aiohttp.ClientError) for end in ends)
    assert "Traceback" not in gateway.output


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_to_the_whole_group_is_one(
    site: Site, vendor: SimulatedDashScope, workers: int, number: int
) -> None:
    """So systemd and Ctrl+C tell it; what the supervisor passes on is no second one."""
    vendor.configure(latency_s=3.0)
    site.write(lame_duck_s=0.5)
    with site.start(workers=workers) as gateway:
        async with session() as client:
            calls = await begin(client, gateway, vendor, 40)
            os.killpg(gateway.pid, number)
            assert await asyncio.gather(*calls) == [200] * 40
        assert await asyncio.to_thread(gateway.ended) == 0


async def test_a_second_signal_to_the_group_ends_it_at_once(
    site: Site, vendor: SimulatedDashScope
) -> None:
    vendor.configure(latency_s=30.0)
    site.write()
    with site.start() as gateway:
        async with session() as client:
            calls = await begin(client, gateway, vendor, 5)
            os.killpg(gateway.pid, signal.SIGINT)
            await asyncio.sleep(1)
            assert not any(call.done() for call in calls), gateway.output
            signalled = time.monotonic()
            os.killpg(gateway.pid, signal.SIGINT)
            assert await asyncio.to_thread(gateway.ended, 10) == 1
            assert time.monotonic() - signalled < 6
            await asyncio.gather(*calls, return_exceptions=True)


async def test_one_worker_may_end_while_the_others_serve(
    site: Site, vendor: SimulatedDashScope
) -> None:
    """It finishes what it has; a new one takes its place before that, and nobody waits."""
    vendor.configure(latency_s=4.0)
    site.write(lame_duck_s=0.5)
    with site.start() as gateway:
        former = children_of(gateway.pid)
        async with session() as client:
            calls = await begin(client, gateway, vendor, 20)
            os.kill(former[0], signal.SIGTERM)

            async def has_another() -> bool:
                return len(children_of(gateway.pid)) == 3

            await eventually(has_another, 3)
            vendor.configure(latency_s=0.0)
            for _ in range(20):
                asked = time.monotonic()
                async with session() as fresh:  # its connection is new as well
                    assert await generate(fresh, gateway.url) == 200
                assert time.monotonic() - asked < 2
            assert not any(call.done() for call in calls)
            assert await asyncio.gather(*calls) == [200] * 20

            async def is_gone() -> bool:
                return former[0] not in children_of(gateway.pid)

            await eventually(is_gone)
            assert await generate(client, gateway.url) == 200
        gateway.stop()
        assert await asyncio.to_thread(gateway.ended) == 0


async def test_a_limit_ends_it(site: Site, vendor: SimulatedDashScope) -> None:
    """A vendor that never answers does not keep a process alive."""
    vendor.configure(latency_s=30.0)
    site.write(drain_s=2, lame_duck_s=0)
    with site.start() as gateway:
        async with session() as client:
            calls = await begin(client, gateway, vendor, 5)
            signalled = time.monotonic()
            gateway.stop()
            assert await asyncio.to_thread(gateway.ended, 15) == 1
            assert 2 <= time.monotonic() - signalled < 8
            await asyncio.gather(*calls, return_exceptions=True)
    assert re.search(r'"unanswered": ?[1-5]', gateway.output)
    assert "Traceback" not in gateway.output


async def test_what_a_limit_cuts_gives_its_places_back(
    site: Site, vendor: SimulatedDashScope, redis_url: str
) -> None:
    """Nobody waits for a lease: not of those that wait for a slot, nor of those with the vendor.

    Only these stay booked, for nobody knows whether they are paid.
    """
    vendor.configure(latency_s=30.0)
    limits = {"concurrent_requests": 50, "images_per_day": 50}
    site.write(
        accounts=[{**PACED, "base_url": vendor.base_url}],
        tenants=[tenant("acme", ACME, limits=limits)],
        drain_s=2,
        lame_duck_s=0,
    )
    with site.start() as gateway:
        async with session() as client:
            calls = [asyncio.create_task(generate(client, gateway.url)) for _ in range(40)]
            await eventually(lambda: asyncio.to_thread(lambda: vendor.state(0)["in_flight"] >= 2))
            gateway.stop()
            assert await asyncio.to_thread(gateway.ended, 15) == 1
            await asyncio.gather(*calls, return_exceptions=True)
    store = RedisStore(redis_url, timeouts=PATIENT)
    usage = await store.usage("acme", Limits(**limits))
    share = await store.heartbeat("the next one", 30_000)
    await store.aclose()
    sent = len(vendor.state(50)["log"])
    assert 2 <= sent < 40
    assert remaining(usage.levels)[2:4] == [50, 50 - sent]
    assert share.workers == 1
    assert "Traceback" not in gateway.output


async def test_what_a_limit_cuts_is_not_paid_for_again_by_who_repeats_it(
    site: Site, vendor: SimulatedDashScope
) -> None:
    """Nobody knows whether the vendor went on, so a repeat under the same key is told so."""
    vendor.configure(latency_s=30.0)
    site.write(drain_s=1, lame_duck_s=0)
    key = {"idempotency-key": "mine"}
    with site.start() as gateway:
        async with session() as client:
            client.headers.update(key)
            calls = await begin(client, gateway, vendor, 1)
            gateway.stop()
            assert await asyncio.to_thread(gateway.ended, 15) == 1
            await asyncio.gather(*calls, return_exceptions=True)
    before = len(vendor.state(9)["log"])
    with site.start() as successor:
        async with session() as client:
            client.headers.update(key)
            assert await generate(client, successor.url) == 502
            assert await generate(client, successor.url) == 502
    assert len(vendor.state(9)["log"]) == before == 1


async def test_an_idle_one_ends_within_a_few_seconds(site: Site) -> None:
    """Kept connections that say nothing hold nobody up, and Ctrl+C skips the lame duck."""
    site.write(lame_duck_s=60)
    with (
        site.start() as gateway,
        await Line.to(gateway.url),
        await Line.to(gateway.url) as kept,
    ):
        await kept.ask("GET", "/healthz")
        gateway.stop(signal.SIGINT)
        assert await asyncio.to_thread(gateway.ended, 10) == 0


async def test_workers_of_a_killed_supervisor_drain(site: Site, vendor: SimulatedDashScope) -> None:
    """Nobody is left behind, and nothing is lost."""
    vendor.configure(latency_s=2.0)
    site.write(lame_duck_s=0)
    with site.start() as gateway:
        workers = children_of(gateway.pid)
        async with session() as client:
            calls = await begin(client, gateway, vendor, 10)
            gateway.stop(signal.SIGKILL)
            assert await asyncio.gather(*calls) == [200] * 10

        await eventually(lambda: all_gone(workers))


async def test_the_first_signal_to_an_orphan_is_its_first(
    site: Site, vendor: SimulatedDashScope
) -> None:
    """As from a service manager that ends what its main process left behind."""
    vendor.configure(latency_s=4.0)
    site.write(lame_duck_s=0)
    with site.start() as gateway:
        workers = children_of(gateway.pid)
        async with session() as client:
            calls = await begin(client, gateway, vendor, 10)
            gateway.stop(signal.SIGKILL)
            await asyncio.sleep(1.5)
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):  # it had no call, and has ended
                    os.kill(pid, signal.SIGTERM)
            assert await asyncio.gather(*calls) == [200] * 10
        await eventually(lambda: all_gone(workers))


async def all_gone(pids: list[int]) -> bool:
    return not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    """Whether a process is there, and no mere remnant."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_signal_during_the_start_ends_it(site: Site) -> None:
    """However early it comes."""
    for wait_s in (0.3, 0.8, 1.2):
        site.write(lame_duck_s=0)
        with GatewayProcess("serve", "--config", str(site.file), "--workers", "2") as gateway:
            time.sleep(wait_s)
            gateway.stop()
            gateway.ended(15)

"""Three tenants with 500, 5 and 1 waiting requests on an account that takes two calls a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from typing import NamedTuple

import pytest

from tests.redis_server import RedisServer
from tests.reliability.client import PATH, Answer, Connection, connected, get, image_request
from tests.reliability.fleet import Fleet, VendorProcess

pytestmark = pytest.mark.xdist_group("patience")

MODEL = "qwen-image-2.0"
RATE = 2.0
SLOT_S = 1 / RATE
WINDOW_S = 12.0
"""Of 250 s that all of them would take; bench/reliability_pacing.py waits for the end."""
JITTER_S = 0.3
WAITING = {"many": 500, "some": 5, "one": 1}
SEEDS = count()
UNLIMITED = {name: {"requests_per_minute": 1_000_000} for name in WAITING}


class Call(NamedTuple):
    """One that reached the vendor."""

    at: float
    tenant: str
    status: int


class Run(NamedTuple):
    """What was seen of a run."""

    calls: list[Call]
    """All of them, in order."""
    joined_at: float
    """When the small tenants had sent theirs."""
    answers: dict[str, list[Answer]]
    """Of the small tenants."""
    waiting: float
    """The length of the queue, as the metrics tell it, when they had."""
    left_at: float
    """When everyone had hung up."""
    newcomer: Answer
    """Sent right after that."""

    def turns(self, tenant: str) -> list[int]:
        """Which slots since the small tenants came were this one's, from 1."""
        since = [call for call in self.calls if call.at >= self.joined_at]
        return [number for number, call in enumerate(since, 1) if call.tenant == tenant]

    def pace(self) -> float:
        """Calls a second while there was always someone waiting."""
        at = [call.at for call in self.calls if call.at < self.left_at]
        return (len(at) - 1) / (at[-1] - at[0])


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """One gateway alone, and two of two workers over a Redis; at the same time, to save it."""

    async def both() -> list[Run]:
        with ExitStack() as stack:
            fleets = [alone(stack), replicas(stack)]
            return list(await asyncio.gather(*(run(*fleet) for fleet in fleets)))

    return dict(zip(["one gateway", "two replicas"], asyncio.run(both()), strict=True))


def alone(stack: ExitStack) -> tuple[Fleet, VendorProcess]:
    simulator = stack.enter_context(vendor())
    rates = {"*": f"{RATE:g}/s"}
    fleet = Fleet(simulator.base_url, None, UNLIMITED, gateways=1, workers=1, rates=rates)
    return stack.enter_context(fleet), simulator


def replicas(stack: ExitStack) -> tuple[Fleet, VendorProcess]:
    simulator = stack.enter_context(vendor())
    server = stack.enter_context(RedisServer())
    rates = {"*": f"{RATE:g}/s"}
    fleet = Fleet(simulator.base_url, {"url": server.url}, UNLIMITED, rates=rates)
    return stack.enter_context(fleet), simulator


def vendor() -> VendorProcess:
    """The strictest there is: no two calls closer than nine tenths of the even distance."""
    rates = {MODEL: {"count": RATE, "per_s": 1.0}}
    return VendorProcess(throttle="spacing", rates=rates)


async def run(fleet: Fleet, simulator: VendorProcess) -> Run:
    """The large tenant first, then the small ones, then all hang up and one comes back."""
    names = [name for name, many in WAITING.items() for _ in range(many)]
    ports = [fleet.ports[number % len(fleet.ports)] for number in range(len(names))]
    async with connected(ports) as connections:
        many = connections[: WAITING["many"]]
        for connection in many:
            send(connection, fleet, "many")
        while await queue_length(fleet) < WAITING["many"] * 0.9:  # noqa: ASYNC110 - of others
            await asyncio.sleep(0.1)
        joined_at = time.time()
        few = list(zip(names, connections, strict=True))[WAITING["many"] :]
        for name, connection in few:
            send(connection, fleet, name)
        ended = asyncio.gather(*(connection.answer() for _, connection in few))
        await asyncio.sleep(2)
        waiting = await queue_length(fleet)
        await asyncio.sleep(joined_at + WINDOW_S - time.time())
        answers: dict[str, list[Answer]] = {"some": [], "one": []}
        for (name, _), answer in zip(few, await ended, strict=True):
            answers[name].append(answer)
    left_at = time.time()
    async with connected(fleet.ports[:1]) as (connection,):
        send(connection, fleet, "one")
        newcomer = await connection.answer()
    await asyncio.sleep(2 * SLOT_S)
    calls = [
        Call(call["at"], call["body"]["input"]["messages"][0]["content"][0]["text"], call["status"])
        for call in simulator.state()["log"]
    ]
    return Run(calls, joined_at, answers, waiting, left_at, newcomer)


def send(connection: Connection, fleet: Fleet, tenant: str) -> None:
    """The tenant's name is the prompt, so that the vendor can tell."""
    body = image_request(MODEL, prompt=tenant, seed=next(SEEDS))
    connection.send("POST", PATH, fleet.keys[tenant], body)


async def queue_length(fleet: Fleet) -> float:
    """Over all gateways, each of which adds up its workers."""
    total = 0.0
    for port in fleet.ports:
        lines = (await get(port, "/metrics")).body.splitlines()
        found = [line for line in lines if line.startswith("gateway_queue_length{")]
        total += sum(float(line.rpartition(" ")[2]) for line in found)
    return total


@pytest.fixture(params=["one gateway", "two replicas"])
def seen(request: pytest.FixtureRequest, runs: dict[str, Run]) -> Run:
    found: Run = runs[request.param]
    return found


def test_the_vendor_refuses_nothing(seen: Run) -> None:
    assert {call.status for call in seen.calls} == {200}


def test_the_rate_is_used(seen: Run, figure: Callable[[str], None]) -> None:
    figure(f"{seen.pace():.3f} calls a second of {RATE:g}: {seen.pace() / RATE:.1%}")
    assert 0.95 * RATE <= seen.pace() <= RATE


def ideal_turns() -> dict[str, list[int]]:
    """The earliest slots that turns by tenant allow: three in the first round, then two."""
    rounds = range(WAITING["some"])
    return {"one": [1], "some": [1 + 2 * number + (number > 0) for number in rounds]}


@pytest.mark.parametrize("tenant", ["some", "one"])
def test_a_small_tenant_waits_for_its_turn_and_not_for_the_large_one(
    seen: Run, tenant: str, figure: Callable[[str], None]
) -> None:
    """Within two slots of the ideal: those that the other two may have first."""
    answers = sorted(answer.took_s for answer in seen.answers[tenant])
    turns = seen.turns(tenant)[: WAITING[tenant]]
    waits = ", ".join(f"{took_s:.2f}" for took_s in answers)
    figure(f"slots {turns} of {ideal_turns()[tenant]} at best, waits of {waits} s")
    assert {answer.status for answer in seen.answers[tenant]} == {200}
    for turn, ideal, took_s in zip(turns, ideal_turns()[tenant], answers, strict=True):
        assert turn <= ideal + 2
        assert took_s <= (ideal + 2) * SLOT_S / 0.95 + JITTER_S


def test_the_queue_is_seen(seen: Run) -> None:
    """In /metrics, by model, over all workers and replicas."""
    assert seen.waiting == pytest.approx(sum(WAITING.values()), abs=20)


def test_whoever_hangs_up_takes_no_slot(seen: Run, figure: Callable[[str], None]) -> None:
    """Hundreds do at once; the next to come has the next slot."""
    late = [call for call in seen.calls if call.at > seen.left_at + JITTER_S]
    assert all(call.tenant == "one" for call in late)
    assert seen.newcomer.status == 200
    assert seen.newcomer.took_s < 2 * SLOT_S + JITTER_S
    figure(f"answered {seen.newcomer.took_s:.2f} s after {sum(WAITING.values())} had hung up")

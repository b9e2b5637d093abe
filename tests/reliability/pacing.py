"""Three tenants wait for an account that takes two calls a second: what the vendor saw of it."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from itertools import count
from typing import NamedTuple

from tests.redis_server import RedisServer
from tests.reliability.client import (
    PATH,
    Answer,
    Connection,
    connected,
    eventually,
    get,
    image_request,
)
from tests.reliability.fleet import PATIENT, Fleet, VendorProcess

MODEL = "qwen-image-2.0"
RATE = 2.0
SLOT_S = 1 / RATE
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


def alone(stack: ExitStack) -> tuple[Fleet, VendorProcess]:
    simulator = stack.enter_context(vendor())
    rates = {"*": f"{RATE:g}/s"}
    fleet = Fleet(simulator.base_url, None, UNLIMITED, gateways=1, workers=1, rates=rates)
    return stack.enter_context(fleet), simulator


def replicas(stack: ExitStack) -> tuple[Fleet, VendorProcess]:
    simulator = stack.enter_context(vendor())
    server = stack.enter_context(RedisServer())
    rates = {"*": f"{RATE:g}/s"}
    fleet = Fleet(simulator.base_url, {"url": server.url, **PATIENT}, UNLIMITED, rates=rates)
    return stack.enter_context(fleet), simulator


def vendor() -> VendorProcess:
    """The strictest there is: no two calls closer than nine tenths of the even distance."""
    rates = {MODEL: {"count": RATE, "per_s": 1.0}}
    return VendorProcess(throttle="spacing", rates=rates)


async def run(fleet: Fleet, simulator: VendorProcess, window_s: float) -> Run:
    """The large tenant first, then the small ones; then all hang up, and one comes back."""
    names = [name for name, many in WAITING.items() for _ in range(many)]
    ports = [fleet.ports[number % len(fleet.ports)] for number in range(len(names))]
    async with connected(ports) as connections:
        many = connections[: WAITING["many"]]
        for connection in many:
            send(connection, fleet, "many")

        async def are_read() -> bool:
            return await queue_length(fleet) >= WAITING["many"] * 0.9

        await eventually(are_read, 60)
        joined_at = time.time()
        few = list(zip(names, connections, strict=True))[WAITING["many"] :]
        for name, connection in few:
            send(connection, fleet, name)
        ended = asyncio.gather(*(connection.answer() for _, connection in few))
        await asyncio.sleep(2)
        waiting = await queue_length(fleet)
        await asyncio.sleep(joined_at + window_s - time.time())
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


def ideal_turns() -> dict[str, list[int]]:
    """The earliest slots that turns by tenant allow: three in the first round, then two."""
    rounds = range(WAITING["some"])
    return {"one": [1], "some": [1 + 2 * number + (number > 0) for number in rounds]}

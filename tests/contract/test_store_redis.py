"""What only a shared store can get wrong: the wire, the outage, the cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import pytest
import redis.asyncio
from redis.crc import key_slot

from gateway.store import Store
from gateway.store.availability import StoreUnavailable
from gateway.store.limits import Limits
from gateway.store.pacing import PacedAccount, SlotRequest
from gateway.store.redis import RedisStore, Timeouts
from gateway.store.redis.router import NodeRouter
from tests.contract.stores import PATIENT, ask, release, take, used
from tests.redis_server import RedisServer

LIMITS = Limits(requests_per_minute=1_000_000, concurrent_requests=1_000_000)
RECOVERED_WITHIN_S = 10.0
"""1 or 2 where nothing else runs; another one each time that the machine holds up a trial."""
READ_BYTES = 16 * 1024
"""What a server takes from a connection at once."""


@pytest.fixture
async def server(own_redis_server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    """The server's own view, and nobody else's commands in its counts."""
    client = redis.asyncio.Redis.from_url(own_redis_server.url)
    yield client
    await client.aclose()


@pytest.fixture
async def shared(own_redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    """A store with the timeouts that it has in production."""
    store = RedisStore(own_redis_server.url)
    yield store
    await store.aclose()


@pytest.fixture
async def patient(own_redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    """One that a busy machine does not make give up, where time is not the point."""
    store = RedisStore(own_redis_server.url, timeouts=PATIENT)
    yield store
    await store.aclose()


async def take_seconds(store: Store, number: object) -> tuple[bool, float]:
    """Whether the store answered, and how long that took."""
    started = time.perf_counter()
    try:
        await take(store, ask(number, LIMITS, tenant="probe"))
    except StoreUnavailable:
        return False, time.perf_counter() - started
    return True, time.perf_counter() - started


async def outage(store: Store, for_s: float) -> list[tuple[float, float]]:
    """Requests during an outage: (when, how long), none of them answered."""
    started = time.perf_counter()
    waits = []
    while (at := time.perf_counter() - started) < for_s:
        answered, seconds = await take_seconds(store, f"out{at}")
        assert not answered
        waits.append((at, seconds))
        await asyncio.sleep(0.005)
    return waits


def waited_for_it(waits: Iterable[float]) -> int:
    """How many requests took long enough to have been silent with the server, one aside.

    A busy machine may hold up one of many by itself.
    """
    return sum(seconds > Timeouts().command_s / 2 for seconds in sorted(waits)[:-1])


def later(waits: list[tuple[float, float]]) -> list[float]:
    """Once the loss is known."""
    return [seconds for at, seconds in waits if at > 1]


async def recovery_seconds(store: Store) -> float:
    started = time.perf_counter()
    while not (await take_seconds(store, time.perf_counter()))[0]:
        assert time.perf_counter() - started < RECOVERED_WITHIN_S
        await asyncio.sleep(0.01)
    return time.perf_counter() - started


# --- on the wire


async def test_commands_of_one_tick_are_one_pipeline(
    own_redis_server: RedisServer, server: redis.asyncio.Redis
) -> None:
    """The server reads them as they fit into its buffer: three times or so, not a hundred."""
    store = RedisStore(own_redis_server.url, timeouts=PATIENT)
    await take(store, ask("first", LIMITS))
    before = await server.info("stats")
    await asyncio.gather(*(take(store, ask(number, LIMITS)) for number in range(100)))
    after = await server.info("stats")
    reads = after["total_reads_processed"] - before["total_reads_processed"]
    received = after["total_net_input_bytes"] - before["total_net_input_bytes"]
    commands = await server.info("commandstats")
    await store.aclose()
    assert reads <= received // READ_BYTES + 3  # the rest, a split packet, and INFO itself
    assert commands["cmdstat_evalsha"]["calls"] == 101


async def test_a_cancelled_call_is_not_sent(
    patient: RedisStore, server: redis.asyncio.Redis
) -> None:
    await patient.ping()
    call = asyncio.ensure_future(take(patient, ask(1, LIMITS)))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await asyncio.sleep(0.05)
    assert await server.keys("*acme*") == []


async def test_all_keys_of_a_call_are_in_one_cluster_slot(
    patient: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for names that look like hash tags themselves."""
    calls: list[Sequence[str | bytes | int]] = []

    async def record(_: NodeRouter, key: str, command: Sequence[str | bytes | int]) -> None:
        calls.append(command)
        raise StoreUnavailable("recorded")

    monkeypatch.setattr(type(patient._servers), "call", record)
    account = PacedAccount("a", 1000)
    for tenant in ("acme", "a}b", "{x}", "été"):
        for operation in (
            take(patient, ask(1, LIMITS, tenant=tenant)),
            patient.renew(tenant, [ask(1, LIMITS).take.reservation], 1000),
            release(patient, used(1)),
            patient.usage(tenant, LIMITS),
            patient.claim(SlotRequest(tenant, "w", (account,), {"t": 1})),
            patient.back_off(tenant, "a", 1),
            patient.give_back(tenant, account, 1),
            patient.heartbeat("w", 1),
        ):
            with pytest.raises(StoreUnavailable, match="recorded"):
                await operation
    assert len(calls) == 32
    for _, _, count, *rest in calls:
        assert isinstance(count, int)
        assert len({key_slot(str(key).encode()) for key in rest[:count]}) == 1


async def test_every_key_has_a_time_to_live(
    patient: RedisStore, server: redis.asyncio.Redis
) -> None:
    await take(patient, ask(1, LIMITS, images=2, cost=10))
    await take(patient, ask(2, LIMITS, images=2, cost=10))
    await release(patient, used(1))
    await patient.claim(SlotRequest("m", "w", (PacedAccount("a", 1000),), {"t": 2}))
    await patient.heartbeat("w", 1000)
    keys = await server.keys("*")
    assert len(keys) == 10
    assert all(str(key).startswith("b'gateway:") for key in keys)
    assert all([await server.pttl(key) > 0 for key in keys])


async def test_prefixes_keep_gateways_apart(own_redis_server: RedisServer) -> None:
    limits = Limits(requests_per_minute=1)
    stores = [
        RedisStore(own_redis_server.url, prefix=prefix, timeouts=PATIENT) for prefix in ("a:", "b:")
    ]
    assert all([(await take(store, ask(1, limits))).allowed for store in stores])
    for store in stores:
        await store.aclose()


async def test_two_stores_share_what_is_counted(own_redis_server: RedisServer) -> None:
    """Two workers, two hundred requests at once, limit 100."""
    limits = Limits(requests_per_minute=100)
    stores = [RedisStore(own_redis_server.url, timeouts=PATIENT) for _ in range(2)]
    verdicts = await asyncio.gather(
        *(take(stores[number % 2], ask(number, limits)) for number in range(200))
    )
    assert sum(verdict.allowed for verdict in verdicts) == 100
    for store in stores:
        await store.aclose()


async def test_the_living_have_places(own_redis_server: RedisServer) -> None:
    """Until they sign off or fall silent."""
    store = RedisStore(own_redis_server.url, timeouts=PATIENT)
    for name in ("c", "a", "b"):
        await store.heartbeat(name, 60_000)
    share = await store.heartbeat("c", 60_000)
    assert (share.index, share.workers) == (2, 3)
    await store.heartbeat("a", 0)
    await store.heartbeat("b", 1)
    await asyncio.sleep(0.01)
    share = await store.heartbeat("c", 60_000)
    assert (share.index, share.workers) == (0, 1)
    await store.aclose()


async def test_a_unix_socket_is_a_server_too(own_redis_server: RedisServer) -> None:
    store = RedisStore(own_redis_server.unix_url, timeouts=PATIENT)
    assert (await take(store, ask(1, LIMITS))).allowed
    await store.aclose()


async def test_user_and_password_are_sent(tmp_path: Path) -> None:
    with RedisServer(config="user gateway on >s3cret/+ ~* &* +@all") as locked:
        url = locked.url.replace("redis://", "redis://gateway:s3cret%2F%2B@")
        store = RedisStore(url, timeouts=PATIENT)
        assert (await take(store, ask(1, LIMITS))).allowed
        await store.aclose()
        store = RedisStore(locked.url.replace("redis://", "redis://gateway:wrong@"))
        with pytest.raises(StoreUnavailable):
            await take(store, ask(1, LIMITS))
        await store.aclose()


# --- when Redis forgets, dies or hangs


async def test_scripts_are_sent_again_when_the_server_has_lost_them(
    patient: RedisStore, server: redis.asyncio.Redis
) -> None:
    await take(patient, ask(1, LIMITS))
    await server.script_flush()
    assert (await take(patient, ask(2, LIMITS))).allowed


async def test_a_server_restarted_between_two_requests_is_not_noticed(
    patient: RedisStore, own_redis_server: RedisServer
) -> None:
    """It is empty, and the connection is dead; the request just works."""
    await take(patient, ask(1, LIMITS))
    own_redis_server.restart()
    assert (await take(patient, ask(2, LIMITS))).allowed
    assert patient.failures == []


@pytest.mark.slow
async def test_a_killed_server_costs_nothing_and_is_found_again(
    shared: RedisStore, own_redis_server: RedisServer
) -> None:
    await recovery_seconds(shared)
    own_redis_server.kill()
    waits = await outage(shared, 1.5)
    assert waited_for_it(later(waits)) == 0
    assert shared.failures
    own_redis_server.restart()
    assert await recovery_seconds(shared) < RECOVERED_WITHIN_S
    assert shared.failures == []


@pytest.mark.slow
async def test_a_hung_server_is_noticed_by_its_silence(
    shared: RedisStore, own_redis_server: RedisServer
) -> None:
    """It refuses nothing and answers nothing; the first requests wait, later ones do not."""
    await recovery_seconds(shared)
    own_redis_server.stop()
    waits = await outage(shared, 1.5)
    assert waits[0][1] < 0.5
    assert waited_for_it(later(waits)) == 0
    own_redis_server.cont()
    assert await recovery_seconds(shared) < RECOVERED_WITHIN_S


async def test_replies_are_not_mixed_up_after_a_hang(
    shared: RedisStore, own_redis_server: RedisServer
) -> None:
    """What was asked before the hang is answered to nobody."""
    await shared.ping()
    own_redis_server.stop()
    for number in range(3):
        with pytest.raises(StoreUnavailable):
            await take(shared, ask(number, LIMITS, tenant="hung"))
    own_redis_server.cont()
    await recovery_seconds(shared)
    tenants = [f"t{number}" for number in range(50)]
    usages = await asyncio.gather(*(shared.usage(tenant, LIMITS) for tenant in tenants))
    assert [usage.tenant for usage in usages] == tenants
    assert all(usage.levels.requests is not None for usage in usages)


async def test_an_operation_in_doubt_says_so(
    shared: RedisStore, own_redis_server: RedisServer
) -> None:
    """It may have happened, or may happen yet; one that was never sent cannot."""
    await shared.ping()
    own_redis_server.stop()
    with pytest.raises(StoreUnavailable) as sent:
        await take(shared, ask(1, LIMITS))
    with pytest.raises(StoreUnavailable) as unsent:
        await take(shared, ask(2, LIMITS))
    assert sent.value.in_doubt
    assert not unsent.value.in_doubt
    own_redis_server.cont()


async def test_a_take_that_hung_is_settled_by_its_release(
    shared: RedisStore, own_redis_server: RedisServer
) -> None:
    """The frozen server carries it out when it wakes, before or after the release comes."""
    limits = Limits(concurrent_requests=1, images_per_day=10)
    await shared.ping()
    own_redis_server.stop()
    with pytest.raises(StoreUnavailable):
        await take(shared, ask(1, limits, images=4))
    own_redis_server.cont()
    await recovery_seconds(shared)
    await release(shared, used(1, images=0))
    levels = (await shared.usage("acme", limits)).levels
    assert levels.day is not None
    assert levels.concurrent is not None
    assert (levels.day.remaining, levels.concurrent.remaining) == (10, 1)


async def test_a_busy_process_does_not_take_the_server_for_dead(shared: RedisStore) -> None:
    """It was held up itself for longer than the timeout; the reply lay in the socket."""
    await shared.ping()
    for number in range(5):
        call = asyncio.ensure_future(take(shared, ask(number, LIMITS)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(0.12)  # noqa: ASYNC251 - blocking the loop is the point
        assert (await call).allowed
    assert shared.failures == []


@pytest.mark.slow
async def test_many_at_once_are_no_silence(shared: RedisStore) -> None:
    """More than fits in one timeout: every reply starts it anew."""
    limits = Limits(requests_per_minute=100)
    verdicts = await asyncio.gather(*(take(shared, ask(number, limits)) for number in range(5000)))
    assert sum(verdict.allowed for verdict in verdicts) == 100


async def test_an_unreachable_server_is_given_up_in_time() -> None:
    """An address that swallows packets, as a lost machine does."""
    store = RedisStore("redis://192.0.2.1:6379/0", timeouts=Timeouts(connect_s=0.05))
    answered, seconds = await take_seconds(store, 1)
    assert not answered
    assert seconds < 0.5
    waits = [(await take_seconds(store, number))[1] for number in range(2, 7)]
    assert waited_for_it(waits) == 0
    await store.aclose()


async def test_a_read_only_server_is_unavailable(
    patient: RedisStore, server: redis.asyncio.Redis
) -> None:
    """The master was demoted: it answers, but decides nothing."""
    await take(patient, ask(1, LIMITS))
    await server.replicaof("127.0.0.1", "1")
    with pytest.raises(StoreUnavailable):
        await take(patient, ask(2, LIMITS))
    await server.replicaof("NO", "ONE")
    assert (await take(patient, ask(3, LIMITS))).allowed


async def test_a_closed_store_says_so(own_redis_server: RedisServer) -> None:
    store = RedisStore(own_redis_server.url, timeouts=PATIENT)
    await take(store, ask(1, LIMITS))
    await store.aclose()
    with pytest.raises(StoreUnavailable):
        await take(store, ask(2, LIMITS))

"""Redis at its `maxmemory`: what survives under each eviction policy, and what clients see."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import redis
from msgspec.structs import replace

from gateway.config import Limits as TenantLimits
from gateway.config import Redis, with_catalogue
from gateway.config.decode import Secret
from gateway.observability.context import ClientOutcome
from gateway.store.availability import StoreUnavailable
from gateway.store.generations import Completion, Entry, Failure, Idempotency, Lead, State
from gateway.store.limits import Limits
from gateway.store.redis import RedisStore, Timeouts
from gateway.store.redis.eviction import eviction_warning
from gateway.store.requests import EnterRequest
from tests.contract.generations import end, enter, lead, leave, progress, request_of
from tests.contract.stores import ask, release, take, used
from tests.contract.topologies import Nodes, Replicated
from tests.figures import Figure
from tests.paying.shop import MODEL, Vendor
from tests.redis_server import RedisServer
from tests.running import LIMITED, Client, HeldClock, RunningGateway, account, config_for

POLICIES = [
    "noeviction",
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "volatile-lru",
    "volatile-ttl",
    "volatile-random",
]
PATIENT = Timeouts(connect_s=5.0, command_s=5.0)
LIMITS = Limits(requests_per_minute=100, concurrent_requests=10, images_per_day=50)
MEMORY = "64mb"
ENTRY_BYTES = 256 * 1024
DAY_MS = 86_400_000
BUDGET = 10


@pytest.fixture
def full(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Under the policy of the parameter."""
    args = ["--maxmemory", MEMORY, "--maxmemory-policy", request.param]
    with RedisServer(args=args) as server:
        yield server


@pytest.fixture
async def store(full: RedisServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(full.url, timeouts=PATIENT)
    yield store
    await store.aclose()


# --- the servers


@pytest.mark.slow
@pytest.mark.parametrize("full", POLICIES, indirect=True)
async def test_what_survives_a_full_server(
    full: RedisServer, store: RedisStore, figure: Figure
) -> None:
    """Under `noeviction` everything; under each other policy the check at the start warns."""
    await take(store, ask(1, LIMITS, images=4))
    await release(store, used(1, images=4))
    await take(store, running("leader", images=2))
    written = await fill(store)

    usage = await store.usage("acme", LIMITS)
    levels = usage.levels
    assert levels.day is not None
    assert levels.concurrent is not None
    (status,) = await store.poll("tenant:acme", ["leader"])
    warning = await eviction_warning(store._servers)
    figure(
        f"{written} entries written; used of the day {50 - levels.day.remaining} of 6, "
        f"requests running {10 - levels.concurrent.remaining} of 1, generation {status.state}, "
        f"warning: {warning is not None}"
    )
    if full.args[-1] == "noeviction":
        assert warning is None
        assert (levels.day.remaining, levels.concurrent.remaining) == (44, 9)
        assert status.state is State.RUNNING
    else:
        assert warning is not None
        assert full.args[-1] in warning


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
async def test_image_bytes_on_a_server_of_their_own_evict_no_limit(
    policy: str, own_redis_server: RedisServer, figure: Figure
) -> None:
    """However that one evicts, the main one holds what it held."""
    args = ["--maxmemory", MEMORY, "--maxmemory-policy", policy]
    main = RedisStore(own_redis_server.url, timeouts=PATIENT)
    await take(main, running("leader", images=4))
    with RedisServer(args=args) as images:
        bytes_held = await asyncio.to_thread(fill_with_bytes, images)
        levels = (await main.usage("acme", LIMITS)).levels
        (status,) = await main.poll("tenant:acme", ["leader"])
    await main.aclose()

    assert levels.day is not None
    assert levels.concurrent is not None
    figure(f"{bytes_held >> 20} MiB held of 96 MiB of images; {own_redis_server.port} untouched")
    assert (levels.day.remaining, levels.concurrent.remaining) == (46, 9)
    assert status.state is State.RUNNING


@pytest.mark.parametrize("full", ["noeviction"], indirect=True)
async def test_a_full_server_recovers_by_itself(full: RedisServer, store: RedisStore) -> None:
    """What was refused is accepted again once something has ended, and nothing was miscounted."""
    await take(store, ask(1, LIMITS, images=4))
    await fill(store)
    with pytest.raises(StoreUnavailable):
        await take(store, ask(2, LIMITS, images=4))

    client: Any = redis.Redis(port=full.port)
    client.config_set("maxmemory", "128mb")
    client.close()

    verdict = await take(store, ask(3, LIMITS, images=4))
    assert verdict.day is not None
    assert verdict.day.remaining == 42


async def test_every_key_has_a_time_to_live(own_redis_server: RedisServer, figure: Figure) -> None:
    """So `noeviction` cannot fill up for good."""
    store = RedisStore(own_redis_server.url, timeouts=PATIENT)
    await store.heartbeat("worker", 10_000)
    key = Idempotency("key", "body")
    for name, idempotency in [("running", None), ("failed", None), ("made", None), ("named", key)]:
        leadership = await lead(store, entry(name, retry_key=name, idempotency=idempotency))
        await progress(store, leadership, 0, ["https://images/1.png"])
        if name == "failed":
            await end(store, leadership, Failure(error=b"no"), retry_key=name)
        elif name != "running":
            await end(store, leadership, completion(name, b"result"), retry_key=name)
            await leave(store, leadership, ClientOutcome.DELIVERED, retry_key=name)
    await store.aclose()

    lives = await asyncio.to_thread(times_to_live, own_redis_server)
    figure(f"{len(lives)} keys")
    assert len(lives) >= 12
    assert [key for key, life_s in lives.items() if life_s < 0] == []


async def test_a_refused_request_leaves_no_key(own_redis_server: RedisServer) -> None:
    """Or a tenant that is refused could fill it."""
    store = RedisStore(own_redis_server.url, timeouts=PATIENT)
    one = Limits(images_per_day=1)
    for number in range(20):
        named = entry(f"r{number}", idempotency=Idempotency(f"key-{number}", "body"))
        verdict = await take(store, request_of(named, limits=one, images=2))
        assert not verdict.allowed
    await store.aclose()
    assert await asyncio.to_thread(times_to_live, own_redis_server) == {}


async def test_parts_of_a_fenced_leader_have_a_time_to_live(
    own_redis_server: RedisServer,
) -> None:
    """They come after another request has taken over, which may never write again."""
    store = RedisStore(own_redis_server.url, timeouts=PATIENT)
    entered = await store.enter(replace(request_of(entry("first")), lead_ms=1))
    assert isinstance(entered.place, Lead)
    first = entered.place.leadership
    await asyncio.sleep(0.05)
    assert (await lead(store, entry("second"), follows="first")).id == "first"
    await store.restore(first, entry("first"), 10_000, {0: ("https://images/1.png",)})
    await store.aclose()

    lives = await asyncio.to_thread(times_to_live, own_redis_server)
    assert [key for key, life_s in lives.items() if life_s < 0] == []


# --- the check at the start


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_single_server_is_judged(policy: str, own_redis_server: RedisServer) -> None:
    configure(own_redis_server, "maxmemory-policy", policy)
    store = RedisStore(own_redis_server.url, timeouts=PATIENT)
    unbounded = await eviction_warning(store._servers)
    configure(own_redis_server, "maxmemory", "64mb")
    bounded = await eviction_warning(store._servers)
    await store.aclose()

    assert unbounded is None  # it evicts nothing, whatever its policy
    assert (bounded is None) == (policy == "noeviction")


@pytest.mark.slow
async def test_the_master_behind_sentinels_is_judged() -> None:
    with ExitStack() as stack:
        servers = Replicated(stack)
        await asyncio.to_thread(servers.wait_until_complete)
        store = RedisStore(servers.url, timeouts=PATIENT)
        before = await eviction_warning(store._servers)
        configure(servers.master, "maxmemory", "64mb")
        configure(servers.master, "maxmemory-policy", "volatile-lru")
        after = await eviction_warning(store._servers)
        await store.aclose()

    assert before is None
    assert after is not None
    assert "volatile-lru" in after


@pytest.mark.slow
async def test_every_master_of_a_cluster_is_judged() -> None:
    """One of them with another policy is enough."""
    with ExitStack() as stack:
        nodes = await asyncio.to_thread(Nodes, stack)
        store = RedisStore(nodes.url, timeouts=PATIENT)
        warnings = [await eviction_warning(store._servers)]
        for server in nodes.servers:
            configure(server, "maxmemory", "64mb")
            configure(server, "maxmemory-policy", "allkeys-lfu")
            warnings.append(await eviction_warning(store._servers))
            configure(server, "maxmemory-policy", "noeviction")
        await store.aclose()

    assert warnings[0] is None
    assert all(warning and "allkeys-lfu" in warning for warning in warnings[1:])


async def test_a_server_that_is_away_keeps_nothing_from_starting(
    own_redis_server: RedisServer,
) -> None:
    own_redis_server.kill()
    store = RedisStore(own_redis_server.url, timeouts=Timeouts(0.2, 0.2))
    assert await eviction_warning(store._servers) is None
    await store.aclose()


async def test_a_user_that_may_not_ask_is_told_so(own_redis_server: RedisServer) -> None:
    """As managed servers and careful operators set it up."""
    client: Any = redis.Redis(port=own_redis_server.port)
    client.execute_command("ACL", "SETUSER", "gw", "on", ">pw", "~*", "+@all", "-@dangerous")
    client.close()
    url = f"redis://gw:pw@127.0.0.1:{own_redis_server.port}/0"
    store = RedisStore(url, timeouts=PATIENT)
    warning = await eviction_warning(store._servers)
    await store.aclose()

    assert warning is not None
    assert "INFO" in warning


async def test_an_answer_of_another_form_is_no_failure() -> None:
    """Something that speaks the protocol and is no Redis."""

    class Odd:
        async def call(self, key: str, command: Any) -> Any:
            return [[0]] if command[0] == "CLUSTER" else 7

    odd: Any = Odd()
    assert await eviction_warning(odd) is None


# --- what clients see


@pytest.fixture
def shop(
    running_gateway: RunningGateway,
    http: httpx.Client,
    clock: HeldClock,
    vendor: Vendor,
    own_redis_server: RedisServer,
    logs: object,
) -> Iterator[Client]:
    """A tenant with a budget, and one without, on a Redis that can be filled."""
    redis_config = Redis(
        url=Secret(own_redis_server.url), connect_timeout_ms=2000, command_timeout_ms=2000
    )
    config = config_for(account(vendor.base_url), redis=redis_config)
    acme, limited, *_ = config.tenants
    limited = replace(
        limited, models=("*",), default_model=None, limits=TenantLimits(images_per_day=BUDGET)
    )
    config = with_catalogue(replace(config, tenants=(acme, limited)))
    running_gateway.use(config, clock.clock())
    yield Client(http, running_gateway.url)
    running_gateway.rest()


def test_a_full_redis_follows_the_loss_policy(
    shop: Client, vendor: Vendor, own_redis_server: RedisServer, figure: Figure
) -> None:
    """Images are still made, the cache is passed by, and a budget is counted or refuses.

    A script that has begun to write is let go on by a full server, so either may happen.
    """
    first = seeded(shop)
    configure(own_redis_server, "maxmemory", "1")
    while_full = seeded(shop)
    of_budget = [shop.generate(model=MODEL, key=LIMITED, n=2) for _ in range(BUDGET)]
    configure(own_redis_server, "maxmemory", "0")
    after = until_hit(shop)

    statuses = Counter(answer.status_code for answer in of_budget)
    figure(
        f"full: {while_full.status_code} x-cache {while_full.headers.get('x-cache')}; "
        f"of a budget of {BUDGET} images in twos {dict(statuses)}; afterwards {after}"
    )
    assert first.headers["x-cache"] == "miss"
    assert while_full.status_code == 200
    assert set(statuses) <= {200, 429, 503}
    assert statuses[200] * 2 <= BUDGET
    assert after == "hit"
    assert vendor.paid == 1 + (while_full.headers["x-cache"] == "miss") + statuses[200] * 2


# --- helpers


def seeded(shop: Client, **more: Any) -> httpx.Response:
    return shop.generate(model=MODEL, seed=7, response_format="url", **more)


def until_hit(shop: Client) -> str:
    """x-cache, once the gateway has found its store again."""
    cache = ""
    for _ in range(40):
        cache = seeded(shop, headers={"cache-control": "only-if-cached"}).headers.get("x-cache", "")
        if cache == "hit":
            break
        time.sleep(0.1)
    return cache


def entry(request: str, **changes: Any) -> Entry:
    base = Entry(
        scope="tenant:acme",
        request=request,
        plan_hash="plan",
        images=1,
        cache_key=f"key-{request}",
        retry_key="same",
    )
    return replace(base, **changes)


def running(request: str, images: int) -> EnterRequest:
    """One that leads for a day."""
    asked = request_of(entry(request, cache_key=None), limits=LIMITS, images=images)
    return replace(asked, lead_ms=DAY_MS)


def completion(request: str, result: bytes) -> Completion:
    return Completion(
        result, life_ms=DAY_MS, keep_ms=600_000, cache_key=f"key-{request}", cache_ms=DAY_MS
    )


async def fill(store: RedisStore) -> int:
    """Another tenant's results, until the server takes nothing more or has made room."""
    sizes = iter([ENTRY_BYTES, 0])
    size: int | None = next(sizes)
    written = 0
    for number in itertools.count():
        name = f"filler-{number}"
        try:
            place = await enter(store, entry(name, scope="tenant:filler", retry_key=None))
            assert isinstance(place, Lead)
            await end(store, place.leadership, completion(name, bytes(size or 0)))
        except StoreUnavailable:
            size = next(sizes, None)  # what is too large may leave room for something small
        else:
            written += bool(size)
        if size is None or written * ENTRY_BYTES > 96 * 1024 * 1024:
            break
    return written


def fill_with_bytes(server: RedisServer) -> int:
    """96 MiB of images into 64; what is left of them."""
    client: Any = redis.Redis(port=server.port)
    image = bytes(1024 * 1024)
    for number in range(96):
        try:
            client.set(f"image:{number}", image, px=DAY_MS)
        except redis.exceptions.OutOfMemoryError:
            break
    held = int(client.dbsize()) * len(image)
    client.close()
    return held


def times_to_live(server: RedisServer) -> dict[str, int]:
    client: Any = redis.Redis(port=server.port)
    lives = {key.decode(): client.pttl(key) for key in client.scan_iter()}
    client.close()
    return lives


def configure(server: RedisServer, name: str, value: str) -> None:
    client: Any = redis.Redis(port=server.port)
    client.config_set(name, value)
    client.close()

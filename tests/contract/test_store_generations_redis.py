"""Requests on Redis: keys, times to live, and what others may have done to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from msgspec.structs import replace
from redis.crc import key_slot

from gateway.observability.context import ClientOutcome
from gateway.store import Store
from gateway.store.generations import (
    Failure,
    Follow,
    Found,
    Idempotency,
    Lead,
    Leadership,
    State,
)
from gateway.store.limits import Limits, Settlement
from gateway.store.redis import RedisStore
from gateway.store.requests import End, Leave
from tests.contract.generations import (
    LEASE_MS,
    SCOPE,
    completion,
    end,
    enter,
    entry,
    lead,
    leave,
    progress,
    request_of,
    retry,
    state,
    unshared,
)
from tests.contract.stores import KINDS, PATIENT, Clock, clock, open_store, server_of
from tests.redis_server import RedisServer

__all__ = ["clock"]


@pytest.fixture(params=[kind for kind in KINDS if kind != "memory"])
async def store(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Store]:
    store = open_store(request.param, clock)
    yield store
    await store.aclose()


@pytest.fixture
def client(request: pytest.FixtureRequest, store: Store) -> Any:
    kind = request.node.callspec.params["store"]
    return redis.Redis.from_url(server_of(kind).url)


async def do_everything(store: Store, scope: str = SCOPE) -> None:
    limits = Limits(
        requests_per_minute=10,
        images_per_minute=10,
        concurrent_requests=10,
        images_per_day=100,
        spend_per_month=100,
    )
    both = entry("r1", scope=scope, retry_key="same")
    first = (await store.enter(request_of(both, limits=limits, cost=1))).place
    assert isinstance(first, Lead)
    await enter(store, replace(both, request="r2"))
    await store.progress(first.leadership, 0, ["u"], Settlement("acme", "r1", "m", 1, 1))
    await store.renew_leaderships([first.leadership], LEASE_MS)
    failure = Failure({0: ("u",)}, b"error")
    await end(store, first.leadership, failure, retry_key="same", client=ClientOutcome.ANSWERED)
    keyed = entry("r3", scope=scope, cache_key=None, idempotency=Idempotency("key", "body"))
    await lead(store, keyed)
    again = await lead(store, replace(both, request="r5"))
    await end(store, again, completion())
    await store.restore(
        Leadership(scope, "r4", "r4"), replace(both, request="r4"), LEASE_MS, {0: ("u",)}
    )
    await leave(store, again)
    await store.pin_images(scope, again.id, 1000)
    await store.poll(scope, ["r1"])
    await store.renew("acme", [request_of(both).take.reservation], 30_000)
    await store.levels("acme", limits)
    await store.usage("acme", limits)
    await store.cache_stats(scope)


async def test_everything_has_a_time_to_live(store: Store, client: Any) -> None:
    await do_everything(store)
    keys = client.keys("*")
    names = {key.split(b"}:")[1] for key in keys}
    assert {name[:2] for name in names if name[1:2] == b":"} >= {b"g:", b"c:", b"i:", b"a:", b"t:"}
    assert names >= {b"window", b"leases", b"reservations", b"gone", b"day", b"month", b"cached"}
    assert {key: client.pttl(key) for key in keys if client.pttl(key) <= 0} == {}


async def test_a_tenant_is_in_one_slot_and_a_group_in_another(store: Store, client: Any) -> None:
    for scope, expected in ((SCOPE, 1), ("group:art", 2)):
        client.flushall()
        await do_everything(store, scope)
        slots: dict[bytes, set[int]] = {}
        for key in client.keys("*"):
            slots.setdefault(key.split(b"}")[0], set()).add(key_slot(key))
        assert sorted(slots) == [b"gateway:{g:art", b"gateway:{t:acme"][2 - expected :]
        assert {len(of_tag) for of_tag in slots.values()} == {1}


@pytest.mark.parametrize("scope", [SCOPE, "group:art"])
async def test_who_is_refused_leaves_no_key(store: Store, client: Any, scope: str) -> None:
    """Nor who asks where the limits stand, or for what is only in a cache."""
    none = Limits(concurrent_requests=0)
    wanted = entry("r1", scope=scope, idempotency=Idempotency("k", "b"))
    for one in (wanted, unshared("r2", scope=scope), retry("r3", scope=scope)):
        assert not (await store.enter(request_of(one, limits=none))).verdict.allowed
    await store.enter(request_of(entry("r4", scope=scope, only_if_cached=True)))
    await store.levels("acme", none)
    await store.usage("acme", none)
    assert client.keys("*") == []


async def test_every_step_of_a_request_is_one_script(store: Store, client: Any) -> None:
    """Also where the tenant shares a group's generations, as this server is no cluster."""
    client.config_resetstat()
    wanted = entry("r1", scope="group:art")
    claim = await lead(store, wanted)
    await progress(store, claim, 0, ["u"])
    used = Settlement("acme", "r1", "m", 1, 1)
    await store.end(End(leadership=claim, retry_key=None, outcome=completion(), settlement=used))
    await store.leave(
        Leave(
            settlement=used,
            outcome=ClientOutcome.DELIVERED,
            scope=claim.scope,
            generation=claim.id,
        )
    )
    calls = client.info("commandstats")
    sent = sum(calls.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))
    assert sent - calls.get("cmdstat_eval", {}).get("calls", 0) == 4


@pytest.mark.parametrize("kind", ["string", "list", "fields"])
async def test_whatever_others_left_under_its_keys_is_a_miss(
    store: Store, client: Any, kind: str
) -> None:
    await do_everything(store)
    for key in client.keys("*"):
        if kind == "fields" and client.type(key) == b"hash":
            client.hset(key, mapping=dict.fromkeys(client.hkeys(key), b"\xffx"))
        elif kind != "fields":
            client.delete(key)
            client.set(key, b"\xff") if kind == "string" else client.lpush(key, b"\xff")
    claim = await lead(store, entry("r10", retry_key="same"))
    await progress(store, claim, 0, ["u"])
    await end(store, claim, completion())
    found = await enter(store, entry("r11", retry_key="same"))
    assert isinstance(found, Found)
    assert found.result == b"result"
    assert len(await store.poll(SCOPE, ["r1", "r2", "r3", "r4", "r5"])) == 5
    await leave(store, Leadership(SCOPE, "r10", "r10"))
    await store.usage("acme", Limits())
    await store.cache_stats(SCOPE)
    await store.purge(SCOPE)


async def test_many_that_enter_at_once_have_one_leader(store: Store) -> None:
    places = await asyncio.gather(*(enter(store, entry(f"r{number}")) for number in range(200)))
    assert sum(isinstance(one, Lead) for one in places) == 1
    assert sum(isinstance(one, Follow) for one in places) == 199


@pytest.mark.slow
async def test_a_purge_of_very_many_results_is_done_in_parts(store: Store) -> None:
    for number in range(1200):
        claim = await lead(store, entry(f"r{number}", cache_key=f"k{number}"))
        await end(store, claim, completion(cache_key=f"k{number}", cache_ms=60_000))
    assert await store.purge(SCOPE) == 1200
    assert (await store.cache_stats(SCOPE)).entries == 0


async def test_a_restarted_server_is_given_its_scripts_again(own_redis_server: RedisServer) -> None:
    store = RedisStore(own_redis_server.url, timeouts=PATIENT)
    claim = await lead(store, entry("r1"))
    own_redis_server.restart()
    assert await state(store, "r1") is State.MISSING
    await store.restore(claim, entry("r1"), LEASE_MS, {})
    assert isinstance(await enter(store, entry("r2")), Follow)
    await store.aclose()


# --- whether it is still the same server


async def test_a_connection_that_is_made_again_is_counted(own_redis_server: RedisServer) -> None:
    """The server behind it may be another, which lacks what was written last."""
    store = RedisStore(own_redis_server.url, timeouts=PATIENT)
    await lead(store, entry("r1"))
    await lead(store, unshared("r2"))
    assert store.reconnects == 0
    own_redis_server.restart()
    await lead(store, unshared("r3"))
    assert store.reconnects >= 1
    await store.aclose()

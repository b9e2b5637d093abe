"""Generations on Redis: keys, times to live, and what others may have done to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from gateway.store.base import Store
from gateway.store.generations import (
    Claim,
    Departure,
    Ending,
    Entry,
    Failure,
    Found,
    Idempotency,
    Joined,
    Led,
    Phase,
)
from gateway.store.redis import RedisStore
from tests.contract.stores import KINDS, PATIENT, Clock, clock, open_store, server_of
from tests.redis_server import RedisServer

__all__ = ["clock"]

LEASE_MS = 10_000
SCOPE = "tenant:acme"
DONE = Ending(b"result", 86_400_000, 600_000, "key", 86_400_000)


@pytest.fixture(params=[kind for kind in KINDS if kind != "memory"])
async def store(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Store]:
    store = open_store(request.param, clock)
    yield store
    await store.aclose()


@pytest.fixture
def client(request: pytest.FixtureRequest, store: Store) -> Any:
    kind = request.node.callspec.params["store"]
    return redis.Redis.from_url(server_of(kind).url)


def entry(request: str, scope: str = SCOPE) -> Entry:
    return Entry(scope=scope, request=request, plan="p", images=1, cache_key="key", adoption="same")


async def do_everything(store: Store, scope: str = SCOPE) -> None:
    begun = await store.begin(entry("r1", scope), LEASE_MS)
    assert isinstance(begun, Led)
    await store.begin(entry("r2", scope), LEASE_MS)
    await store.progress(begun.claim, 0, ["u"])
    await store.keep_alive([begun.claim], LEASE_MS)
    await store.fail(begun.claim, Failure({0: ("u",)}, b"error", "same"))
    keyed = Entry(
        scope=scope, request="r3", plan="p", images=1, idempotency=Idempotency("key", "body")
    )
    other = await store.begin(keyed, LEASE_MS)
    assert isinstance(other, Led)
    again = await store.begin(entry("r5", scope), LEASE_MS)
    assert isinstance(again, Led)
    await store.finish(again.claim, DONE)
    await store.restore(Claim(scope, "r4", "r4"), entry("r4", scope), LEASE_MS, {0: ("u",)})
    await store.depart(again.claim, "same", Departure.LET_GO)
    await store.excuse(scope, "same", "r6")
    await store.hold(scope, again.claim.id, 1000)
    await store.look(scope, ["r1"])
    await store.shelf(scope)


async def test_everything_has_a_time_to_live(store: Store, client: Any) -> None:
    await do_everything(store)
    keys = client.keys("*")
    assert {key.split(b"}:")[1][:2] for key in keys} >= {b"g:", b"c:", b"i:", b"a:", b"x:"}
    assert {key: client.pttl(key) for key in keys if client.pttl(key) <= 0} == {}


async def test_the_keys_of_a_scope_are_in_one_slot(store: Store, client: Any) -> None:
    await do_everything(store)
    await do_everything(store, "group:art")
    slots: dict[bytes, set[int]] = {}
    for key in client.keys("*"):
        slots.setdefault(key.split(b"}")[0], set()).add(key_slot(key))
    assert [len(of_scope) for of_scope in slots.values()] == [1, 1]


async def test_every_key_of_a_call_is_in_one_slot(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that a caller can name are declared, so that a cluster knows where they are."""
    declared: list[tuple[str, ...]] = []
    run = RedisStore._run

    async def spy(self: RedisStore, script: object, keys: tuple[str, ...], args: object) -> object:
        declared.append(keys)
        return await run(self, script, keys, args)  # type: ignore[arg-type]

    monkeypatch.setattr(RedisStore, "_run", spy)
    await do_everything(store)
    assert {len({key_slot(key.encode()) for key in keys}) for keys in declared} == {1}


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
    begun = await store.begin(entry("r10"), LEASE_MS)
    assert isinstance(begun, Led)
    await store.progress(begun.claim, 0, ["u"])
    await store.finish(begun.claim, DONE)
    found = await store.begin(entry("r11"), LEASE_MS)
    assert isinstance(found, Found)
    assert found.result == b"result"
    assert len(await store.look(SCOPE, ["r1", "r2", "r3", "r4", "r5"])) == 5
    await store.shelf(SCOPE)
    await store.purge(SCOPE)


async def test_many_begins_at_once_have_one_leader(store: Store) -> None:
    begun = await asyncio.gather(
        *(store.begin(entry(f"r{number}"), LEASE_MS) for number in range(200))
    )
    assert sum(isinstance(one, Led) for one in begun) == 1
    assert sum(isinstance(one, Joined) for one in begun) == 199


async def test_a_purge_of_very_many_results_is_done_in_parts(store: Store) -> None:
    for number in range(1200):
        wanted = Entry(
            scope=SCOPE, request=f"r{number}", plan="p", images=1, cache_key=f"k{number}"
        )
        begun = await store.begin(wanted, LEASE_MS)
        assert isinstance(begun, Led)
        await store.finish(begun.claim, Ending(b"x", 86_400_000, 600_000, f"k{number}", 60_000))
    assert await store.purge(SCOPE) == 1200
    assert (await store.shelf(SCOPE)).entries == 0


async def test_a_restarted_server_is_given_its_scripts_again(own_redis_server: RedisServer) -> None:
    store = RedisStore(own_redis_server.url, timeouts=PATIENT)
    begun = await store.begin(entry("r1"), LEASE_MS)
    assert isinstance(begun, Led)
    own_redis_server.restart()
    (sight,) = await store.look(SCOPE, ["r1"])
    assert sight.phase is Phase.MISSING
    await store.restore(begun.claim, entry("r1"), LEASE_MS, begun.parts)
    assert isinstance(await store.begin(entry("r2"), LEASE_MS), Joined)
    await store.aclose()

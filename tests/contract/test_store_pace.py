"""How every store gives out slots, the same in memory and on each version of Redis."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from gateway.store import Store
from gateway.store.pacing import (
    GRACE_US,
    WAITING_TTL_MS,
    ClaimResult,
    Grant,
    PacedAccount,
    SlotRequest,
)
from tests.contract.stores import Clock, clock, store

__all__ = ["clock", "store"]

HALF_A_SECOND = 500_000
ONE = (PacedAccount("intl", HALF_A_SECOND),)
TWO = (PacedAccount("intl", HALF_A_SECOND), PacedAccount("spare", HALF_A_SECOND))
A_LITTLE_S = 0.001


async def claim(
    store: Store,
    waiting: dict[str, int],
    worker: str = "w1",
    accounts: tuple[PacedAccount, ...] = ONE,
    *,
    report: bool = False,
) -> ClaimResult:
    return await store.claim(SlotRequest("qwen-image", worker, accounts, waiting, report))


async def granted(store: Store, waiting: dict[str, int], worker: str = "w1") -> Grant:
    turn = await claim(store, waiting, worker)
    assert turn.grant is not None
    return turn.grant


# --- when


async def test_the_first_slot_is_free_at_once(store: Store) -> None:
    turn = await claim(store, {"acme": 1})
    assert turn.grant is not None
    assert (turn.grant.tenant, turn.grant.account) == ("acme", "intl")
    assert turn.grant.delay_us == 0
    assert turn.free_us == {"intl": HALF_A_SECOND}


async def test_the_next_slot_is_an_interval_later(store: Store, clock: Clock) -> None:
    """The answer says how long nothing can be had, and keeps its word."""
    first = await claim(store, {"acme": 2})
    assert first.wait_us == 490_000
    turn = await claim(store, {"acme": 1})
    assert turn.grant is None
    clock.advance(turn.wait_us / 1e6 - A_LITTLE_S)
    assert (await claim(store, {"acme": 1})).grant is None
    clock.advance(2 * A_LITTLE_S)
    assert (await claim(store, {"acme": 1})).grant is not None


async def test_slots_are_never_closer_than_the_interval(store: Store, clock: Clock) -> None:
    """However often and from wherever they are claimed."""
    slots = []
    for step in range(400):
        turn = await claim(store, {"acme": 9}, f"w{step % 3}")
        if turn.grant:
            slots.append(turn.grant.slot_us)
        clock.advance(0.007)
    gaps = [after - before for before, after in pairwise(slots)]
    assert len(slots) >= 5
    assert min(gaps) >= HALF_A_SECOND


async def test_the_way_to_the_store_costs_no_throughput(store: Store, clock: Clock) -> None:
    """A slot is claimed a little early and starts on the beat."""
    slots = []
    for _ in range(10):
        grant = await granted(store, {"acme": 9})
        slots.append(grant.slot_us)
        clock.now = (grant.slot_us + HALF_A_SECOND - 5_000) / 1e6
    gaps = {after - before for before, after in pairwise(slots)}
    assert gaps == {HALF_A_SECOND}


async def test_idle_time_is_not_saved_up(store: Store, clock: Clock) -> None:
    await claim(store, {"acme": 1})
    clock.advance(3600)
    assert (await claim(store, {"acme": 2})).grant is not None
    assert (await claim(store, {"acme": 1})).grant is None


async def test_models_do_not_share_slots(store: Store) -> None:
    await claim(store, {"acme": 1})
    other = await store.claim(SlotRequest("z-image", "w1", ONE, {"acme": 1}))
    assert other.grant is not None


async def test_the_earliest_account_wins(store: Store, clock: Clock) -> None:
    accounts = (PacedAccount("slow", 30_000_000), PacedAccount("quick", HALF_A_SECOND))
    names = []
    for _ in range(6):
        turn = await claim(store, {"acme": 9}, accounts=accounts)
        assert turn.grant is not None
        names.append(turn.grant.account)
        clock.advance(max(turn.wait_us, 0) / 1e6 + 0.02)
    assert names == ["slow", "quick", "quick", "quick", "quick", "quick"]


async def test_an_account_that_is_left_out_is_not_given(store: Store) -> None:
    turns = [await claim(store, {"acme": 9}, accounts=TWO[1:]) for _ in range(2)]
    assert [turn.grant.account if turn.grant else None for turn in turns] == ["spare", None]


async def test_backing_off_holds_for_everyone(store: Store, clock: Clock) -> None:
    await store.back_off("qwen-image", "intl", 60_000)
    turn = await claim(store, {"acme": 1}, "another worker")
    assert turn.grant is None
    assert turn.free_us["intl"] == 60_000_000
    await store.back_off("qwen-image", "intl", 1_000)
    clock.advance(59)
    assert (await claim(store, {"acme": 1})).grant is None
    clock.advance(1.1)
    assert (await claim(store, {"acme": 1})).grant is not None


async def test_backing_off_ends_within_the_hour(store: Store) -> None:
    await store.back_off("qwen-image", "intl", 10**9)
    turn = await claim(store, {"acme": 1})
    assert turn.free_us["intl"] == 3_600_000_000


async def test_a_clock_that_is_set_back_does_not_block_an_account(
    store: Store, clock: Clock
) -> None:
    await claim(store, {"acme": 1})
    clock.advance(-86_400)
    turn = await claim(store, {"acme": 1})
    assert turn.free_us["intl"] <= 3_600_000_000


async def test_a_floor_heals_a_store_that_lost_its_data(store: Store) -> None:
    """The caller remembers a later slot than the store does."""
    known = (PacedAccount("intl", HALF_A_SECOND, floor_us=400_000),)
    turn = await claim(store, {"acme": 1}, accounts=known)
    assert turn.grant is None
    assert turn.free_us["intl"] == 400_000


async def test_a_slot_that_is_given_back_is_free_again(store: Store, clock: Clock) -> None:
    grant = await granted(store, {"acme": 1})
    await store.give_back("qwen-image", ONE[0], grant.slot_us)
    clock.advance(A_LITTLE_S)
    again = await granted(store, {"other": 1})
    assert again.slot_us - grant.slot_us < HALF_A_SECOND


async def test_a_slot_is_not_given_back_from_before_a_later_one(store: Store, clock: Clock) -> None:
    old = await granted(store, {"acme": 2})
    clock.advance(0.6)
    await granted(store, {"acme": 1})
    await store.give_back("qwen-image", ONE[0], old.slot_us)
    assert (await claim(store, {"acme": 1})).grant is None


# --- whose turn


async def serve(store: Store, clock: Clock, queue: dict[str, int], slots: int) -> list[str]:
    """One worker with a queue, slot after slot."""
    served = []
    for _ in range(slots):
        grant = await granted(store, {name: calls for name, calls in queue.items() if calls})
        queue[grant.tenant] -= 1
        served.append(grant.tenant)
        clock.advance(0.51)
    return served


async def test_tenants_take_turns(store: Store, clock: Clock) -> None:
    """However much one of them waits for."""
    served = await serve(store, clock, {"big": 500, "five": 5, "one": 1}, 12)
    assert sorted(served[:3]) == ["big", "five", "one"]
    assert Counter(served) == {"big": 6, "five": 5, "one": 1}
    assert served[3:10].count("five") >= 3


async def test_a_newcomer_waits_for_one_turn_of_each_other(store: Store, clock: Clock) -> None:
    """It neither waits behind their queues nor gets credit for having been away."""
    await serve(store, clock, {"a": 500, "b": 500}, 20)
    served = await serve(store, clock, {"a": 480, "b": 480, "new": 100}, 9)
    assert "new" in served[:3]
    assert Counter(served) == {"a": 3, "b": 3, "new": 3}


async def test_leaving_and_coming_back_gains_nothing(store: Store, clock: Clock) -> None:
    """A tenant that joins anew for each call gets no more than one that waits."""
    served = Counter[str]()
    for step in range(20):
        waiting = {"patient": 50, "hasty": 1} if step % 2 else {"patient": 50}
        served[(await granted(store, waiting)).tenant] += 1
        clock.advance(0.51)
    assert served["hasty"] <= 10
    assert served["patient"] >= 10


async def test_workers_take_turns_inside_a_tenant(store: Store, clock: Clock) -> None:
    queues = {worker: {"acme": 50} for worker in ("w1", "w2", "w3")}
    workers = Counter(worker for worker, _ in await contend(store, clock, queues, 30))
    assert max(workers.values()) - min(workers.values()) <= 1


async def test_tenants_are_fair_over_workers(store: Store, clock: Clock) -> None:
    """A tenant on two workers gets as much as one on one of them."""
    queues = {"w1": {"both": 90, "alone": 90}, "w2": {"both": 90}}
    tenants = Counter(tenant for _, tenant in await contend(store, clock, queues, 40))
    assert abs(tenants["both"] - tenants["alone"]) <= 2


async def contend(
    store: Store, clock: Clock, queues: dict[str, dict[str, int]], slots: int
) -> list[tuple[str, str]]:
    """All workers claim again and again, in no fixed order; who got each slot, for whom."""
    for worker, waiting in queues.items():
        await claim(store, waiting, worker)
        clock.advance(0.6)
    served: list[tuple[str, str]] = []
    for step in range(slots * 200):
        for worker in sorted(queues, reverse=bool(step % 2)):
            grant = (await claim(store, queues[worker], worker)).grant
            if grant:
                served.append((worker, grant.tenant))
                clock.now = (grant.slot_us + HALF_A_SECOND - 12_000) / 1e6
        if len(served) >= slots:
            break
        clock.advance(0.004)
    return served


async def test_a_late_worker_loses_the_slot_to_the_next(store: Store, clock: Clock) -> None:
    """It has a grace, then the slot is not left to waste."""
    await granted(store, {"b": 1}, "gone")
    await claim(store, {"a": 5}, "late")
    await claim(store, {"b": 5}, "next")
    clock.advance(0.49)
    turn = await claim(store, {"b": 5}, "next")
    assert turn.grant is None
    assert turn.wait_us <= GRACE_US
    clock.advance(0.05)
    assert (await claim(store, {"b": 5}, "next")).grant is not None


async def test_a_dead_worker_is_forgotten(store: Store, clock: Clock) -> None:
    await claim(store, {"a": 5, "b": 5}, "dead")
    clock.advance(WAITING_TTL_MS / 1000 - 1)
    turn = await claim(store, {"b": 1}, "alive", report=True)
    assert {share.worker for share in turn.shares} >= {"dead"}
    clock.advance(1.1)
    turn = await claim(store, {"b": 1}, "alive", report=True)
    assert {share.worker for share in turn.shares} <= {"alive"}


async def test_a_worker_signs_off(store: Store) -> None:
    await claim(store, {"a": 5}, "w1")
    await claim(store, {}, "w1")
    turn = await claim(store, {"b": 1}, "w2", report=True)
    assert [share.worker for share in turn.shares] == ["w2"]


async def test_the_report_says_who_waits(store: Store) -> None:
    await granted(store, {"a": 1})
    await claim(store, {"a": 3, "b": 2}, "w1")
    turn = await claim(store, {"a": 1}, "w2", report=True)
    waiting = {(share.worker, share.tenant): share.waiting for share in turn.shares}
    assert waiting == {("w1", "a"): 3, ("w1", "b"): 2, ("w2", "a"): 1}
    tags = {share.tenant: share.start_tag for share in turn.shares}
    assert tags["a"] == tags["b"] + 1
    assert tags["b"] == turn.virtual_time


async def test_names_may_be_anything(store: Store, clock: Clock) -> None:
    """Tenants and workers are keys of tables on the way; figures must stay names."""
    tenants = {"1": 1, "2": 1, "été {x}": 1, "order": 1}
    seen = set()
    for _ in range(4):
        turn = await store.claim(
            SlotRequest("m:1", "7", (PacedAccount("a:b", 1),), tenants, report=True)
        )
        assert turn.grant is not None
        seen.add(turn.grant.tenant)
        tenants.pop(turn.grant.tenant)
        clock.advance(0.1)
    assert seen == {"1", "2", "été {x}", "order"}

"""The client may leave at every await: its work is kept or never begun, and nothing is left behind.

Each test repeats one request, and has its client leave one await later each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from gateway.config import Cache, Config, Images, Key, Limits, Tenant, with_catalogue
from gateway.domain.catalogue import Rate
from gateway.results import Ledger
from gateway.store import limits
from gateway.store.generations import State
from gateway.tenants.keys import hash_key
from tests.running import account, captured_logs, config_for, key_of
from tests.virtual_gateway import (
    LINE_S,
    Call,
    Site,
    Vendor,
    Visit,
    made,
    now,
    throttled,
    unreachable,
)
from tests.virtual_time import in_virtual_time

BUDGET = 100_000
PLACES = 100
GENERATION_S = 2.0
GAP_S = 5.0
"""From one repetition to the next: nothing of the vendor's is under way any more."""
LEASE_S = 31.0
STEPS_MAX = 400
MARKED = [("x-stainless-retry-count", "1")]

Reply = Callable[[Call], Awaitable[httpx.Response]]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with captured_logs():
        yield


def config_of(rate: Rate, ttl_s: int = 3600) -> Config:
    """Two tenants of one cache group, on an account of a rate."""
    tenants = tuple(
        Tenant(
            name=name,
            keys=(Key(hash=hash_key(key_of(name))),),
            cache=Cache(mode="seeded", group="pair", ttl_s=ttl_s),
            limits=Limits(images_per_day=BUDGET, concurrent_requests=PLACES),
        )
        for name in ("acme", "other")
    )
    images = Images(allowed_hosts=(".aliyuncs.com",))
    vendor = account("http://127.0.0.1:9/api/v1", rates={"*": rate})
    return with_catalogue(config_for(vendor, tenants=tenants, images=images))


async def leavings(site: Site, **fields: Any) -> AsyncIterator[Visit]:
    """The same request under other words each time, and its client leaves an await later each time.

    Ends with the first that is served.
    """
    for step in range(1, STEPS_MAX):
        visit = site.ask(prompt=f"fox {step}", **{"seed": 7, **fields})
        visit.leaves_at = step
        yield visit
        await visit
        await asyncio.sleep(GAP_S)
        if visit.status == 200:
            return
    raise AssertionError("it was never served")


async def check_nothing_is_left(site: Site) -> None:
    """No reservation, no lease, no call that waits; and what was paid is booked, once."""
    await asyncio.sleep(LEASE_S)
    everything = limits.Limits(images_per_day=BUDGET, concurrent_requests=PLACES)
    booked = 0
    for tenant in ("acme", "other"):
        levels = await site.store.inner.levels(tenant, everything)
        assert levels.concurrent is not None
        assert levels.day is not None
        assert levels.concurrent.remaining == PLACES, "a place of concurrency is held"
        booked += BUDGET - levels.day.remaining
    assert booked == site.vendor.paid == site.recorded()
    assert site.recorded(doubtful=True) == 0
    ids = [visit.headers["x-request-id"] for visit in site.visits if visit.headers]
    statuses = await site.store.inner.poll("group:pair", ids)
    assert State.RUNNING not in {status.state for status in statuses}
    gauges = await site.metrics()
    assert sum(of for name, of in gauges.items() if "queue_length" in name) == 0


# --- what the vendor may be up to


async def at_once(call: Call) -> httpx.Response:
    return await made(call, GENERATION_S)


async def after_a_429(call: Call) -> httpx.Response:
    return await (throttled() if call.attempt == 0 else made(call, GENERATION_S))


async def after_no_connection(call: Call) -> httpx.Response:
    return await (unreachable() if call.attempt == 0 else made(call, GENERATION_S))


async def one_short(call: Call) -> httpx.Response:
    """The first answer lacks an image."""
    return await made(call, GENERATION_S, 1 if call.attempt == 0 else None)


CASES: dict[str, tuple[Reply, Rate, dict[str, Any]]] = {
    "one call": (at_once, Rate(None), {}),
    "a slot": (at_once, Rate(1), {}),
    "back-off after a 429": (after_a_429, Rate(None), {}),
    "back-off without a connection": (after_no_connection, Rate(None), {}),
    "slot after a 429": (after_a_429, Rate(1), {}),
    "top-up": (one_short, Rate(None), {"n": 2}),
    "slot of a top-up": (one_short, Rate(0.5), {"n": 2}),
    "several calls": (at_once, Rate(1), {"n": 3, "model": "qwen-image-plus"}),
}
cases = pytest.mark.parametrize("case", CASES)


def site_of(case: str, workers: int = 1) -> tuple[Site, dict[str, Any], int]:
    """And the request, and how many images it has."""
    reply, rate, fields = CASES[case]
    return Site(config_of(rate), Vendor(reply), workers), fields, fields.get("n", 1)


@pytest.mark.slow
@cases
@in_virtual_time
async def test_a_retry_of_who_hung_up_is_given_what_was_paid_and_pays_only_for_the_rest(
    case: str,
) -> None:
    """And is never told that nobody knows what was billed."""
    site, fields, images = site_of(case)
    async with site:
        async for visit in leavings(site, **fields):
            paid = site.vendor.paid
            await visit
            late = [call for call in site.vendor.calls if call.began > (visit.hung_up or now())]
            assert visit not in {call.visit for call in late}, "begun for nobody"
            retry = site.ask(prompt=visit.body["prompt"], seed=7, headers=MARKED, **fields)
            await retry
            assert (retry.status, len(retry.urls)) == (200, images)
            assert site.vendor.paid == paid + images
        await check_nothing_is_left(site)


@pytest.mark.slow
@cases
@in_virtual_time
async def test_what_nobody_was_given_is_the_next_one_s_though_it_is_no_retry(case: str) -> None:
    """Also where its client hung up just before the last byte, and it is in no cache."""
    site, fields, images = site_of(case)
    async with site:
        async for visit in leavings(site, seed=None, **fields):
            paid = site.vendor.paid
            await visit
            repeat = site.ask(prompt=visit.body["prompt"], seed=None, **fields)
            await repeat
            assert (repeat.status, len(repeat.urls)) == (200, images)
            is_new = visit.status == 200
            assert site.vendor.paid == paid + images * (1 + is_new)
        await check_nothing_is_left(site)


@pytest.mark.slow
@cases
@pytest.mark.parametrize("place", [0, 1], ids=["same worker", "other worker"])
@in_virtual_time
async def test_a_live_follower_is_served_whenever_its_leader_hangs_up(
    case: str, place: int
) -> None:
    site, fields, images = site_of(case, workers=2)
    async with site:
        async for visit in leavings(site, **fields):
            paid = site.vendor.paid
            await asyncio.sleep(0.0105)
            follower = site.ask(
                tenant="other", worker=place, prompt=visit.body["prompt"], seed=7, **fields
            )
            await follower
            assert (follower.status, len(follower.urls)) == (200, images)
            await visit
            assert site.vendor.paid == paid + images
        await check_nothing_is_left(site)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["one call", "back-off after a 429", "top-up"])
@in_virtual_time
async def test_a_follower_may_hang_up_at_any_moment(case: str) -> None:
    site, fields, images = site_of(case, workers=2)
    async with site:
        for step in range(1, STEPS_MAX):
            paid = site.vendor.paid
            leader = site.ask(prompt=f"fox {step}", seed=7, **fields)
            await asyncio.sleep(0.0105)
            follower = site.ask(tenant="other", worker=1, prompt=f"fox {step}", seed=7, **fields)
            follower.leaves_at = step
            await leader
            await follower
            assert (leader.status, len(leader.urls)) == (200, images)
            assert site.vendor.paid == paid + images
            await asyncio.sleep(GAP_S)
            if follower.status == 200:
                break
        await check_nothing_is_left(site)


@in_virtual_time
async def test_what_a_key_was_given_is_no_longer_for_the_next_without_one() -> None:
    """A picture whose client hung up goes to one other, by the key or by the body."""
    site = Site(config_of(Rate(None), ttl_s=10), Vendor(at_once))
    async with site:
        first = site.ask(prompt="a fox", seed=7)
        await asyncio.sleep(GENERATION_S / 2)
        first.hang_up()
        await first
        keyed = site.ask(prompt="a fox", seed=7, headers=[("idempotency-key", "order-4711")])
        await keyed
        await asyncio.sleep(11)
        anew = site.ask(prompt="a fox", seed=7)
        await anew
        assert keyed.headers["x-cache"] == "hit"
        assert anew.headers["x-cache"] == "miss"
        assert anew.urls != keyed.urls


@in_virtual_time
async def test_what_a_key_was_not_given_waits_for_the_key() -> None:
    """And is not the next one's without it, though both clients have hung up."""
    keyed = [("idempotency-key", "order-4711")]
    site = Site(config_of(Rate(None), ttl_s=10), Vendor(at_once))
    async with site:
        first, second = (site.ask(prompt="a fox", seed=7, headers=each) for each in ([], keyed))
        await asyncio.sleep(GENERATION_S / 2)
        first.hang_up()
        await asyncio.sleep(GENERATION_S / 4)
        second.hang_up()
        await first
        await second
        await asyncio.sleep(11)
        anew = site.ask(prompt="a fox", seed=7)
        await anew
        again = site.ask(prompt="a fox", seed=7, headers=keyed)
        await again
        assert (anew.headers["x-cache"], again.headers["x-cache"]) == ("miss", "replayed")
        assert anew.urls != again.urls


@in_virtual_time
async def test_what_is_given_to_a_retry_in_the_leader_s_last_moment_is_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store is slow to answer the end; the client hangs up, and its retry is served first."""
    ended = asyncio.Event()
    finish = Ledger.finish

    async def slow(*args: Any, **named: Any) -> Any:
        verdict = await finish(*args, **named)
        ended.set()
        await asyncio.sleep(0.5)
        return verdict

    monkeypatch.setattr(Ledger, "finish", slow)
    site = Site(config_of(Rate(None)), Vendor(at_once))
    async with site:
        first = site.ask(prompt="a fox")
        await ended.wait()
        first.hang_up()
        retry = site.ask(prompt="a fox", headers=MARKED)
        await retry
        await first
        anew = site.ask(prompt="a fox")
        await anew
        assert retry.headers["x-cache"] == "replayed"
        assert anew.urls != retry.urls


@pytest.mark.parametrize("half_ms", range(1, 8))
@in_virtual_time
async def test_what_was_made_is_kept_where_its_request_is_cut_off_as_it_ends(half_ms: int) -> None:
    """By the end of its worker: before the store is told, while it answers, or after that."""
    is_made = asyncio.Event()

    async def answered(call: Call) -> httpx.Response:
        try:
            return await made(call, GENERATION_S)
        finally:
            is_made.set()

    site = Site(config_of(Rate(None)), Vendor(answered), workers=2)
    async with site:
        leader = site.ask(prompt="a fox", seed=7)
        await asyncio.sleep(GENERATION_S / 2)
        follower = site.ask(tenant="other", worker=1, prompt="a fox", seed=7)
        await is_made.wait()
        await asyncio.sleep(half_ms * LINE_S / 2)
        assert leader.task is not None
        leader.task.cancel()
        await leader
        await follower
        assert follower.status == 200
        assert site.vendor.paid == 1
        await check_nothing_is_left(site)


@pytest.mark.slow
@cases
@in_virtual_time
async def test_a_time_out_is_told_early_while_the_work_goes_on(case: str) -> None:
    """504 once something is under way: the retry is given it, and pays only for the rest."""
    site, fields, images = site_of(case)
    told: set[int] = set()
    async with site:
        for step in range(STEPS_MAX):
            paid, timeout_s = site.vendor.paid, 0.1 * 1.1**step
            asked = {"prompt": f"fox {step}", "seed": 7, **fields}
            sdk_timeout_s = (
                max(timeout_s / 0.9, timeout_s + 1) if timeout_s > 9 else timeout_s / 0.9
            )
            patience = ("x-stainless-read-timeout", f"{sdk_timeout_s:.4f}")
            visit = site.ask(headers=[patience], **asked)
            await visit.until_answered()
            told.add(visit.status)
            if visit.status == 200:
                break
            assert visit.answered is not None
            if visit.status == 504:
                assert visit.headers["x-should-retry"] == "true"
                assert visit.answered - visit.began == pytest.approx(timeout_s, abs=0.01)
            else:
                assert visit.status in {503, 429}
            retry = site.ask(headers=MARKED, **asked)
            await retry
            assert (retry.status, len(retry.urls)) == (200, images)
            assert site.vendor.paid == paid + images
            await asyncio.sleep(GAP_S)
        await check_nothing_is_left(site)
    assert told >= ({200} if "slot" in case or "several" in case else {200, 504})

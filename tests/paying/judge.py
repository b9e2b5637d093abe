"""What must be true of a history of whole gateways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

from gateway.store.availability import StoreUnavailable
from gateway.tenants.admission import to_store_limits
from tests.paying.histories import (
    CACHE_S,
    GROUPS,
    LIMITS,
    SETTLED_S,
    WORKERS,
    Ask,
    Moods,
    World,
    config_of_all,
)
from tests.running import captured_logs
from tests.virtual_gateway import Call, SharedStore, Site, Vendor, Visit, now
from tests.virtual_time import run

SOON_S = 0.05
"""Two requests closer than this may not know of each other yet."""
ADOPTED_S = 55.0
EXCUSE_S = 60.0
REFUSALS = {400, 401, 422, 429}
STATUSES = {0, 200, 499, 502, 503, 504} | REFUSALS
"""Never a 500. 499 and 0: nobody is there to read the answer."""


class Judge:
    """What must be true of a history."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked = world.asked
        self._calls = world.site.vendor.calls

    async def judge(self) -> None:
        for visit, ask in self._asked.items():
            assert visit.status in STATUSES, f"{visit.status}: {visit.content!r}"
            self._check_payer(visit, ask)
            if visit.status == 200:
                self._check_images(visit, ask)
        for call in self._calls:
            if spared := self._needless(call):
                raise AssertionError(f"call {call.number} was paid, though {spared}")
        for tenant in GROUPS:
            await self._check_books(tenant)
        await self._check_nothing_is_left()
        self._check_nothing_is_kept_of_the_refused()

    # -- payments ≤ intents

    def _paid_by(self, visit: Visit) -> list[Call]:
        return [call for call in self._calls if call.visit is visit]

    def _check_payer(self, visit: Visit, ask: Ask) -> None:
        """For what it asked for at most, known or not; a refused one for nothing."""
        calls = self._paid_by(visit)
        known = sum(min(call.images, call.wanted) for call in calls if self._is_known(call))
        doubtful = sum(call.wanted for call in calls if not self._is_known(call))
        assert known + doubtful <= ask.images, "one request paid for more than it asked"
        if visit.status in REFUSALS and not self._failed_upstream(calls):
            assert not calls, f"{visit.status}, and yet it called"
        if ask.manner == "only-if-cached":
            assert not calls, "only-if-cached was paid for"

    def _failed_upstream(self, calls: list[Call]) -> bool:
        """The vendor's own 400 and 429 come back as such."""
        return any(not call.images for call in calls)

    def _is_known(self, call: Call) -> bool:
        """Whether somebody knows what it brought."""
        return call.is_heard and call.number not in self._world.moods.unknown

    def _needless(self, call: Call) -> str | None:
        """Why it should not have been made."""
        ask = self._asked[call.visit]
        for other, before in self._asked.items():
            if other is call.visit or before.kind != ask.kind:
                continue
            done = self._made_by(other, before)
            if done is None or other.began + SOON_S > call.visit.began:
                continue
            if self._world.is_troubled(other.began, call.began) or other.is_cut:
                continue
            if ask.is_shared and before.is_shared and call.began - done < CACHE_S - 1:
                return "another request's images were there for everyone"
            if self._is_adoptable(other, call, done):
                return "another attempt's images were there for this retry"
        return None

    def _made_by(self, visit: Visit, ask: Ask) -> float | None:
        """When a request had made all its images itself."""
        calls = [call for call in self._paid_by(visit) if call.images and self._is_known(call)]
        if sum(min(call.images, call.wanted) for call in calls) < ask.images:
            return None
        return max(call.ended or now() for call in calls)

    def _is_adoptable(self, other: Visit, call: Call, done: float) -> bool:
        one, two = self._asked[other], self._asked[call.visit]
        manners = {one.manner, two.manner}
        if one.tenant != two.tenant or manners != {"plain"} or not (one.is_plain and two.is_plain):
            return False
        if not two.is_retry or call.began - done > ADOPTED_S:
            return False
        return not any(
            ask.tenant == two.tenant
            and ask.work == two.work
            and visit.status >= 400
            and visit.answered is not None
            and call.began - EXCUSE_S <= visit.answered <= call.began
            for visit, ask in self._asked.items()
        )

    def _check_images(self, visit: Visit, ask: Ask) -> None:
        assert len(set(visit.urls)) == ask.images
        for url in visit.urls:
            number = int(urlsplit(url).path.strip("/").partition("-")[0])
            made_for = self._asked[self._calls[number].visit]
            assert made_for.kind == ask.kind, "another's image"

    # -- paid = booked + doubtful

    async def _check_books(self, tenant: str) -> None:
        world = self._world
        calls = [call for call in self._calls if self._asked[call.visit].tenant == tenant]
        lines = [line for line in world.lines() if line["tenant"] == tenant]
        known = sum(min(call.images, call.wanted) for call in calls if self._is_known(call))
        doubtful = sum(
            call.wanted for call in calls if call.is_heard and call.number in world.moods.unknown
        )
        recorded = sum(line["images"] for line in lines if not line.get("doubtful"))
        in_doubt = sum(line["images"] for line in lines if line.get("doubtful"))
        assert recorded == known, f"{tenant}: {recorded} recorded, {known} paid"
        assert in_doubt == doubtful, f"{tenant}: {in_doubt} recorded as doubtful, {doubtful} are"
        usage = await world.site.usage(tenant, to_store_limits(LIMITS[tenant]))
        booked = sum(use.images for use in usage.this_month.values())
        cost = sum(use.cost for use in usage.this_month.values())
        line_cost = sum(line["cost"] for line in lines)
        if not world.mishaps["lost"]:
            lost = sum(call.wanted for call in calls if self._is_lost(call))
            assert booked <= recorded + in_doubt, f"{tenant}: booked more than was paid"
            assert booked >= recorded + in_doubt - lost, f"{tenant}: {booked} booked of {recorded}"
            assert lost or cost == line_cost, f"{tenant}: {cost} booked, {line_cost} recorded"

    def _is_lost(self, call: Call) -> bool:
        """Whether a worker was killed before it had told the store what it knew."""
        world, ended = self._world, call.ended or now()
        return call.visit.is_cut or (
            world.mishaps["kill"] > 0 and world.is_troubled(ended - 1, ended + SETTLED_S)
        )

    # -- nothing without an owner

    async def _check_nothing_is_left(self) -> None:
        site = self._world.site
        for tenant in GROUPS:
            places = (await site.usage(tenant, to_store_limits(LIMITS[tenant]))).levels.concurrent
            assert places is not None
            assert places.remaining == places.limit, f"{tenant} holds a place"
        for worker in range(WORKERS):
            gauges = await site.metrics(worker)
            for name in ("gateway_queue_length", "gateway_settlements_owed"):
                assert not any(of for each, of in gauges.items() if name in each), name

    def _check_nothing_is_kept_of_the_refused(self) -> None:
        store = self._world.site.store
        kept = store.holds(store.refused - store.admitted - store.in_doubt)
        assert not kept, f"kept of the refused: {kept}"


BATCH = 20
"""Histories share their gateways with others, since making those takes longer than a history."""


def batch_of(number: int) -> range:
    """Histories that share their gateways with one, up to it."""
    return range(number - number % BATCH, number + 1)


async def live(numbers: range, store: SharedStore) -> Counter[str]:
    """Histories one after the other; counts what happened."""
    moods, seen = Moods(), Counter[str]()
    vendor = Vendor(moods.reply)
    async with Site(config_of_all(), vendor, WORKERS, store) as site:
        for number in numbers:
            world = World(site, moods, number)
            try:
                await world.live()
                await Judge(world).judge()
            except (AssertionError, StoreUnavailable, TimeoutError) as fault:
                raise AssertionError(f"history {number}: {fault}") from fault
            seen += world.mishaps
            seen.update(str(visit.status) for visit in world.asked)
            seen["calls"] += len(vendor.calls)
    return seen


def judge(numbers: range, store: SharedStore | None = None) -> Counter[str]:
    """Histories in virtual time, on fresh gateways for each batch."""
    seen = Counter[str]()
    with ExitStack() as stack:
        stack.enter_context(captured_logs())
        for batch in batches(numbers):
            seen += run(live(batch, store or SharedStore()))
    return seen


def batches(numbers: range) -> Iterator[range]:
    for first in range(numbers.start, numbers.stop, BATCH):
        yield range(first, min(first + BATCH, numbers.stop))

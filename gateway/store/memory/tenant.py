"""One tenant's limits in one process; `lua/limits/tenant.lua` keeps the same books."""

from __future__ import annotations

from collections import OrderedDict

from msgspec import Struct

from gateway.domain.clock import ZoneOffset, month_of, next_month
from gateway.store.limits import (
    CONCURRENCY_RETRY_MS,
    LEFT_KEPT,
    LEFT_KEPT_MS,
    FamilyUse,
    Limits,
    Reason,
    Reservation,
    Settlement,
    Verdict,
    level_of,
)
from gateway.store.memory.window import SECONDS, SlidingMinute


class Period:
    """What is reserved and used of a day's or month's budget, and use per family."""

    def __init__(self) -> None:
        self.name = 0
        self.booked = 0
        self.use: dict[str, FamilyUse] = {}

    def advance(self, name: int, following: int) -> None:
        """A period that began a moment ago is kept if the clock slips back before it."""
        if self.name not in {name, following}:
            self.name, self.booked, self.use = name, 0, {}

    def book(self, name: int, amount: int) -> None:
        if name == self.name:
            self.booked = max(0, self.booked + amount)

    def count(self, family: str, requests: int, images: int, cost: int) -> None:
        had = self.use.get(family, FamilyUse())
        self.use[family] = FamilyUse(had.requests + requests, had.images + images, had.cost + cost)


class Booking(Struct):
    """A reservation, its use, and the second, day and month in which it was counted."""

    images: int
    cost: int
    second: int
    day: int
    month: int
    used_images: int = 0
    used_cost: int = 0
    is_settled: bool = False
    is_counted: bool = False
    """The request is in its family's use already."""

    @property
    def is_free(self) -> bool:
        """Whether its request was admitted to pay for nothing."""
        return not (self.is_settled or self.images or self.cost)


class TenantBooks:
    """A request is *live* while its lease is, with or without a place of concurrency.

    After it left, only its id is remembered; after it expired, what it used stays booked and the
    booking may come back.
    """

    def __init__(self) -> None:
        self.now_ms = 0
        self._second = 0
        self._zone = ZoneOffset()
        self.requests = SlidingMinute()
        self.images = SlidingMinute()
        self.day = Period()
        self.month = Period()
        self._leases: dict[str, int] = {}
        """Expiry of live requests with a place of concurrency."""
        self._detached: dict[str, int] = {}
        """Expiry of those whose place a retry has taken over."""
        self._expiry_ms = 0
        """None ends before this, which saves a scan per request."""
        self._bookings: dict[str, Booking] = {}
        self._gone: OrderedDict[str, int] = OrderedDict()
        """When requests left, or expired."""

    def begin_operation(self, now_ms: int, zone: ZoneOffset) -> None:
        """Forget what is over, and give back what dead workers hold."""
        self.now_ms, self._zone = now_ms, zone
        self._second = self._steady(now_ms // 1000)
        self.requests.advance(self._second)
        self.images.advance(self._second)
        day = zone.day(now_ms)
        self.day.advance(day, day + 1)
        self.month.advance(month_of(day), month_of(day + 1))
        self._expire_leases()

    def _steady(self, second: int) -> int:
        """The windows' time does not go back, unless the clock was set back for good (0010)."""
        newest = max(self.requests.newest, self.images.newest)
        if newest <= second + SECONDS:
            return max(newest, second)
        self.requests.clear()
        self.images.clear()
        return second

    def _expire_leases(self) -> None:
        """Give back reserved images and money; the request itself and what it used stay."""
        if self.now_ms < self._expiry_ms:
            return
        for leases in (self._leases, self._detached):
            for id_ in [id_ for id_, expiry in leases.items() if expiry <= self.now_ms]:
                del leases[id_]
                one = self._bookings[id_]
                self._correct(one, one.used_images - one.images, one.used_cost - one.cost)
                self._remember_gone(id_)
        ends = [*self._leases.values(), *self._detached.values()]
        self._expiry_ms = min(ends, default=0)

    # -- what is known of a request

    def is_live(self, id_: str) -> bool:
        return id_ in self._leases or id_ in self._detached

    def has_left(self, id_: str) -> bool:
        return id_ in self._gone and id_ not in self._bookings

    def is_known(self, id_: str) -> bool:
        """Whether it was counted and has not left."""
        return id_ in self._bookings

    def has_passed(self, id_: str) -> bool:
        """Whether `admit_passing` counted it, and it holds nothing."""
        one = self._bookings.get(id_)
        return one is not None and one.is_counted and one.is_free and not self.is_live(id_)

    def is_over(self, id_: str) -> bool:
        one = self._bookings.get(id_)
        return one.is_settled if one else id_ in self._gone

    # -- admission

    def obstacle(
        self, limits: Limits, want: Reservation, former: str | None
    ) -> tuple[Reason | None, int | None]:
        """The blocking limit, and for how long. `former` may give up its place for this one."""
        if self._is_admitted(want):
            return None, None
        if _over(self.day.booked, want.images, limits.images_per_day):
            return Reason.IMAGES_PER_DAY, None
        if _over(self.month.booked, want.cost, limits.spend_per_month):
            return Reason.SPEND_PER_MONTH, None
        return self._rate_obstacle(limits, want, former, is_counted=self.is_known(want.id))

    def _is_admitted(self, want: Reservation) -> bool:
        """Whether a request has all that its place costs, its answer having been lost."""
        known = self._bookings.get(want.id)
        if known is None or self.has_passed(want.id):
            return False
        return not (known.is_free and (want.images or want.cost))

    def _rate_obstacle(
        self, limits: Limits, want: Reservation, former: str | None, *, is_counted: bool
    ) -> tuple[Reason | None, int | None]:
        requests_ms: int | None = 0
        if not is_counted:
            requests_ms = self._room_in_ms(self.requests, 1, limits.requests_per_minute)
        images_ms = self._room_in_ms(self.images, want.images, limits.images_per_minute)
        if images_ms is None or (requests_ms is not None and images_ms > requests_ms):
            return Reason.IMAGES_PER_MINUTE, images_ms
        if requests_ms != 0:
            return Reason.REQUESTS_PER_MINUTE, requests_ms
        has_room = former is not None or self.is_live(want.id)
        if not has_room and _over(len(self._leases), 1, limits.concurrent_requests):
            return Reason.CONCURRENT_REQUESTS, CONCURRENCY_RETRY_MS
        return None, None

    def may_take_place(self, former: str | None, limits: Limits) -> bool:
        """At most as many as there are places, lest repeats of one request count as one."""
        most = limits.concurrent_requests
        return former in self._leases and (most is None or len(self._detached) < most)

    def admit(self, want: Reservation, lease_ms: int, former: str | None) -> None:
        """Idempotent. `former` gives up its place."""
        if self._is_admitted(want):
            return
        if not self.is_known(want.id):
            self.requests.book(self._second, 1)
        if former is not None:
            self._detached[former] = self._leases.pop(former)
        self._reserve(want, lease_ms)

    def admit_passing(self, want: Reservation) -> None:
        """Count one that needs no place, since it is answered at once and does not leave.

        Where it never hears of that, or cannot read it, it may yet be admitted, pay, and leave.
        """
        self.requests.book(self._second, 1)
        self._count(want.family)
        self._bookings[want.id] = self._booking(0, 0, is_counted=True)
        self._remember_gone(want.id)

    def _reserve(self, want: Reservation, lease_ms: int) -> None:
        known = self._bookings.get(want.id)
        is_counted = known is not None and known.is_counted
        one = self._booking(want.images, want.cost, is_counted=is_counted)
        self._bookings[want.id] = one
        self._gone.pop(want.id, None)
        self._lease(want.id, lease_ms)
        self._correct(one, one.images, one.cost)

    def renew(self, want: Reservation, lease_ms: int) -> None:
        one = self._bookings.get(want.id)
        if one is None:
            if want.id not in self._gone:
                self.admit(want, lease_ms, None)
        elif one.is_free and (want.images or want.cost):
            self._reserve(want, lease_ms)
        else:
            if not self.is_live(want.id):
                self._gone.pop(want.id, None)
                one.images, one.cost = self._regrown(one, want)
                self._correct(one, one.images - one.used_images, one.cost - one.used_cost)
            self._lease(want.id, lease_ms)

    @staticmethod
    def _regrown(one: Booking, want: Reservation) -> tuple[int, int]:
        """The whole, where its use was heard of first."""
        if one.is_settled:
            return one.used_images, one.used_cost
        return max(one.images, want.images), max(one.cost, want.cost)

    # -- use

    def use(self, settlement: Settlement) -> None:
        one = self._booking_of(settlement)
        if one is not None and not one.is_settled:
            self._use(one, settlement)

    def settle(self, settlement: Settlement) -> None:
        one = self._booking_of(settlement)
        if one is None or one.is_settled:
            return
        self._use(one, settlement)
        if self.is_live(settlement.reservation):
            self._correct(one, one.used_images - one.images, one.used_cost - one.cost)
        one.images, one.cost, one.is_settled = one.used_images, one.used_cost, True
        if not one.is_counted:
            self._count(settlement.family)

    def leave(self, id_: str) -> None:
        """Free its place, and remember that it has left."""
        self._leases.pop(id_, None)
        self._detached.pop(id_, None)
        self._bookings.pop(id_, None)
        self._remember_gone(id_)

    def _booking_of(self, settlement: Settlement) -> Booking | None:
        """None: it has left. One that the store never saw was admitted elsewhere."""
        id_ = settlement.reservation
        one = self._bookings.get(id_)
        if one is None and id_ not in self._gone:
            self.requests.book(self._second, 1)
            one = self._bookings[id_] = self._booking(0, 0)
            self._remember_gone(id_)
        return one

    def _use(self, one: Booking, settlement: Settlement) -> None:
        """Absolute, and never less than before."""
        images = max(0, settlement.images - one.used_images)
        cost = max(0, settlement.cost - one.used_cost)
        is_live = self.is_live(settlement.reservation)
        booked = (one.images, one.cost) if is_live else (one.used_images, one.used_cost)
        one.used_images += images
        one.used_cost += cost
        one.images, one.cost = max(one.images, one.used_images), max(one.cost, one.used_cost)
        self._correct(one, max(0, one.used_images - booked[0]), max(0, one.used_cost - booked[1]))
        if images or cost:
            for period in (self.day, self.month):
                period.count(settlement.family, 0, images, cost)

    def _booking(self, images: int, cost: int, *, is_counted: bool = False) -> Booking:
        """Counted now."""
        times = self._second, self.day.name, self.month.name
        return Booking(images, cost, *times, is_counted=is_counted)

    def _count(self, family: str) -> None:
        for period in (self.day, self.month):
            period.count(family, 1, 0, 0)

    # -- levels

    def verdict(
        self, limits: Limits, reason: Reason | None = None, retry_after_ms: int | None = None
    ) -> Verdict:
        now_ms, zone = self.now_ms, self._zone
        day = self.day.name
        day_ms = zone.begins_ms(day + 1, now_ms) - now_ms
        month_ms = zone.begins_ms(next_month(zone.day(now_ms)), now_ms) - now_ms
        requests, images = self.requests, self.images
        return Verdict(
            allowed=reason is None,
            reason=reason,
            retry_after_ms=retry_after_ms,
            requests=level_of(
                limits.requests_per_minute, requests.total, requests.reset_ms(now_ms)
            ),
            images=level_of(limits.images_per_minute, images.total, images.reset_ms(now_ms)),
            concurrent=level_of(limits.concurrent_requests, len(self._leases), 0),
            day=level_of(limits.images_per_day, self.day.booked, day_ms),
            month=level_of(limits.spend_per_month, self.month.booked, month_ms),
        )

    def _lease(self, id_: str, lease_ms: int) -> None:
        leases = self._detached if id_ in self._detached else self._leases
        leases[id_] = self.now_ms + lease_ms
        self._expiry_ms = min(self._expiry_ms, leases[id_])

    def _room_in_ms(self, window: SlidingMinute, amount: int, limit: int | None) -> int | None:
        return 0 if limit is None else window.room_in_ms(amount, limit, self.now_ms)

    def _correct(self, one: Booking, images: int, cost: int) -> None:
        """Count more or less where and when it was booked."""
        self.images.book(one.second, images)
        self.day.book(one.day, images)
        self.month.book(one.month, cost)

    def _remember_gone(self, id_: str) -> None:
        self._gone[id_] = self.now_ms
        self._gone.move_to_end(id_)
        while len(self._gone) > LEFT_KEPT or self._oldest_gone_ms() > LEFT_KEPT_MS:
            forgotten, _ = self._gone.popitem(last=False)
            self._bookings.pop(forgotten, None)

    def _oldest_gone_ms(self) -> int:
        return self.now_ms - next(iter(self._gone.values()))


def _over(booked: int, more: int, limit: int | None) -> bool:
    """Adding nothing never passes."""
    return limit is not None and more > 0 and booked + more > limit

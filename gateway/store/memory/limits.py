"""Limits and usage of the tenants in one process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from msgspec import Struct

from gateway.store.base import (
    CONCURRENCY_RETRY_MS,
    SETTLED_KEPT,
    SETTLED_KEPT_MS,
    Limits,
    LimitStatus,
    ModelUse,
    Reason,
    Reservation,
    Settlement,
    TakeRequest,
    Usage,
    Verdict,
)
from gateway.store.memory.window import SECONDS, SlidingMinute

DAY_MS = 86_400_000


class MemoryLimits:
    """`clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._wall = clock
        self._tenants: dict[str, _Tenant] = {}

    async def take(self, ask: TakeRequest) -> Verdict:
        tenant = self._at_now(ask.tenant)
        reservation = ask.reservation
        grows = tenant.grows(reservation)
        if not grows and tenant.knows(reservation.id):
            return tenant.verdict(ask.limits)
        reason, retry_after_ms = tenant.obstacle(ask.limits, reservation, is_counted=grows)
        if reason is not None:
            return tenant.verdict(ask.limits, reason, retry_after_ms)
        if grows:
            tenant.hold(reservation, ask.lease_ms)
        else:
            tenant.book(reservation, ask.lease_ms)
        return tenant.verdict(ask.limits)

    async def renew(self, tenant: str, reservations: Sequence[Reservation], lease_ms: int) -> None:
        state = self._at_now(tenant, expire=False)
        for reservation in reservations:
            state.renew(reservation, lease_ms)

    async def release(self, settlement: Settlement) -> Verdict:
        state = self._at_now(settlement.tenant, expire=False)
        state.settle(settlement)
        state.expire()
        return state.verdict(settlement.limits)

    async def usage(self, tenant: str, limits: Limits) -> Usage:
        state = self._at_now(tenant)
        return Usage(tenant, state.verdict(limits), dict(state.day.use), dict(state.month.use))

    def _at_now(self, tenant: str, *, expire: bool = True) -> _Tenant:
        state = self._tenants.setdefault(tenant, _Tenant())
        state.advance(int(self._wall() * 1000))
        if expire:
            state.expire()
        return state


class _Period:
    """A calendar day or month: what is reserved and used of its budget, and use per model."""

    def __init__(self) -> None:
        self.name = 0
        self.booked = 0
        self.use: dict[str, ModelUse] = {}

    def advance(self, name: int, following: int) -> None:
        """A period that began a moment ago is kept if the clock slips back before it."""
        if self.name not in {name, following}:
            self.name, self.booked, self.use = name, 0, {}

    def book(self, name: int, amount: int) -> None:
        if name == self.name:
            self.booked = max(0, self.booked + amount)

    def count(self, settlement: Settlement) -> None:
        had = self.use.get(settlement.model, ModelUse())
        self.use[settlement.model] = ModelUse(
            had.requests + 1, had.images + settlement.images, had.cost + settlement.cost
        )


class _Booking(Struct):
    """A reservation with the second, day and month in which it was counted."""

    images: int
    cost: int
    second: int
    day: int
    month: int


class _Tenant:
    def __init__(self) -> None:
        self.now_ms = 0
        self._second = 0
        self.requests = SlidingMinute()
        self.images = SlidingMinute()
        self.day = _Period()
        self.month = _Period()
        self._leases: dict[str, int] = {}
        """Expiry of each live reservation."""
        self._expiry_ms = 0
        """None ends before this: many may be alive, and each settlement asks."""
        self._bookings: dict[str, _Booking] = {}
        self._gone: OrderedDict[str, int] = OrderedDict()
        """Settled reservations, and expired ones: these still have their booking."""

    def advance(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self._second = self._steady(now_ms // 1000)
        self.requests.advance(self._second)
        self.images.advance(self._second)
        day = now_ms // DAY_MS
        self.day.advance(day, day + 1)
        self.month.advance(_month(day), _month(day + 1))

    def _steady(self, second: int) -> int:
        """The windows' time does not go back, unless the clock was set back for good."""
        newest = max(self.requests.newest, self.images.newest)
        if newest <= second + SECONDS:
            return max(newest, second)
        self.requests.clear()
        self.images.clear()
        return second

    def expire(self) -> None:
        """Give back what dead workers hold: images and money, not the request itself."""
        if self.now_ms < self._expiry_ms:
            return
        expired = [id_ for id_, expiry in self._leases.items() if expiry <= self.now_ms]
        for id_ in expired:
            del self._leases[id_]
            booking = self._bookings[id_]
            self._correct(booking, -booking.images, -booking.cost)
            self._bury(id_)
        self._expiry_ms = min(self._leases.values(), default=0)

    def knows(self, id_: str) -> bool:
        return id_ in self._leases or id_ in self._gone

    def grows(self, want: Reservation) -> bool:
        """Whether a request that was admitted to pay for nothing is to pay now."""
        booking = self._bookings.get(want.id)
        if booking is None or booking.images or booking.cost:
            return False
        return want.images > 0 or want.cost > 0

    def obstacle(
        self, limits: Limits, want: Reservation, *, is_counted: bool
    ) -> tuple[Reason | None, int | None]:
        """The limit in the way, and how long; a request may have been counted before."""
        if _over(self.day.booked, want.images, limits.images_per_day):
            return Reason.IMAGES_PER_DAY, None
        if _over(self.month.booked, want.cost, limits.spend_per_month):
            return Reason.SPEND_PER_MONTH, None
        requests_ms: int | None = 0
        if not is_counted:
            requests_ms = self._room_in_ms(self.requests, 1, limits.requests_per_minute)
        images_ms = self._room_in_ms(self.images, want.images, limits.images_per_minute)
        if images_ms is None or (requests_ms is not None and images_ms > requests_ms):
            return Reason.IMAGES_PER_MINUTE, images_ms
        if requests_ms != 0:
            return Reason.REQUESTS_PER_MINUTE, requests_ms
        has_place = want.id in self._leases
        if not has_place and _over(len(self._leases), 1, limits.concurrent_requests):
            return Reason.CONCURRENT_REQUESTS, CONCURRENCY_RETRY_MS
        return None, None

    def book(self, reservation: Reservation, lease_ms: int) -> None:
        self.requests.book(self._second, 1)
        self.hold(reservation, lease_ms)

    def hold(self, reservation: Reservation, lease_ms: int) -> None:
        """Reserve for a request that has been counted."""
        booking = _Booking(
            reservation.images, reservation.cost, self._second, self.day.name, self.month.name
        )
        self._bookings[reservation.id] = booking
        self._gone.pop(reservation.id, None)
        self._lease(reservation.id, lease_ms)
        self._correct(booking, booking.images, booking.cost)

    def renew(self, reservation: Reservation, lease_ms: int) -> None:
        id_ = reservation.id
        if self.grows(reservation):
            self.hold(reservation, lease_ms)
        elif id_ in self._leases:
            self._lease(id_, lease_ms)
        elif booking := self._bookings.get(id_):
            del self._gone[id_]
            self._lease(id_, lease_ms)
            self._correct(booking, booking.images, booking.cost)
        elif id_ not in self._gone:
            self.book(reservation, lease_ms)

    def settle(self, settlement: Settlement) -> None:
        id_ = settlement.reservation
        booking = self._bookings.pop(id_, None)
        if booking is None:
            if id_ in self._gone:
                return
            self.requests.book(self._second, 1)
            booking = _Booking(0, 0, self._second, self.day.name, self.month.name)
        if self._leases.pop(id_, None) is None:
            # Expired or never seen: nothing is booked that could be given back.
            booking.images = booking.cost = 0
        self._correct(booking, settlement.images - booking.images, settlement.cost - booking.cost)
        self.day.count(settlement)
        self.month.count(settlement)
        self._bury(id_)

    def verdict(
        self, limits: Limits, reason: Reason | None = None, retry_after_ms: int | None = None
    ) -> Verdict:
        now_ms = self.now_ms
        day_ms, month_ms = _until_next_day_ms(now_ms), _until_next_month_ms(now_ms)
        requests, images = self.requests, self.images
        return Verdict(
            allowed=reason is None,
            reason=reason,
            retry_after_ms=retry_after_ms,
            requests=_level(limits.requests_per_minute, requests.total, requests.reset_ms(now_ms)),
            images=_level(limits.images_per_minute, images.total, images.reset_ms(now_ms)),
            concurrent=_level(limits.concurrent_requests, len(self._leases), 0),
            day=_level(limits.images_per_day, self.day.booked, day_ms),
            month=_level(limits.spend_per_month, self.month.booked, month_ms),
        )

    def _lease(self, id_: str, lease_ms: int) -> None:
        self._leases[id_] = self.now_ms + lease_ms
        self._expiry_ms = min(self._expiry_ms, self._leases[id_])

    def _room_in_ms(self, window: SlidingMinute, amount: int, limit: int | None) -> int | None:
        return 0 if limit is None else window.room_in_ms(amount, limit, self.now_ms)

    def _correct(self, booking: _Booking, images: int, cost: int) -> None:
        """Count more or less for a booking, where and when it was made."""
        self.images.book(booking.second, images)
        self.day.book(booking.day, images)
        self.month.book(booking.month, cost)

    def _bury(self, id_: str) -> None:
        self._gone[id_] = self.now_ms
        self._gone.move_to_end(id_)
        while len(self._gone) > SETTLED_KEPT or self._oldest_gone_ms() > SETTLED_KEPT_MS:
            forgotten, _ = self._gone.popitem(last=False)
            self._bookings.pop(forgotten, None)

    def _oldest_gone_ms(self) -> int:
        return self.now_ms - next(iter(self._gone.values()))


def _over(booked: int, more: int, limit: int | None) -> bool:
    """Whether `more` passes the limit; nothing more never does."""
    return limit is not None and more > 0 and booked + more > limit


def _level(limit: int | None, used: int, reset_ms: int) -> LimitStatus | None:
    return None if limit is None else LimitStatus(limit, max(0, limit - used), reset_ms)


@lru_cache(maxsize=8)
def _month(day: int) -> int:
    """The month in which a day lies, both numbered."""
    date = datetime.fromtimestamp(day * DAY_MS // 1000, UTC)
    return date.year * 100 + date.month


def _until_next_day_ms(now_ms: int) -> int:
    return DAY_MS - now_ms % DAY_MS


def _until_next_month_ms(now_ms: int) -> int:
    now = datetime.fromtimestamp(now_ms // 1000, UTC)
    month_end = (now.replace(day=1) + timedelta(days=31)).replace(day=1, hour=0, minute=0, second=0)
    return round(month_end.timestamp() * 1000) - now_ms

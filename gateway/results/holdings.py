"""What this worker holds of the store: reservations, and the generations that it leads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from msgspec import Struct
from msgspec.structs import replace

from gateway.results.followers import GenerationKey, Waiters
from gateway.store.generations import Entry, Leadership, Parts
from gateway.store.limits import Reservation, Settlement

NOTHING: frozenset[int] = frozenset()
"""Shared: an empty set takes 0.2 KiB."""


class LeaseTimes(Struct, frozen=True):
    """How long what a worker holds outlives it, and how often it shows itself; in seconds."""

    lead_s: float = 10.0
    lease_s: float = 30.0
    longest_s: float = 3600.0
    """A generation that has not ended by then is given up as forgotten."""
    beat_s: float = 0.5
    """Between two looks for other workers: until then this worker's shares are too large."""

    @property
    def lead_ms(self) -> int:
        return round(self.lead_s * 1000)

    @property
    def lease_ms(self) -> int:
        return round(self.lease_s * 1000)


class LedGeneration:
    __slots__ = (
        "entry", "is_fenced", "is_stored", "leadership", "paid", "parts", "unsaved", "until",
        "waiters",
    )  # fmt: skip

    def __init__(
        self,
        entry: Entry,
        leadership: Leadership,
        parts: Parts,
        *,
        until: float,
        paid: Settlement,
    ) -> None:
        self.entry = entry
        self.leadership = leadership
        self.parts = dict(parts)
        self.until = until
        """When it counts as forgotten, in the event loop's seconds."""
        self.paid = paid
        """What its leader has paid for, as of its last part."""
        self.waiters: Waiters = {}
        self.unsaved = NOTHING
        """Parts that the store does not know."""
        self.is_stored = False
        """Whether the store has ever known it."""
        self.is_fenced = False

    @property
    def key(self) -> GenerationKey:
        return self.leadership.scope, self.leadership.id


class Holdings:
    """Bookkeeping only: nothing here waits or asks."""

    def __init__(self) -> None:
        self._led: dict[str, dict[str, LedGeneration]] = {}
        """By scope and id."""
        self._reservations: dict[str, dict[str, Reservation]] = {}
        """By tenant and id."""

    @property
    def leading(self) -> int:
        return sum(len(generations) for generations in self._led.values())

    def scopes(self) -> set[str]:
        return set(self._led)

    def tenants(self) -> list[str]:
        return list(self._reservations)

    def reservations(self, tenant: str) -> list[Reservation]:
        return list(self._reservations.get(tenant, {}).values())

    def generations(self, scope: str | None = None) -> list[LedGeneration]:
        if scope is not None:
            return list(self._led.get(scope, {}).values())
        return list(self._all())

    def _all(self) -> Iterator[LedGeneration]:
        return chain.from_iterable(generations.values() for generations in self._led.values())

    def find(self, key: GenerationKey) -> LedGeneration | None:
        scope, id_ = key
        return self._led.get(scope, {}).get(id_)

    def of(self, leadership: Leadership) -> LedGeneration | None:
        """The generation, if this is still its leader here."""
        generation = self.find((leadership.scope, leadership.id))
        return generation if generation and generation.leadership == leadership else None

    def lead(self, generation: LedGeneration) -> None:
        scope, id_ = generation.key
        self._led.setdefault(scope, {})[id_] = generation

    def forget(self, generation: LedGeneration) -> None:
        scope, id_ = generation.key
        generations = self._led[scope]
        del generations[id_]
        if not generations:
            del self._led[scope]

    def reserve(self, tenant: str, reservation: Reservation) -> None:
        self._reservations.setdefault(tenant, {})[reservation.id] = reservation

    def settle(self, settlement: Settlement) -> None:
        """Book the rest only if the store loses it; the place stays held."""
        held = self._reservations.get(settlement.tenant, {})
        reservation = held.get(settlement.reservation)
        if reservation is not None:
            held[reservation.id] = replace(reservation, images=0, cost=0)

    def release(self, settlement: Settlement) -> None:
        held = self._reservations.get(settlement.tenant, {})
        held.pop(settlement.reservation, None)
        if not held:
            self._reservations.pop(settlement.tenant, None)

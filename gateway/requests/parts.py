"""The images of a request of several calls, as each call brings them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from gateway.results import Lead
from gateway.translate.request import Plan


class Part(Struct, frozen=True):
    """Some images of a request before it has all; they are paid for and kept."""

    lead: Lead
    urls: Sequence[str]
    first: int
    """The index of its first image in the request."""
    deadline: float
    """Until when they can be fetched, in steady seconds."""


class Parts:
    def __init__(
        self, lead: Lead, plan: Plan, give: Callable[[Part], object], deadline: float
    ) -> None:
        self._lead = lead
        self._give = give
        self._deadline = deadline
        self._wanted = [call.parameters.n or 1 for call in plan.calls]
        self._given = [0] * len(plan.calls)

    def brought(self, index: int, urls: Sequence[str]) -> None:
        """All images of one call so far."""
        wanted, given = self._wanted[index], self._given[index]
        fresh = urls[given:wanted]
        if fresh:
            self._given[index] += len(fresh)
            first = sum(self._wanted[:index]) + given
            self._give(Part(self._lead, fresh, first, self._deadline))

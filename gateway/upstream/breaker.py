"""A circuit breaker per account and model: closed → open → probing, on a given clock.

           too many failures in a row
    closed ──────────────────────────▶ open ◀───────────┐
      ▲                                 │ after its rest │ the probe failed: twice the rest
      │ the probe succeeded             ▼                │
      └────────────────────────────── probing ───────────┘

While probing, exactly one call is let through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "probing"]

FAILURES_TO_OPEN = 10
FIRST_REST_S = 1.0
LONGEST_REST_S = 30.0


class Breaker:
    """State for one account and model. `clock` gives seconds and only moves forward."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._rest_s = FIRST_REST_S
        self._probe_from = 0.0
        self._probe_until = 0.0

    @property
    def state(self) -> State:
        """What the next caller would meet."""
        if self._failures < FAILURES_TO_OPEN:
            return "closed"
        return "open" if self._clock() < self._probe_from else "probing"

    def rest_s(self) -> float:
        """Seconds until a call may be tried; 0 for now."""
        if self.state == "closed":
            return 0.0
        return max(self._probe_from - self._clock(), self._probe_until - self._clock(), 0.0)

    def admit(self, probe_s: float) -> bool:
        """Whether a call may go out now; a probe holds the place for at most `probe_s` seconds."""
        if self.rest_s() > 0:
            return False
        if self.state == "probing":
            self._probe_until = self._clock() + probe_s
        return True

    def succeeded(self) -> None:
        self._failures = 0
        self._rest_s = FIRST_REST_S

    def failed(self) -> None:
        """One failure: the last of too many in a row opens, and a failed probe doubles the rest."""
        if self.state == "probing":
            self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)
        self._failures += 1
        self._probe_until = 0.0
        self._probe_from = self._clock() + self._rest_s

    def abandoned(self) -> None:
        """A call ended without telling whether the account is well: another may probe."""
        self._probe_until = 0.0

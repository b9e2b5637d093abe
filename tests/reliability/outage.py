"""A steady load over the loss of Redis, and what its clients saw."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from tests.figures import Figure
from tests.reliability.client import (
    Answer,
    Load,
    between,
    get,
    percentile_ms,
    statuses,
)
from tests.reliability.fleet import Fleet

LIMIT = 40
"""A minute, of the tenant whose admissions are counted."""
PER_SECOND = {"free": 20.0, "tight": 30.0, "budget": 10.0}
BEFORE_S = 1.2
AFTER_S = 1.5
RECOVERED_WITHIN_S = 10.0
"""1 or 2 where nothing else runs; another one each time that the machine holds up a trial."""
READY_WITHIN_S = 10.0
"""Rather less than 2 on a machine that is not busy."""
LOOKED_FOR_S = 20.0
READY_IN_A_ROW = 12
"""Any of four workers answers; so many in a row are all of them, but for 1 in 8 of 100 times."""


def tenants(*cases: str) -> dict[str, dict[str, Any]]:
    """Three for each case: one far from its limit, one over it, and one with a budget."""
    limits: dict[str, dict[str, Any]] = {
        "free": {"requests_per_minute": 100_000},
        "tight": {"requests_per_minute": LIMIT},
        "budget": {"images_per_day": 1_000_000},
    }
    return {f"{case}-{name}": limit for case in cases for name, limit in limits.items()}


class Story(NamedTuple):
    """An outage as its clients saw it; answers by tenant."""

    answers: dict[str, list[Answer]]
    lost_at: float
    back_at: float
    """When Redis answered again."""
    ready_s: float
    """From then until every /readyz said so."""

    @property
    def everyone(self) -> list[Answer]:
        return [answer for answers in self.answers.values() for answer in answers]

    @property
    def admitted(self) -> int:
        """Of the tenant over its limit, which sent far more; all of it within 60 seconds."""
        tight = self.answers["tight"]
        assert max(answer.at for answer in tight) - min(answer.at for answer in tight) < 60
        return statuses(tight).get(200, 0)

    @property
    def recovered_s(self) -> float:
        """From Redis' return to the last answer that still missed it."""
        failed = [a.at + a.took_s for a in self.everyone if a.status >= 500 or a.status == 0]
        return max([0.0, *(at - self.back_at for at in failed)])

    def added_ms(self) -> float:
        """To the median of a request after the first second."""
        later = between(self.everyone, self.lost_at + 1, self.back_at)
        before = between(self.everyone, 0, self.lost_at)
        return percentile_ms(later, 50) - percentile_ms(before, 50)

    def lines(self) -> list[str]:
        """The figures, a line each."""
        phases = {
            "before": (0.0, self.lost_at),
            "first second": (self.lost_at, self.lost_at + 1),
            "later": (self.lost_at + 1, self.back_at),
            "after": (max(self.back_at, self.lost_at + 1), time.time()),
        }
        lines = []
        for phase, (start, end) in phases.items():
            found = between(self.everyone, start, end)
            quick, slow = percentile_ms(found, 50), percentile_ms(found, 99)
            lines.append(f"{phase:13} {statuses(found)}, p50 {quick:.1f} ms, p99 {slow:.1f} ms")
        lines.append(
            f"away for {self.back_at - self.lost_at:.2f} s; last failure {self.recovered_s:.2f} s "
            f"and /readyz {self.ready_s:.2f} s after its return; "
            f"{self.admitted} admitted of a limit of {LIMIT}"
        )
        return lines


def check(story: Story, bound: int, figure: Figure) -> None:
    """What holds whatever becomes of Redis; `bound` is what is promised for a minute."""
    for line in story.lines():
        figure(line)
    assert set(statuses(story.answers["free"])) == {200}
    assert set(statuses(story.answers["tight"])) == {200, 429}
    assert set(statuses(story.answers["budget"])) <= {200, 503}
    assert LIMIT / 2 < story.admitted < bound
    assert story.recovered_s < RECOVERED_WITHIN_S
    assert story.ready_s < READY_WITHIN_S
    well = between(story.answers["budget"], story.back_at + story.ready_s, time.time())
    assert 200 in statuses(well), "its budget is not counted again"


async def tell(
    fleet: Fleet,
    case: str,
    lose: Callable[[], Awaitable[None]],
    back: Callable[[], Awaitable[None]],
) -> Story:
    """Load, loss, return; `lose` and `back` end when Redis has gone and come back."""
    names = {fleet.keys[f"{case}-{name}"]: name for name in PER_SECOND}
    load = Load(fleet.ports, {key: PER_SECOND[name] for key, name in names.items()})
    await asyncio.sleep(BEFORE_S)
    lost_at = time.time()
    await lose()
    await back()
    back_at = time.time()
    ready_s = await until_ready(fleet.ports)
    await asyncio.sleep(AFTER_S)
    await load.end()
    answers = {names[key]: found for key, found in load.answers.items()}
    return Story(answers, lost_at, back_at, ready_s)


async def until_ready(ports: Sequence[int]) -> float:
    """Until no worker is without the store; how long one was."""
    started = time.monotonic()
    ready_s, in_a_row = 0.0, 0
    while in_a_row < READY_IN_A_ROW:
        answers = await asyncio.gather(*(get(port, "/readyz") for port in ports))
        if all(answer.body["status"] == "ready" for answer in answers):
            in_a_row += 1
        else:
            in_a_row = 0
            ready_s = time.monotonic() - started
        assert time.monotonic() - started < LOOKED_FOR_S, answers
    return ready_s

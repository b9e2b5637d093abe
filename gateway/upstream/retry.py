"""Whether a failed call is sent again, and after how long. Pure: chance and time are arguments."""

from __future__ import annotations

from gateway.translate.failure import Remedy, UpstreamFailure

ATTEMPTS = 4
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 8.0
JITTER = 0.25
PATIENCE_S = 10.0
"""The client decides on a longer wait."""

RESENDABLE = frozenset({Remedy.RESEND, Remedy.THROTTLED, Remedy.OTHER_ACCOUNT})
"""Failures after which nothing was generated, so that sending again cannot pay twice."""


def wait_s(
    failure: UpstreamFailure, attempt: int, chance: float, left_s: float, *, other_account: bool
) -> float | None:
    """Seconds to wait before sending again; None if the failure is to be shown.

    `attempt` counts from 1, `chance` is in [0, 1), `left_s` is the time to the deadline. The
    vendor's own Retry-After is obeyed in full, or passed on to the client at once.
    """
    if failure.remedy not in RESENDABLE or attempt >= ATTEMPTS:
        return None
    if other_account:
        return 0.0
    if failure.remedy is Remedy.OTHER_ACCOUNT:
        return None
    backoff = min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S) * (1 - JITTER * chance)
    told = failure.error.retry_after_s
    wait = backoff if told is None else max(told, backoff)
    return wait if wait < min(left_s, PATIENCE_S) else None

"""Verdicts in words: the headers that say where limits stand, and the errors that refuse."""

from __future__ import annotations

import math

from gateway.domain.errors import (
    BudgetExhausted,
    GatewayError,
    LargerThanLimit,
    RateLimited,
    ServiceUnavailable,
)
from gateway.store.limits import Limits, LimitStatus, Reason, Reservation, Verdict

WHAT = {
    Reason.REQUESTS_PER_MINUTE: "requests per minute",
    Reason.IMAGES_PER_MINUTE: "images per minute",
    Reason.CONCURRENT_REQUESTS: "concurrent requests",
    Reason.IMAGES_PER_DAY: "images per day",
    Reason.SPEND_PER_MONTH: "spend per month",
}


def rate_headers(verdict: Verdict) -> dict[str, str]:
    """OpenAI writes the reset of requests as a duration ("1.5s") and that of images as seconds."""
    headers: dict[str, str] = {}
    if verdict.requests is not None:
        headers |= level_headers("requests", verdict.requests)
        headers["x-ratelimit-reset-requests"] = f"{verdict.requests.reset_ms / 1000:g}s"
    if verdict.images is not None:
        headers |= level_headers("images", verdict.images)
        headers["x-ratelimit-reset-images"] = str(math.ceil(verdict.images.reset_ms / 1000))
    return headers


def level_headers(what: str, level: LimitStatus) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(level.limit),
        f"x-ratelimit-remaining-{what}": str(level.remaining),
    }


def refusal(
    verdict: Verdict, limits: Limits, wanted: Reservation, zone: str = "UTC"
) -> GatewayError:
    """The error for a refusal, in words that say what to do."""
    wait_s = None if verdict.retry_after_ms is None else verdict.retry_after_ms / 1000
    reason = verdict.reason
    if reason is None or reason is Reason.STORE_UNAVAILABLE:
        message = "The gateway cannot check this tenant's limits just now; try again."
        return ServiceUnavailable(message, retry_after_s=wait_s)
    if reason is Reason.IMAGES_PER_DAY:
        return day_refusal(verdict.day, limits.images_per_day, wanted.images, zone)
    if reason is Reason.SPEND_PER_MONTH:
        return month_refusal(verdict.month, limits.spend_per_month, wanted.cost, zone)
    most = limits.images_per_minute
    # Asked of the limit itself: without the store, the verdict is on this worker's share of it.
    if reason is Reason.IMAGES_PER_MINUTE and most is not None and wanted.images > most:
        return LargerThanLimit(
            f"This request asks for {wanted.images} images, and this tenant may make {most} per "
            f"minute: ask for at most {most} at a time.",
            param="n",
        )
    when = "later" if wait_s is None else f"in {wait_s:.3g} s"
    return RateLimited(
        f"Rate limit reached: {WHAT[reason]}. Try again {when}.", retry_after_s=wait_s
    )


def day_refusal(
    level: LimitStatus | None, budget: int | None, images: int, zone: str
) -> BudgetExhausted:
    """More than what is left of the day's images, or more than all of them."""
    if budget is not None and images > budget:
        return BudgetExhausted(
            f"This request asks for {images} images, and this tenant's whole budget is {budget} "
            f"per day: ask for at most {budget} at a time.",
            param="n",
        )
    if level is not None and level.remaining:
        return BudgetExhausted(
            f"This request asks for {images} images, and this tenant's budget for today has "
            f"{level.remaining} left: ask for fewer, or wait for midnight {zone}.",
            param="n",
        )
    return BudgetExhausted(
        f"This tenant's budget of images per day is used up; it starts again at midnight {zone}."
    )


def month_refusal(
    level: LimitStatus | None, budget: int | None, cost: int, zone: str
) -> BudgetExhausted:
    """More than what is left of the month's money, or more than all. Amounts are not shown."""
    if budget is not None and cost > budget:
        return BudgetExhausted(
            "This request alone costs more than this tenant's whole budget of spend per month: "
            "ask for fewer images or a cheaper model."
        )
    if level is not None and level.remaining:
        return BudgetExhausted(
            "This request costs more than is left of this tenant's budget of spend per month: ask "
            f"for fewer images or a cheaper model, or wait for the next month ({zone})."
        )
    return BudgetExhausted(
        "This tenant's budget of spend per month is used up; it starts again with the next month "
        f"({zone})."
    )

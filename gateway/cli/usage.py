"""`gateway usage`: what each tenant has used and has left, and sums of the usage record."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gateway.config import Config, Tenant
from gateway.domain.clock import find_zone
from gateway.domain.prices import Money
from gateway.store.limits import FamilyUse, LimitStatus, LimitStore, Usage
from gateway.tenants.admission import to_store_limits
from gateway.tenants.usage_log import Dimension, Total, files, read, sum_by, to_dimensions


async def read_usage(store: LimitStore, tenants: Iterable[Tenant]) -> list[Usage]:
    """Raises StoreUnavailable."""
    return [await store.usage(t.name, to_store_limits(t.limits)) for t in tenants]


def as_json(usages: Iterable[Usage], currency: str) -> str:
    """Money in units of the currency."""
    document = {
        "currency": currency,
        "tenants": [
            {
                "tenant": usage.tenant,
                "today": models_json(usage.today),
                "this_month": models_json(usage.this_month),
                "limits": limits_json(usage),
            }
            for usage in usages
        ],
    }
    return msgspec.json.format(msgspec.json.encode(document)).decode()


def models_json(use: Mapping[str, FamilyUse]) -> dict[str, dict[str, object]]:
    return {
        model: {"requests": u.requests, "images": u.images, "cost": str(Money(u.cost))}
        for model, u in sorted(use.items())
    }


def limits_json(usage: Usage) -> dict[str, dict[str, object]]:
    """The limits that the tenant has, and what is left of each."""
    found = {name: level for name, level, _ in levels(usage) if level is not None}
    return {
        name: {"limit": shown(name, level.limit), "remaining": shown(name, level.remaining)}
        for name, level in found.items()
    }


def levels(usage: Usage) -> list[tuple[str, LimitStatus | None, str]]:
    """Each limit's name as in the configuration, its level, and its short heading."""
    verdict = usage.levels
    return [
        ("requests_per_minute", verdict.requests, "req/min"),
        ("images_per_minute", verdict.images, "img/min"),
        ("concurrent_requests", verdict.concurrent, "running"),
        ("images_per_day", verdict.day, "img/day"),
        ("spend_per_month", verdict.month, "spend/month"),
    ]


def shown(name: str, amount: int) -> str | int:
    """Money in units, everything else as it is."""
    return str(Money(amount)) if name == "spend_per_month" else amount


def as_table(usages: Iterable[Usage], config: Config) -> str:
    lines: list[str] = []
    for usage in usages:
        left = ", ".join(
            f"{heading} {shown(name, level.remaining)} of {shown(name, level.limit)} left"
            for name, level, heading in levels(usage)
            if level is not None
        )
        lines.append(f"{usage.tenant}: {left or 'no limits'}")
        rows = [*rows_of("today", usage.today), *rows_of("this month", usage.this_month)]
        lines.extend(rows or ["  nothing used this month"])
    heading = f"  {'':12}{'model':28}{'requests':>10}{'images':>8}{config.catalogue.currency:>12}"
    return "\n".join([heading, *lines])


def rows_of(period: str, use: Mapping[str, FamilyUse]) -> list[str]:
    """One line a model, and their sum."""
    every = [*sorted(use.items())]
    if len(every) > 1:
        total = FamilyUse(
            sum(u.requests for u in use.values()),
            sum(u.images for u in use.values()),
            sum(u.cost for u in use.values()),
        )
        every.append(("total", total))
    return [
        f"  {period:12}{model:28}{u.requests:>10}{u.images:>8}{Money(u.cost)!s:>12}"
        for model, u in every
    ]


Sums = Mapping[tuple[str, ...], Total]
"""Totals by their place on each dimension."""


def recorded(
    config: Config, tenant: str | None, since: datetime | None, by: str, *, json: bool
) -> str:
    """The sums of the usage record and its rotated files; torn lines go to standard error.

    Raises ValueError for no record, dimension or tenant, OSError if it cannot be read.
    """
    if config.usage_log is None:
        raise ValueError("The configuration has no `usage_log:`, so nothing was recorded.")
    dimensions = to_dimensions(by)
    zone = find_zone(config.budgets.time_zone) or UTC
    start = since.replace(tzinfo=since.tzinfo or zone) if since else None
    found = files(Path(config.usage_log))
    if not found:
        raise ValueError(f"There is no {config.usage_log}: no gateway has recorded there yet.")
    lines = (line for file in found for line in read(file, start, tell))
    sums = sum_by((line for line in lines if tenant in (None, line.tenant)), dimensions, zone)
    # One who was taken out of the configuration may still be in the record.
    if tenant and not sums and all(tenant != known.name for known in config.tenants):
        raise ValueError(f"No tenant named {tenant!r} in the configuration or the usage record.")
    show = sums_json if json else sums_table
    return show(sums, dimensions, config.catalogue.currency)


def tell(sentence: str) -> None:
    """Standard error is for people, standard output for the sums."""
    sys.stderr.write(f"{sentence}\n")


def sums_json(sums: Sums, dimensions: tuple[Dimension, ...], currency: str) -> str:
    """Money in units of the currency, as a text, so that nothing rounds it."""
    rows = [
        {**dict(zip(dimensions, place, strict=True)), **total_json(total)}
        for place, total in sums.items()
    ]
    whole = total_json(total_of(sums))
    document = {"currency": currency, "by": dimensions, "rows": rows, "total": whole}
    return msgspec.json.format(msgspec.json.encode(document)).decode()


def total_json(total: Total) -> dict[str, object]:
    cost = str(Money(total.cost))
    known: dict[str, object] = {
        "generations": total.generations,
        "images": total.images,
        "cost": cost,
    }
    if total.doubtful:
        doubtful_cost = str(Money(total.doubtful_cost))
        known |= {"doubtful_images": total.doubtful, "doubtful_cost": doubtful_cost}
    return known


def total_of(sums: Sums) -> Total:
    whole = Total()
    for total in sums.values():
        whole.generations += total.generations
        whole.images += total.images
        whole.cost += total.cost
        whole.doubtful += total.doubtful
        whole.doubtful_cost += total.doubtful_cost
    return whole


def sums_table(sums: Sums, dimensions: tuple[Dimension, ...], currency: str) -> str:
    last = ("total", *[""] * (len(dimensions) - 1))
    rows = [
        (*place, str(total.generations), str(total.images), str(Money(total.cost)))
        for place, total in [*sums.items(), (last, total_of(sums))]
    ]
    heading = (*dimensions, "generations", "images", currency)
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    lines = [in_columns(row, widths, len(dimensions)) for row in (heading, *rows)]
    whole = total_of(sums)
    if whole.doubtful:
        lines.append(
            f"Beside these, {whole.doubtful} images of calls whose outcome nobody knows: "
            f"{Money(whole.doubtful_cost)} {currency} if the vendor billed them."
        )
    return "\n".join(lines)


def in_columns(row: tuple[str, ...], widths: list[int], texts: int) -> str:
    """One line: so many texts, then numbers."""
    cells = zip(row, widths, strict=True)
    placed = [t.ljust(w) if i < texts else t.rjust(w) for i, (t, w) in enumerate(cells)]
    return "  ".join(placed)

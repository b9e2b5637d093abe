"""What images cost: by size, by the region of the account that makes them, by account."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Annotated, Protocol, Self

from msgspec import Meta, Struct

MOST_MICROS = 2**53


class Money(Struct, frozen=True, order=True):
    """An amount in millionths of the catalogue's currency, so that sums are exact."""

    micros: int

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a number such as 0.25. Raises ValueError: negative, huge, over six decimals."""
        try:
            micros = Decimal(str(value)) * 1_000_000
        except InvalidOperation:
            micros = Decimal(-1)
        # Redis counts in doubles, which are exact up to there.
        is_amount = micros.is_finite() and 0 <= micros <= MOST_MICROS and not micros % 1
        if isinstance(value, bool) or not is_amount:
            raise ValueError(
                f"expected an amount from 0 to {MOST_MICROS // 1_000_000} with at most six decimals"
            )
        return cls(int(micros))

    def __str__(self) -> str:
        return f"{Decimal(self.micros) / 1_000_000:f}"


class Price(Struct, frozen=True):
    """What an image costs up to an area in pixels; the last tier has no bound."""

    cost: Money
    up_to: Annotated[int, Meta(ge=1)] | None = None


Tiers = tuple[Price, ...]
"""From the smallest images to the largest."""
PriceLists = tuple[Tiers, ...]
"""All that may hold; the dearest counts."""


class Sized(Protocol):
    @property
    def area(self) -> int:
        """Pixels."""


def dearest(lists: Iterable[Tiers], size: Sized | None) -> Money:
    """The price of one image by the dearest list; None is an unknown size."""
    return max(price_of(tiers, size) for tiers in lists)


def price_of(tiers: Tiers, size: Sized | None) -> Money:
    """By one list; the dearest tier where the model chooses the size."""
    if size is not None:
        for tier in tiers:
            if tier.up_to is None or size.area <= tier.up_to:
                return tier.cost
    return max(tier.cost for tier in tiers)


HOSTS = {
    "dashscope.aliyuncs.com": "cn-beijing",
    "dashscope-intl.aliyuncs.com": "ap-southeast-1",
    "dashscope-us.aliyuncs.com": "us-east-1",
    **dict.fromkeys(("127.0.0.1", "localhost", "::1"), "cn-beijing"),
}
"""Hosts that do not name their region. The simulator, on this machine, takes Beijing's prices."""


def region_of(host: str) -> str | None:
    """The region of a DashScope host, which decides the price; None if unknown.

    `{workspace}.{region}.maas.aliyuncs.com` and `{region}.dashscope.aliyuncs.com` name theirs.
    """
    if host in HOSTS:
        return HOSTS[host]
    for suffix in (".maas.aliyuncs.com", ".dashscope.aliyuncs.com"):
        if host.endswith(suffix):
            return host.removesuffix(suffix).rpartition(".")[2].removeprefix("vpc-") or None
    return None

"""What models there are, what each can do, and which names lead to them. Data and pure look-ups."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from fnmatch import translate as glob_to_regex
from functools import lru_cache
from math import log
from types import MappingProxyType
from typing import Annotated, Literal, Self

from msgspec import Meta, Struct, field

from gateway.domain.prices import Money, PriceLists, Tiers, dearest
from gateway.protocol.openai import Quality, ResponseFormat

LARGEST_SIDE = 16384
SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
WILD = re.compile(r"[*?\[]")

Parameter = Literal[
    "negative_prompt", "prompt_extend", "prompt_extend_mode", "enable_thinking", "watermark", "seed"
]


class Size(Struct, frozen=True, order=True):
    width: int
    height: int

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read `WxH`, 1 to 16384 pixels a side. Raises ValueError, a sentence for the caller."""
        found = SIZE.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise ValueError("expected WIDTHxHEIGHT in pixels, for example 1024x1024")
        width, height = int(found[1]), int(found[2])
        if max(width, height) > LARGEST_SIDE:
            raise ValueError(f"a side may have at most {LARGEST_SIDE} pixels")
        return cls(width, height)

    @property
    def area(self) -> int:
        return self.width * self.height

    @property
    def ratio(self) -> float:
        return self.width / self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class Rate(Struct, frozen=True):
    """`per_second` is None where there is no limit."""

    per_second: float | None

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read `N/s`, `N/min` or `unlimited`. Raises ValueError."""
        if value == "unlimited":
            return cls(None)
        count, _, unit = str(value).partition("/")
        seconds = {"s": 1, "min": 60}.get(unit)
        if seconds is None or not count.isascii() or not count.isdigit() or int(count) == 0:
            raise ValueError("expected a rate such as 2/s, 5/min or unlimited")
        return cls(int(count) / seconds)


class AreaSizes(Struct, frozen=True, tag_field="kind", tag="area", kw_only=True):
    """Any size whose area (pixels) and aspect ratio are in range."""

    min: int
    max: int
    max_ratio: float

    def allows(self, size: Size) -> bool:
        return self.min <= size.area <= self.max and (
            1 / self.max_ratio <= size.ratio <= self.max_ratio
        )

    def validate(self) -> None:
        """Raises ValueError if no size is in range."""
        if not 0 < self.min <= self.max or self.max_ratio < 1 or not self.candidates(Size(1, 1)):
            raise ValueError("expected 0 < min <= max, and a max_ratio of at least 1")

    def candidates(self, wanted: Size) -> list[Size]:
        """Legal sizes of about that ratio, in the multiples of 16 that the vendor snaps to."""
        ratio = min(max(wanted.ratio, 1 / self.max_ratio), self.max_ratio)
        heights = range(16, LARGEST_SIDE + 1, 16)
        sizes = (Size(max(16, round(h * ratio / 16) * 16), h) for h in heights)
        return [size for size in sizes if self.allows(size)]

    def __str__(self) -> str:
        ratio = f"{self.max_ratio:g}"
        return f"an area of {self.min} to {self.max} pixels, aspect 1:{ratio} to {ratio}:1"


class FixedSizes(Struct, frozen=True, tag_field="kind", tag="fixed", rename={"choices": "list"}):
    choices: tuple[str, ...]

    def allows(self, size: Size) -> bool:
        return str(size) in self.choices

    def validate(self) -> None:
        """Raises ValueError if the list is empty, or holds something else than sizes."""
        if not self.choices:
            raise ValueError("expected at least one size")
        for choice in self.choices:
            Size.parse(choice)

    def candidates(self, wanted: Size) -> list[Size]:  # noqa: ARG002 - the same for every wish
        return [Size.parse(choice) for choice in self.choices]

    def __str__(self) -> str:
        return "one of " + ", ".join(self.choices)


class SideSizes(Struct, frozen=True, tag_field="kind", tag="side"):
    """Any size whose two sides are in range."""

    min: int
    max: int

    def allows(self, size: Size) -> bool:
        return self.min <= size.width <= self.max and self.min <= size.height <= self.max

    def validate(self) -> None:
        """Raises ValueError if no size is in range."""
        if not 0 < self.min <= self.max or not self.candidates(Size(1, 1)):
            raise ValueError("expected 0 < min <= max, with a multiple of 16 between them")

    def candidates(self, wanted: Size) -> list[Size]:
        """Legal sizes of about that ratio, in multiples of 16."""
        ratio = min(max(wanted.ratio, self.min / self.max), self.max / self.min)
        first = -(-self.min // 16) * 16
        sizes = (Size(round(h * ratio / 16) * 16 or 16, h) for h in range(first, self.max + 1, 16))
        return [size for size in sizes if self.allows(size)]

    def __str__(self) -> str:
        return f"{self.min} to {self.max} pixels a side"


class InputSizes(Struct, frozen=True, tag_field="kind", tag="input"):
    """None can be asked for: the picture keeps the size of the last input."""

    def allows(self, size: Size) -> bool:  # noqa: ARG002 - none of them
        return False

    def validate(self) -> None:
        """Nothing can be wrong."""

    def candidates(self, wanted: Size) -> list[Size]:  # noqa: ARG002 - the same for every wish
        return []

    def __str__(self) -> str:
        return "auto, for the picture keeps its own"


Sizes = AreaSizes | FixedSizes | SideSizes | InputSizes


class Model(Struct, frozen=True, kw_only=True):
    """One entry of `config/models.yaml`, which explains the fields."""

    sizes: Sizes
    images_per_call: Annotated[int, Meta(ge=1, le=10)]
    max_prompt: Annotated[int, Meta(ge=1)]
    rate: Rate
    price: Tiers | dict[str, Tiers]
    released: date
    supports: frozenset[Parameter] = frozenset()
    default_size: Size | None = None
    edits: Annotated[int, Meta(ge=0, le=16)] = 0
    generates: bool = True
    input_price: Money = Money(0)
    prompt_extend: bool = True
    snapshots: tuple[str, ...] = ()
    owned_by: str = "alibaba"

    @property
    def created(self) -> int:
        """Release day as a Unix time."""
        return int(datetime(*self.released.timetuple()[:3], tzinfo=UTC).timestamp())

    def price_lists(self, region: str | None) -> PriceLists:
        """Those of a region; all if the region is unknown."""
        if not isinstance(self.price, dict):
            return (self.price,)
        known = self.price.get(region or "")
        return (known,) if known is not None else tuple(self.price.values())

    def cost(self, size: Size | None) -> Money:
        """The most that one image of this size costs anywhere."""
        return dearest(self.price_lists(None), size)


@lru_cache(maxsize=4096)
def nearest(sizes: Sizes, wanted: Size) -> Size:
    """The legal size closest by aspect ratio, then by area."""
    return min(
        sizes.candidates(wanted),
        key=lambda size: (
            round(abs(log(size.ratio / wanted.ratio)), 6),
            abs(size.area - wanted.area),
        ),
    )


class Alias(Struct, frozen=True):
    """Another name for a model, and what its users expect when they do not say."""

    model: str
    response_format: ResponseFormat | None = None
    """Where a request does not say; absent: as the tenant has it."""
    size: Size | None = None
    """Where a request says nothing or `auto`; absent: the model's own default."""
    quality: dict[str, str] = field(default_factory=dict)
    """Models to take instead for a request's `quality`; another one has no effect."""
    edits: str | None = None
    """The model for edits; absent: the same."""


NO_PRICES: Mapping[str, PriceLists] = MappingProxyType({})


class Choice(Struct, frozen=True):
    """What a requested name leads to; `upstream_name` is what the vendor is sent."""

    requested: str
    upstream_name: str
    model: Model
    response_format: ResponseFormat | None = None
    """Where the request does not say."""
    family: str = ""
    """The catalogue's entry, which several dated snapshots may share."""
    default_size: Size | None = None
    """Where the request does not say; None: the model chooses, and no size is sent."""
    prices: Mapping[str, PriceLists] = NO_PRICES
    """By account; empty where the accounts are unknown."""
    quality: Quality | None = None
    """The request's, where it led to the model."""

    def is_covered(self, globs: tuple[str, ...]) -> bool:
        """Whether they cover the requested name or the model behind it."""
        return matches(globs, self.requested) or matches(globs, self.upstream_name)


class Catalogue(Struct, frozen=True):
    """Models and aliases by name. `currency` is that of every price."""

    currency: str
    models: dict[str, Model]
    aliases: dict[str, Alias] = field(default_factory=dict)
    served: tuple[str, ...] = ("*",)
    """Globs of the models that some account is used for; the others cannot be found."""
    prices: dict[str, dict[str, PriceLists]] = field(default_factory=dict)
    """By model and account."""

    def find(
        self, name: str, quality: Quality | None = None, *, is_edit: bool = False
    ) -> Choice | None:
        """None for no alias, model or dated snapshot of this name."""
        alias = self.aliases.get(name)
        edits = alias.edits if alias and is_edit else None
        led = alias.quality.get(quality or "") if alias and not edits else None
        target = edits or led or (alias.model if alias else name)
        family = self.family_of(target)
        if family is None or not matches(self.served, target):
            return None
        model, prices = self.models[family], self.prices.get(family, NO_PRICES)
        if alias is None:
            size = None if is_edit else model.default_size
            return Choice(name, target, model, None, family, size, prices)
        # What is made of an edit has the size of its last picture.
        size = None if is_edit else alias.size or model.default_size
        if size is not None and not model.sizes.allows(size):  # of a catalogue that is not shipped
            size = nearest(model.sizes, size)
        format_, counts = alias.response_format, quality if led else None
        return Choice(name, target, model, format_, family, size, prices, counts)

    def has_model(self, name: str) -> bool:
        """Whether a model or a snapshot has this name; aliases do not count."""
        return self.family_of(name) is not None

    def covers(self, globs: tuple[str, ...], family: str) -> bool:
        """Whether globs cover an entry, or some snapshot of it."""
        return matches(globs, family) or any(self._entry_within(glob) == family for glob in globs)

    def _entry_within(self, glob: str) -> str:
        """The entry of a glob's snapshots: the longest that its fixed part begins with."""
        fixed = WILD.split(glob)[0]
        return max((name for name in self.models if fixed.startswith(name)), key=len, default="")

    def family_of(self, name: str) -> str | None:
        """The entry of a model or of one of its snapshots; None for anything else."""
        if name in self.models:
            return name
        for base, model in self.models.items():
            if name.startswith(base) and matches(model.snapshots, name[len(base) :]):
                return base
        return None


@lru_cache(maxsize=1024)
def _compiled(globs: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(glob_to_regex(glob) for glob in globs) or r"(?!)")


def matches(globs: tuple[str, ...], name: str) -> bool:
    """Whether any glob covers the whole name, by case."""
    return _compiled(globs).match(name) is not None

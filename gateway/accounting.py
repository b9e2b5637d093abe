"""The usage record: one line for each generation that was paid for, appended and never changed.

    {"at": "2026-11-22T13:45:01.123Z", "request_id": "req_…", "tenant": "acme", "key": "ci",
     "model": "qwen-image-2.0-pro", "size": "2048x2048", "images": 2, "cost": 1000000}

`cost` is in millionths of the catalogue's currency.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import msgspec
from msgspec import Struct

Dimension = Literal["tenant", "key", "model", "day", "month", "size"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)


class Generation(Struct, frozen=True, kw_only=True):
    """One line."""

    at: datetime
    request_id: str
    tenant: str
    key: str
    model: str
    size: str | None
    images: int
    cost: int


class Total(Struct):
    """A sum over lines; `cost` in millionths."""

    generations: int = 0
    images: int = 0
    cost: int = 0


class UsageLog:
    """Appends to a file that several workers share; a line is one write, so lines never mix.

    A write goes to the system's page cache in about 10 µs, so it is made at once, and a killed
    worker loses none. Raises OSError where the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o640)
        self._encoder = msgspec.json.Encoder()

    def append(self, generation: Generation) -> None:
        """Write one line. Raises OSError where the disk is full."""
        os.write(self._file, self._encoder.encode(generation) + b"\n")

    def close(self) -> None:
        """Flush to the disk."""
        with suppress(OSError):  # a pipe or a device has no disk behind it
            os.fsync(self._file)
        os.close(self._file)


def read(path: Path, since: datetime | None) -> Iterator[Generation]:
    """The lines from a time on; a torn last line is left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line in the middle is not a record; its number is named.
    """
    decoder = msgspec.json.Decoder(Generation)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                generation = decoder.decode(line)
            except msgspec.DecodeError as fault:
                raise ValueError(f"{path}, line {number}: {fault}") from None
            if since is None or generation.at >= since:
                yield generation


def sum_by(
    generations: Iterable[Generation], dimensions: tuple[Dimension, ...]
) -> dict[tuple[str, ...], Total]:
    """Totals for each combination of the dimensions, in order."""
    totals: dict[tuple[str, ...], Total] = {}
    for generation in generations:
        total = totals.setdefault(tuple(value(generation, d) for d in dimensions), Total())
        total.generations += 1
        total.images += generation.images
        total.cost += generation.cost
    return dict(sorted(totals.items()))


def to_dimensions(text: str) -> tuple[Dimension, ...]:
    """From `tenant,model,day`.

    Raises:
        ValueError: one of them is none.
    """
    known: dict[str, Dimension] = {name: name for name in DIMENSIONS}
    asked = [part.strip() for part in text.split(",")]
    unknown = [part for part in asked if part not in known]
    if unknown:
        raise ValueError(f"--by: {unknown[0]!r} is none of {', '.join(DIMENSIONS)}")
    return tuple(dict.fromkeys(known[part] for part in asked))


def value(generation: Generation, dimension: Dimension) -> str:
    """One line's place on a dimension; days and months are UTC."""
    match dimension:
        case "day":
            return generation.at.astimezone(UTC).strftime("%Y-%m-%d")
        case "month":
            return generation.at.astimezone(UTC).strftime("%Y-%m")
        case _:
            return str(getattr(generation, dimension) or "-")

"""The usage record: one line for each upstream call that was paid for, appended, never changed.

    {"at": "2026-11-22T13:45:01.123Z", "request_id": "req_…", "tenant": "acme", "key": "ci",
     "model": "qwen-image-2.0-pro", "size": "2048x2048", "images": 2, "cost": 1000000}

`cost` is in millionths of the catalogue's currency. Further calls of a request have a `call` of 1,
2 …; a call of unknown outcome has `doubtful`, and the images that it asked for.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Literal, get_args

import msgspec
from msgspec import Struct

Dimension = Literal["tenant", "key", "model", "day", "month", "size"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
TURN_LOOKS = 20
TURN_LOOK_S = 0.001
NAMED_MAX = 10


class PaidCall(Struct, frozen=True, kw_only=True, omit_defaults=True):
    at: datetime
    request_id: str
    tenant: str
    key: str
    model: str
    size: str | None
    images: int
    cost: int
    call: int = 0
    """How many lines the request has before this one."""
    doubtful: bool = False


class Total(Struct):
    """A sum over lines; `cost` in millionths."""

    generations: int = 0
    """Requests that paid."""
    images: int = 0
    cost: int = 0
    doubtful: int = 0
    """Further images, of calls with unknown outcome, and what they may have cost."""
    doubtful_cost: int = 0


class UsageLog:
    """Appends to a file that several workers share; a line is one write, so lines never mix.

    A killed worker loses no line. A renamed file is left for a new one. Raises OSError where the
    file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._encoder = msgspec.json.Encoder()
        self._is_torn = False
        self._open()

    def append(self, generation: PaidCall) -> None:
        """Write one line, whole or not at all. Raises OSError where the disk is full."""
        self._follow()
        line = self._encoder.encode(generation) + b"\n"
        with self._taking_turns() as is_alone:
            if self._is_torn:
                line = b"\n" + line
            written = os.write(self._file, line)
            if written < len(line):
                self._is_torn = not (is_alone and self._take_back(written))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            self._is_torn = False

    def close(self) -> None:
        """Flush to the disk."""
        with suppress(OSError):  # a pipe or a device has no disk behind it
            os.fsync(self._file)
        os.close(self._file)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o640)
        self._is_torn = False
        found = os.fstat(self._file)
        self._identity = found.st_dev, found.st_ino
        if stat.S_ISREG(found.st_mode):
            with self._taking_turns(), suppress(OSError), self._path.open("rb") as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    self._is_torn = file.read(1) != b"\n"

    def _follow(self) -> None:
        """Find out about a rotated file; a look costs a microsecond."""
        with suppress(OSError):
            found = self._path.stat()
            if (found.st_dev, found.st_ino) == self._identity:
                return
        former = self._file
        try:
            self._open()
        except OSError:
            if os.fstat(former).st_nlink == 0:
                raise
            return  # what was renamed is still the record, until another can be begun
        os.close(former)

    def _take_back(self, written: int) -> bool:
        """Remove a part of a line, which the next line would continue."""
        try:
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
        except OSError:
            return False
        return True

    @contextmanager
    def _taking_turns(self) -> Iterator[bool]:
        """Whether nobody else writes meanwhile; a process stopped in the middle does not block."""
        is_alone = False
        for _ in range(TURN_LOOKS):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(TURN_LOOK_S)
            except OSError:  # a file system without locks
                break
            else:
                is_alone = True
                break
        try:
            yield is_alone
        finally:
            if is_alone:
                fcntl.flock(self._file, fcntl.LOCK_UN)


def files(path: Path) -> list[Path]:
    """The record and what logrotate has made of it: `.1`, `-20261122`, also with `.gz`."""
    rotated = re.compile(re.escape(path.name) + r"((\.\d+|-\d{8,})(\.gz)?)?")
    folder = path.parent.iterdir() if path.parent.is_dir() else ()
    found = {file.name: file for file in folder if rotated.fullmatch(file.name)}
    # While a file is compressed, it is there twice.
    twice = {f"{name}.gz" for name in found}
    return [found[name] for name in sorted(found) if name not in twice]


def read(path: Path, since: datetime | None, warn: Callable[[str], None]) -> Iterator[PaidCall]:
    """One file's lines from a time on; warns of others. Raises OSError if it cannot be read."""
    decoder = msgspec.json.Decoder(PaidCall)
    torn: list[int] = []
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                generation = decoder.decode(line)
            except msgspec.DecodeError:
                if line.strip():
                    torn.append(number)
                continue
            if since is None or generation.at >= since:
                yield generation
    if torn:
        named = ", ".join(map(str, torn[:NAMED_MAX]))
        more = f" and {len(torn) - NAMED_MAX} more" if len(torn) > NAMED_MAX else ""
        warn(f"{path}: left out what is no record: line {named}{more}.")


def sum_by(
    generations: Iterable[PaidCall],
    dimensions: tuple[Dimension, ...],
    zone: tzinfo = UTC,
) -> dict[tuple[str, ...], Total]:
    """Totals for each combination of the dimensions, in order."""
    totals: dict[tuple[str, ...], Total] = {}
    for generation in generations:
        total = totals.setdefault(tuple(value(generation, d, zone) for d in dimensions), Total())
        total.generations += generation.call == 0
        if generation.doubtful:
            total.doubtful += generation.images
            total.doubtful_cost += generation.cost
        else:
            total.images += generation.images
            total.cost += generation.cost
    return dict(sorted(totals.items()))


def to_dimensions(text: str) -> tuple[Dimension, ...]:
    """From `tenant,model,day`. Raises ValueError for an unknown one."""
    known: dict[str, Dimension] = {name: name for name in DIMENSIONS}
    asked = [part.strip() for part in text.split(",")]
    unknown = [part for part in asked if part not in known]
    if unknown:
        raise ValueError(f"--by: {unknown[0]!r} is none of {', '.join(DIMENSIONS)}")
    return tuple(dict.fromkeys(known[part] for part in asked))


def value(generation: PaidCall, dimension: Dimension, zone: tzinfo = UTC) -> str:
    """A line's value; days and months are those of the zone."""
    match dimension:
        case "day":
            return generation.at.astimezone(zone).strftime("%Y-%m-%d")
        case "month":
            return generation.at.astimezone(zone).strftime("%Y-%m")
        case _:
            return str(getattr(generation, dimension) or "-")

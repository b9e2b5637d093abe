"""The metrics of several workers, in files that all of them map (prometheus-client's way).

A scrape of any worker sees all, also a killed worker's counts: its slot's next worker goes on with
its files, so files never outnumber workers.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import ENOSPC
from pathlib import Path
from struct import error as struct_error
from tempfile import gettempdir, mkdtemp
from typing import Final

from prometheus_client import CollectorRegistry, Metric, generate_latest, multiprocess, values

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The library's own variable."""
PREFIX: Final = "gateway-metrics-"
OWNER: Final = "owner"
"""A file that is locked while a process of the folder's gateway lives."""
WORKER_BYTES: Final = 8 * 1024 * 1024
"""Six files of a mebibyte, and room to grow."""
ATTEMPTS: Final = 3
"""Reads of all files, of which one may go meanwhile."""
UNREADABLE: Final = (OSError, RuntimeError, ValueError, struct_error)
"""The library's exceptions for a file that is gone, or not whole."""


@contextmanager
def shared_folder(workers: int) -> Iterator[None]:
    """Keep values in a separate folder meanwhile; before any `Metrics` and any fork.

    Raises OSError without room for it: a worker that writes would be killed.
    """
    parent = Path(gettempdir())
    remove_abandoned(parent)
    needed = workers * WORKER_BYTES
    if shutil.disk_usage(parent).free < needed:
        reason = f"the metrics of {workers} workers need {needed >> 20} MiB free there"
        raise OSError(ENOSPC, reason, str(parent))
    folder = Path(mkdtemp(prefix=PREFIX, dir=parent))
    # Workers inherit it, so that it stays locked until the last of them has ended.
    with (folder / OWNER).open("wb") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        os.environ[FOLDER] = str(folder)
        try:
            yield
        finally:
            os.environ.pop(FOLDER, None)
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders of killed gateways: in a tmpfs they would pile up in memory."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError), (folder / OWNER).open("rb") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def begin_worker(slot: int) -> None:
    """Keep this process' values in the files of a slot, which no other living process has."""
    if FOLDER in os.environ:
        values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]


def worker_ended(slot: int) -> None:
    """Forget a dead worker's gauges; its counters stay, since what it did was done."""
    if FOLDER in os.environ:
        with suppress(OSError):
            multiprocess.mark_process_dead(slot)  # type: ignore[no-untyped-call]


def render_all() -> bytes:
    """What a scrape reads, over all workers."""
    everyone = CollectorRegistry()
    everyone.register(AllWorkers())
    return generate_latest(everyone)


class AllWorkers:
    """Collects what the files of the shared folder have."""

    def collect(self) -> Iterable[Metric]:
        """A file may go while it is read."""
        for _ in range(ATTEMPTS):
            with suppress(*UNREADABLE):
                return self._read()
        return self._read()

    def _read(self) -> Iterable[Metric]:
        files = with_content(sorted(Path(os.environ[FOLDER]).glob("*.db")))
        merged: Iterable[Metric] = multiprocess.MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return merged


def with_content(files: Iterable[Path]) -> list[str]:
    """Without empty files, over which the library fails: a new one is empty for a moment."""
    found = []
    for file in files:
        with suppress(FileNotFoundError):
            if file.stat().st_size >= 8:
                found.append(str(file))
    return found

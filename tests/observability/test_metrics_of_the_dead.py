"""What killed workers have counted stays, in one file of each kind, whoever reads meanwhile."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Final

import pytest

from gateway.observability import metrics
from gateway.observability.metrics import Metrics, share_between_workers, worker_ended

pytestmark = pytest.mark.slow

DEATHS: Final = 15
SERIES: Final = 40


@pytest.fixture
def process() -> Iterator[Pool]:
    """One of its own: the library's way of keeping values is the whole process's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


def totals(rendered: bytes) -> tuple[float, float, float]:
    """A counter, a histogram's count and its last bucket, each over all series."""
    text = rendered.decode()
    names = (
        r"gateway_requests_total{",
        r"gateway_request_seconds_count{",
        r'gateway_request_seconds_bucket{le="\+Inf",',
    )
    one, two, three = (
        sum(float(found) for found in re.findall(rf"^{name}.* (\S+)$", text, re.MULTILINE))
        for name in names
    )
    return one, two, three


def work_and_die(at: float = 0.3) -> int:
    """A worker that counts and is killed."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return pid
    mine = Metrics()
    for number in range(SERIES):
        mine.requests.labels("tenant-ä", f"model-{number}", "ok").inc()
        mine.request_seconds.labels(f"model-{number}").observe(at * number)
    mine.in_flight.inc()
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def bury_while_read(folder: Path) -> tuple[list[tuple[float, ...]], list[str], list[str]]:
    share_between_workers(folder)
    told, stop = os.pipe()
    reader = os.fork()
    if not reader:
        os.close(stop)
        os.set_blocking(told, False)
        here, last = Metrics(), (0.0, 0.0, 0.0)
        while True:
            now = totals(here.render())
            if any(value < before for value, before in zip(now, last, strict=True)):
                (folder / "failed").write_text(f"{last} {now}")
                os._exit(1)
            last = now
            try:
                os.read(told, 1)
                os._exit(0)
            except BlockingIOError:
                continue
    seen: list[tuple[float, ...]] = []
    for _ in range(DEATHS):
        worker_ended(work_and_die())
        seen.append(totals(Metrics().render()))
    os.close(stop)
    os.waitpid(reader, 0)
    worker_ended(work_and_die())  # with what the reader was in the way of
    worker_ended(reader)
    seen.append(totals(Metrics().render()))
    left = [file.name for file in folder.glob("*.db") if file.name.startswith(("c", "h"))]
    dead = [name for name in left if str(os.getpid()) not in name]
    return seen, sorted(dead), [file.read_text() for file in folder.glob("failed")]


def test_counts_of_the_dead_stay_in_one_file(process: Pool, tmp_path: Path) -> None:
    seen, files, failed = process.apply(bury_while_read, (tmp_path,))

    assert not failed
    assert seen == [((number + 1) * SERIES,) * 3 for number in range(DEATHS + 1)]
    assert files == ["counter_dead.db", "histogram_dead.db"]


def spoil(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    share_between_workers(folder)
    here = Metrics()
    pid = work_and_die()
    (folder / "histogram_999999.db").touch()
    with metrics.locked(fcntl.LOCK_SH):
        worker_ended(pid)  # while it is read: left for the next time
        assert (folder / f"counter_{pid}.db").exists()
    before = totals(here.render())
    worker_ended(999999)
    assert not (folder / f"counter_{pid}.db").exists()
    return before, totals(here.render())


def test_a_file_that_was_never_filled_spoils_nothing(process: Pool, tmp_path: Path) -> None:
    """Its maker was killed between two lines of the library."""
    before, after = process.apply(spoil, (tmp_path,))

    assert before == after == (SERIES,) * 3

"""What killed workers have counted stays, in the files of their slots, whoever reads meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from tempfile import gettempdir
from typing import Final

import pytest

from gateway.observability import multiprocess
from gateway.observability.metrics import Metrics
from gateway.observability.multiprocess import (
    FOLDER,
    begin_worker,
    shared_folder,
    worker_ended,
)

pytestmark = pytest.mark.slow

DEATHS: Final = 15
SERIES: Final = 40
READER: Final = 1


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Pool]:
    """One of its own: the library's way of keeping values is the whole process's."""
    pool = multiprocessing.get_context("spawn").Pool(1, use_folder, (str(tmp_path),))
    yield pool
    pool.close()  # not `terminate`: coverage saves its data on SIGTERM, and may never end then
    pool.join()


def use_folder(path: str) -> None:
    tempfile.tempdir = path


def totals(rendered: bytes) -> tuple[float, float, float, float]:
    """A counter, a histogram's count and its last bucket, and a gauge, each over all series."""
    text = rendered.decode()
    names = (
        r"gateway_requests_total{",
        r"gateway_request_seconds_count{",
        r'gateway_request_seconds_bucket{le="\+Inf",',
        r"gateway_requests_in_flight",
    )
    one, two, three, four = (
        sum(float(found) for found in re.findall(rf"^{name}.* (\S+)$", text, re.MULTILINE))
        for name in names
    )
    return one, two, three, four


def work_and_die(slot: int) -> None:
    """A worker that counts and is killed, with a request under way."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    begin_worker(slot)
    mine = Metrics()
    for number in range(SERIES):
        mine.requests.labels("tenant-ä", f"model-{number}", "ok").inc()
        mine.request_seconds.labels(f"model-{number}").observe(0.3 * number)
    mine.in_flight.inc()
    os.kill(os.getpid(), signal.SIGKILL)


def read_all_along(told: int, folder: Path) -> None:
    """In a process of its own: fails if a count ever falls."""
    os.set_blocking(told, False)
    begin_worker(READER)
    here, last = Metrics(), (0.0, 0.0, 0.0)
    while True:
        now = totals(here.render())[:3]
        if any(value < before for value, before in zip(now, last, strict=True)):
            (folder / "failed").write_text(f"{last} {now}")
            os._exit(1)
        last = now
        try:
            os.read(told, 1)
            os._exit(0)
        except BlockingIOError:
            continue


def die_while_read() -> tuple[list[tuple[float, ...]], list[str], list[str]]:
    with shared_folder(2):
        folder = Path(os.environ[FOLDER])
        told, stop = os.pipe()
        reader = os.fork()
        if not reader:
            os.close(stop)
            read_all_along(told, folder)
        seen: list[tuple[float, ...]] = []
        for _ in range(DEATHS):
            work_and_die(0)
            worker_ended(0)
            seen.append(totals(multiprocess.render_all()))
        os.close(stop)
        os.waitpid(reader, 0)
        files = sorted(file.name for file in folder.glob("counter_*.db"))
        return seen, files, [file.read_text() for file in folder.glob("failed")]


def test_the_next_worker_of_a_slot_counts_on(process: Pool) -> None:
    """In the same files, so that they do not become more; what it had under way is gone."""
    seen, files, failed = process.apply(die_while_read)

    assert not failed
    counted = [(number + 1) * SERIES for number in range(DEATHS)]
    assert seen == [(count, count, count, 0.0) for count in counted]
    assert files == ["counter_0.db", "counter_1.db"]


def spoil() -> tuple[float, ...]:
    with shared_folder(2):
        work_and_die(0)
        (Path(os.environ[FOLDER]) / "histogram_1.db").touch()
        return totals(multiprocess.render_all())


def test_a_file_that_was_never_filled_spoils_nothing(process: Pool) -> None:
    """Its maker was killed between two lines of the library."""
    assert process.apply(spoil) == (SERIES, SERIES, SERIES, 1.0)


# -- the folder; each of these runs in a process without threads, since it forks


def leave_behind() -> list[bool]:
    killed = os.fork()
    if not killed:
        with shared_folder(1):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(killed, 0)
    (left,) = Path(gettempdir()).iterdir()
    with shared_folder(1):
        mine = Path(os.environ[FOLDER])
        with shared_folder(1):
            return [left.exists(), mine.exists()]


def test_the_folder_of_a_killed_gateway_goes_at_the_next_start(
    process: Pool, tmp_path: Path
) -> None:
    """A container keeps its /tmp over a restart; the folder of a gateway that lives stays."""
    assert process.apply(leave_behind) == [False, True]
    assert list(tmp_path.iterdir()) == []


def leave_an_orphan() -> bool:
    told, stop = os.pipe()
    supervisor = os.fork()
    if not supervisor:
        with shared_folder(1):
            if not os.fork():
                os.close(stop)
                os.read(told, 1)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(supervisor, 0)
    (left,) = Path(gettempdir()).iterdir()
    with shared_folder(1):
        is_there = left.exists()
    os.close(stop)
    return is_there


def test_a_folder_that_an_orphan_uses_stays(process: Pool) -> None:
    """A worker goes on when its supervisor has been killed."""
    assert process.apply(leave_an_orphan)


def test_a_full_disk_is_told_before_the_start(tmp_path: Path) -> None:
    """A worker that writes to a file that has no room is killed without a word."""
    with pytest.raises(OSError, match="workers need") as refused, shared_folder(10**9):
        pass

    assert refused.value.filename == gettempdir()

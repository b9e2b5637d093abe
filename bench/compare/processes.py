"""Starting programs on a core of their own, and asking the system what they used."""
# ruff: noqa: INP001, S603

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from msgspec import Struct

ROOT = Path(__file__).resolve().parent.parent.parent
READY_S = 90.0
MIB = 1024 * 1024
SERVED, OTHERS = 0, 1
"""The cores: one for who is measured, one for everybody else."""
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Process(Struct, kw_only=True):
    """One that runs and listens."""

    pid: int
    url: str
    start_s: float
    """From its start to its first answer."""

    def cpu_s(self) -> float:
        """Used so far, by its children too."""
        return sum(
            int(stat.read_text().split()[0]) / 1e9
            for pid in family(self.pid)
            for stat in Path(f"/proc/{pid}/task").glob("*/schedstat")
        )

    def memory_mib(self) -> float:
        """What is its own, and its part of what it shares."""
        return sum(proportional_kib(pid) for pid in family(self.pid)) / 1024


@cache
def cores() -> list[int]:
    """The first two that may be used.

    Raises:
        SystemExit: there is one only.
    """
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        raise SystemExit("Two cores are needed: one for who is measured, one for the load.")
    return found


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Have this process run there meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores()[core]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def require(programs: dict[str, str]) -> None:
    """Raises SystemExit: it names what is missing, and the packages that have it."""
    lacking = [package for name, package in programs.items() if shutil.which(name) is None]
    if lacking:
        raise SystemExit(f"Missing: on Debian, apt-get install {' '.join(lacking)}")


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    with suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                found += family(int(child))
    return found


def proportional_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def started(
    program: Sequence[str],
    *,
    core: int,
    url: str = "",
    ready_path: str | None = "/",
    environment: dict[str, str] | None = None,
    folder: Path = ROOT,
) -> Iterator[Process]:
    """A program, from its first answer to its end; one without `url` prints where it listens.

    One without `ready_path` does not speak HTTP, and is waited for by whoever needs it.
    """
    on = ["taskset", "--cpu-list", str(cores()[core])]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            [*on, *program],
            stdout=output,
            stderr=errors,
            cwd=folder,
            env=os.environ | (environment or {}),
            start_new_session=True,
        )
        try:
            url = url or printed_url(process, output.fileno())
            if ready_path is not None:
                await_answer(process, url + ready_path)
            yield Process(pid=process.pid, url=url, start_s=time.perf_counter() - began)
        except ChildProcessError as fault:
            errors.seek(0)
            told = errors.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{' '.join(program)}: {fault}\n{told}") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def printed_url(process: subprocess.Popen[bytes], output: int) -> str:
    """Raises ChildProcessError: there will be none."""
    end = time.monotonic() + READY_S
    while time.monotonic() < end and process.poll() is None:
        text = os.pread(output, 65536, 0).decode()
        if "http://" in text and text.endswith("\n"):
            return "http://" + text.rpartition("http://")[2].split()[0]
        time.sleep(0.005)
    raise ChildProcessError("did not say where it listens")


def await_answer(process: subprocess.Popen[bytes], url: str) -> None:
    """Until it answers anything. Raises ChildProcessError."""
    end = time.monotonic() + READY_S
    while time.monotonic() < end and process.poll() is None:
        try:
            OPENER.open(url, timeout=5).read()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.005)
        else:
            return
    raise ChildProcessError("did not answer")


def size_mib(folder: Path) -> float:
    """What a folder takes on the disk."""
    told = subprocess.run(
        ["du", "--summarize", "--block-size=1024", folder],  # noqa: S607 - of Debian's base system
        check=True,
        capture_output=True,
        text=True,
    )
    return int(told.stdout.split()[0]) / 1024

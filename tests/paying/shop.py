"""A vendor whose till is read, and gateways that sell its images."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import yaml

from gateway.tenants.keys import hash_key
from tests.running import ACME, OTHER_ACME, GatewayProcess, until
from tests.simulated import SimulatedDashScope

Json = dict[str, Any]
MODEL = "qwen-image-2.0"


class Vendor(SimulatedDashScope):
    """The simulator, at a time that a test may hold, and what it was paid for."""

    def __init__(self, **settings: Any) -> None:
        self.time: Callable[[], float] = time.time
        super().__init__(clock=self._now, render="plain", **settings)

    def _now(self) -> float:
        return self.time()

    @property
    def calls(self) -> int:
        """Generations asked for."""
        return sum(self.state(log=0)["calls"].values())

    @property
    def paid(self) -> int:
        """Images billed."""
        return sum(self.state(log=0)["paid"].values())

    @property
    def in_flight(self) -> int:
        return int(self.state(log=0)["in_flight"])

    def calls_by_prompt(self) -> Counter[str]:
        return Counter(
            call["body"]["input"]["messages"][0]["content"][0]["text"]
            for call in self.state()["log"]
        )


class Fleet:
    """So many gateways with so many workers each; usable as a context manager."""

    def __init__(
        self, vendor: Vendor, redis_url: str | None, *, gateways: int = 2, workers: int = 2
    ) -> None:
        self._stack = ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self.config = folder / "gateway.yaml"
        self.config.write_text(yaml.safe_dump(settings(vendor, redis_url)))
        arguments = ("serve", "--config", str(self.config), "--workers", str(workers))
        try:
            self.gateways = [
                self._stack.enter_context(GatewayProcess(*arguments)) for _ in range(gateways)
            ]
            self.urls = [gateway.url for gateway in self.gateways]
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        workers = self.workers
        for gateway in self.gateways:
            gateway.stop()
        for gateway in self.gateways:
            with suppress(subprocess.TimeoutExpired):
                gateway.ended(3)
        self._stack.close()
        for worker in workers:
            kill(worker)

    @property
    def workers(self) -> list[int]:
        """The processes that serve."""
        return [worker for gateway in self.gateways for worker in workers_of(gateway)]


def settings(vendor: Vendor, redis_url: str | None, **more: Any) -> Json:
    """A configuration file with two tenants that share nothing."""
    redis = {"url": redis_url, "connect_timeout_ms": 2000, "command_timeout_ms": 2000}
    return {
        "listen": {"host": "127.0.0.1", "port": 0},
        "accounts": [
            {
                "name": "one",
                "base_url": vendor.base_url,
                "api_key": "simulated",
                "rates": {"*": "unlimited"},
            }
        ],
        "images": {"allowed_hosts": ["127.0.0.1"], "allow_http": True},
        "tenants": [
            {"name": "acme", "keys": [{"hash": hash_key(ACME)}]},
            {"name": "other", "keys": [{"hash": hash_key(OTHER_ACME)}]},
        ],
        **({"redis": redis} if redis_url else {}),
        **more,
    }


def workers_of(gateway: GatewayProcess) -> list[int]:
    try:
        children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in children]


def connected_to(port: int, processes: Iterable[int]) -> list[int]:
    """Those of the processes with a connection to a port of this machine."""
    return [process for process in processes if sockets_of(process) & sockets_to(port, process)]


def sockets_of(process: int) -> set[str]:
    with suppress(OSError):
        links = [str(link.readlink()) for link in Path(f"/proc/{process}/fd").iterdir()]
        return {link[8:-1] for link in links if link.startswith("socket:[")}
    return set()


def sockets_to(port: int, process: int) -> set[str]:
    """Inodes of established connections whose far end is the port."""
    lines = Path(f"/proc/{process}/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return {row[9] for row in rows if row[3] == "01" and int(row[2].split(":")[1], 16) == port}


def kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def until_gone(process: int) -> None:
    """A child of somebody else, so all there is to see is that it is gone."""
    until(lambda: not Path(f"/proc/{process}").exists() or is_dead(process))


def is_dead(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True

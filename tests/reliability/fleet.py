"""Gateways as an operator runs them: processes with several workers over one Redis."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

import yaml

from gateway.cli import from_store
from gateway.cli.usage import as_json
from gateway.config import load_config
from gateway.tenants.keys import hash_key, new_key
from tests.running import ROOT, GatewayProcess, until

Json = dict[str, Any]
ROOMY: Json = {
    "requests_per_minute": 1_000_000,
    "images_per_minute": 1_000_000,
    "concurrent_requests": 1_000_000,
    "images_per_day": 1_000_000,
    "spend_per_month": 1_000_000,
}
"""Every limit, and none in the way."""
PATIENT: Json = {"connect_timeout_ms": 5000, "command_timeout_ms": 5000}
"""For Redis, where its loss is not what is tried: a machine that runs tests may stand still."""


class Fleet:
    """So many gateways with so many workers each; usable as a context manager.

    `tenants` are limits by name. `redis` is the section of the configuration, or None; `sections`
    are further ones.
    """

    def __init__(
        self,
        simulator_url: str,
        redis: Json | None,
        tenants: Mapping[str, Json],
        *,
        gateways: int = 2,
        workers: int = 2,
        rates: Mapping[str, str] | None = None,
        **sections: Json,
    ) -> None:
        self.keys = {name: new_key() for name in tenants}
        self._stack = ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self.config = folder / "gateway.yaml"
        settings: Json = {
            "listen": {"host": "127.0.0.1", "port": 0},
            "accounts": [
                {
                    "name": "one",
                    "base_url": simulator_url,
                    "api_key": "simulated",
                    "rates": dict(rates or {"*": "unlimited"}),
                }
            ],
            "images": {"allowed_hosts": ["127.0.0.1"], "allow_http": True},
            "tenants": [
                {
                    "name": name,
                    "keys": [{"hash": hash_key(self.keys[name])}],
                    "limits": dict(limits),
                    "cache": {"mode": "off"},
                }
                for name, limits in tenants.items()
            ],
            **({"redis": redis} if redis else {}),
            **sections,
        }
        self.config.write_text(yaml.safe_dump(settings))
        arguments = ("serve", "--config", str(self.config), "--workers", str(workers))
        try:
            self.gateways = [self._start(arguments) for _ in range(gateways)]
            self.ports = [int(gateway.url.rpartition(":")[2]) for gateway in self.gateways]
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for gateway in self.gateways:
            gateway.stop()
        self._stack.close()

    async def usage(self, tenant: str) -> Json:
        """What `gateway usage --json` prints of a tenant."""
        config = load_config(self.config)
        tenants = [one for one in config.tenants if one.name == tenant]
        (found,) = json.loads(as_json(await from_store(config, tenants), ""))["tenants"]
        return dict(found)

    def printed_usage(self, tenant: str) -> Json:
        """The same, printed."""
        command = [sys.executable, "-m", "gateway", "usage", tenant, "--json", "--config"]
        run = subprocess.run(
            [*command, str(self.config)], cwd=ROOT, capture_output=True, check=True
        )
        (found,) = json.loads(run.stdout)["tenants"]
        return dict(found)

    def _start(self, arguments: tuple[str, ...]) -> GatewayProcess:
        gateway = self._stack.enter_context(GatewayProcess(*arguments))
        self._stack.callback(end, gateway)
        return gateway


class VendorProcess:
    """The simulator as a process of its own, so that a busy test does not make it late."""

    def __init__(self, **settings: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}/api/v1"
        self._settings = settings

    def __enter__(self) -> Self:
        self._process = GatewayProcess("simulate", "--port", str(self.port)).__enter__()
        until(self._is_open)
        self._ask("PUT", "/settings", {"render": "plain", "latency_s": 0, **self._settings})
        return self

    def __exit__(self, *_: object) -> None:
        self._process.__exit__(None, None, None)

    def state(self, log: int = 1000) -> Json:
        return self._ask("GET", f"/state?log={log}")

    def _is_open(self) -> bool:
        try:
            self.state(0)
        except ConnectionRefusedError:
            return False
        return True

    def _ask(self, method: str, path: str, body: object = None) -> Json:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, f"/_simulator{path}", json.dumps(body).encode())
            response = connection.getresponse()
            assert response.status == 200
            return dict(json.load(response))
        finally:
            connection.close()


def workers_of(gateway: GatewayProcess) -> list[int]:
    """The processes that serve; one that has died and was not yet missed is none."""
    try:
        children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
        return [int(child) for child in children if state_of(child) != "Z"]
    except OSError:
        return []


def state_of(process: str) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def end(gateway: GatewayProcess) -> None:
    """Give it a moment to end by itself; a worker that still waits for something is killed."""
    workers = workers_of(gateway)
    try:
        gateway.stop()
        gateway.ended(3)
    except subprocess.TimeoutExpired:
        gateway.stop(signal.SIGKILL)
        for worker in workers:
            kill(worker)


def kill(process: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return

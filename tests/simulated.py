"""A running simulator for tests: a real port, in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from http.client import HTTPConnection
from types import TracebackType
from typing import Any, Self

from gateway.simulator.app import build_server, create_app
from gateway.simulator.settings import Settings
from gateway.simulator.simulator import Clock, Sleep


class SimulatedDashScope:
    """The simulator on an ephemeral loopback port, with its own event loop.

    Usable as a context manager. Settings are given by name, as in `gateway.simulator.settings`;
    `clock`, `sleep` and `chance` go to `create_app` and are called in the simulator's thread.
    """

    def __init__(
        self,
        *,
        clock: Clock = time.time,
        sleep: Sleep = asyncio.sleep,
        chance: random.Random | None = None,
        **settings: Any,
    ) -> None:
        app = create_app(Settings().changed(settings), clock=clock, sleep=sleep, chance=chance)
        self._server = build_server(app)
        # Listening before the thread starts, so that no client is ever too early.
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port: int = self._socket.getsockname()[1]
        self.origin = f"http://127.0.0.1:{self.port}"
        self.base_url = f"{self.origin}/api/v1"
        self._thread = threading.Thread(target=self._run, name="simulator", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def state(self, log: int = 1000) -> dict[str, Any]:
        """Settings, counters, waiting faults and the last `log` generation calls."""
        return self._ask("GET", f"/state?log={log}")

    def configure(self, **settings: Any) -> dict[str, Any]:
        """Replaces some settings while it runs; returns all of them."""
        return self._ask("PUT", "/settings", settings)

    def fault(self, kind: str, **details: Any) -> None:
        """Queues a misbehaviour; `details` are the fields of `gateway.simulator.faults.Fault`.

        Like `configure`, raises `ValueError` for what the simulator does not know.
        """
        self._ask("POST", "/faults", {"kind": kind, **details})

    def reset(self) -> None:
        """Cuts the calls under way, forgets everything, takes the settings it was started with."""
        self._ask("POST", "/reset", {})

    def close(self) -> None:
        """Stops at once, hanging requests included."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=5)
        self._socket.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def _ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, f"/_simulator{path}", json.dumps(body).encode())
            response = connection.getresponse()
            answer: dict[str, Any] = json.load(response)
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(answer["error"])
        return answer

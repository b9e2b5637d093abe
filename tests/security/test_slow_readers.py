"""Clients that take nothing, or next to nothing: memory and files stay, and others are served."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.operations.site import PATH, document, tenant, write
from tests.running import ACME, STRICT, GatewayProcess, until
from tests.security.calls import paid
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.timing

MIB: Final = 1024 * 1024
READERS: Final = 150
BUDGET_MIB: Final = 64
CONNECTIONS: Final = 51 + 128
"""To image hosts: those that a quarter of the budget is enough for, and to measure images."""
REQUESTS_MIB: Final = 36
"""What 150 requests cost beside their images, and what the allocator rounds up: some 25."""
ANSWER_BYTES: Final = 6 * 4_000_000
IMAGES: Final = {"prompt": "a fox", "model": "qwen-image-2.0", "n": 6, "seed": 7}
BODY: Final = json.dumps({**IMAGES, "size": "1024x1024", "response_format": "b64_json"}).encode()
CACHED: Final = {"prompt": "an owl", "model": "qwen-image-2.0", "seed": 1, "size": "512x512"}


@pytest.fixture
def vendor() -> Iterator[SimulatedDashScope]:
    """Its images have 3 MB; what it made first has no address any more."""
    with SimulatedDashScope(
        render="plain", image_bytes=3_000_000, url_life_s=30, rendered_max_bytes=64 * MIB
    ) as simulator:
        yield simulator


@pytest.fixture
def gateway(vendor: SimulatedDashScope, tmp_path: Path) -> Iterator[GatewayProcess]:
    slow = tenant("acme", ACME, cache={"mode": "seeded"}, limits={"concurrent_requests": 200})
    content = document(
        vendor.base_url,
        tenants=[slow, tenant("other", STRICT, cache={"mode": "seeded"})],
        image_cache={},
        sending={"least_bytes_per_s": 65_536, "grace_s": 3, "window_s": 3},
    )
    file = write(tmp_path / "gateway.yaml", content)
    with GatewayProcess.serving(file, "--workers", "1") as process:
        yield process


class Reader:
    """A connection that has asked, and takes what its receive buffer holds."""

    def __init__(self, url: str) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(5)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        head = f"POST {PATH} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {ACME}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
        self.socket.sendall(head.encode() + BODY)

    def is_answered(self) -> bool:
        """Whether an answer has begun; nothing of it is taken."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False

    def is_cut(self) -> bool:
        """Whether the connection ends before the answer does."""
        received = 0
        with suppress(ConnectionResetError):
            while block := self.socket.recv(65_536):
                received += len(block)
        return received < ANSWER_BYTES


def post(gateway: GatewayProcess, key: str, body: Any) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=20) as client:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        return client.post(gateway.url + PATH, content=body, headers=headers)


def held_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_slow_readers_cost_no_more_than_the_budget(
    gateway: GatewayProcess, vendor: SimulatedDashScope
) -> None:
    """One paid request, 150 readers: they hold their sockets, and together the budget.

    Those below the least rate are cut; the result is there for their retry.
    """
    cached = json.dumps({**CACHED, "response_format": "b64_json"}).encode()
    kept = post(gateway, STRICT, cached).json()["data"]
    vendor.configure(url_life_s=None)
    answer = post(gateway, ACME, BODY)
    assert (answer.status_code, answer.headers["x-cache"]) == (200, "miss")
    answer = post(gateway, ACME, BODY)
    assert answer.headers["x-cache"] == "hit"
    pid, calls = gateway.pid, paid(vendor)
    mib_before, files_before = held_mib(pid), files(pid)

    with ExitStack() as stack:
        readers = [Reader(gateway.url) for _ in range(READERS)]
        for reader in readers:
            stack.callback(reader.socket.close)
        most_mib, most_files = 0.0, 0

        def are_served() -> bool:
            nonlocal most_mib, most_files
            most_mib = max(most_mib, held_mib(pid) - mib_before)
            most_files = max(most_files, files(pid) - files_before)
            return all(reader.is_answered() for reader in readers)

        until(are_served, 30)
        for _ in range(5):
            hit = post(gateway, STRICT, cached)
            assert (hit.status_code, hit.headers["x-cache"]) == (200, "hit")
            assert hit.json()["data"] == kept
            are_served()
        until(lambda: gateway.output.count('"delivery_broken_off"') >= READERS, 30)
        assert all(reader.is_cut() for reader in readers)

    print(f"{READERS} readers: +{most_mib:.1f} MiB, +{most_files} files")  # noqa: T201
    assert most_mib < BUDGET_MIB + REQUESTS_MIB
    assert most_files <= READERS + CONNECTIONS + 10
    assert post(gateway, ACME, BODY).headers["x-cache"] == "hit"
    assert paid(vendor) == calls

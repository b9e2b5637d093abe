"""The gateway as users meet it: real processes, real SDKs, and figures of what was paid."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.paying.shop import Vendor
from tests.running import HeldClock, Logs, RunningGateway, captured_logs

Figure = Callable[[str], None]


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Iterator[Figure]:
    """Says what was measured: seen with `pytest -s`, and when a test fails."""
    lines: list[str] = []
    yield lines.append
    for line in lines:
        sys.stdout.write(f"\n{request.node.name}: {line}")


@pytest.fixture
def logs() -> Iterator[Logs]:
    with captured_logs() as collected:
        yield collected


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture(scope="session")
def running_vendor() -> Iterator[Vendor]:
    with Vendor() as vendor:
        yield vendor


@pytest.fixture
def vendor(running_vendor: Vendor, clock: HeldClock) -> Vendor:
    """As if just started; its URLs live by the gateway's clock."""
    running_vendor.reset()
    running_vendor.time = lambda: clock.now
    return running_vendor


@pytest.fixture(scope="session")
def running_gateway() -> Iterator[RunningGateway]:
    gateway = RunningGateway()
    yield gateway
    gateway.close()


@pytest.fixture(scope="session")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=20) as client:
        yield client

"""One simulator and one gateway per worker, as if just started for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from gateway.config import Config
from gateway.upstream import accounts, download, retry
from tests.running import (
    Client,
    HeldClock,
    Logs,
    RunningGateway,
    account,
    captured_logs,
    config_for,
)
from tests.simulated import SimulatedDashScope

Start = Callable[[Config], Client]


@pytest.fixture(scope="session")
def running_simulator() -> Iterator[SimulatedDashScope]:
    with SimulatedDashScope(render="plain") as simulator:
        yield simulator


@pytest.fixture(scope="session")
def running_other_simulator() -> Iterator[SimulatedDashScope]:
    with SimulatedDashScope(render="plain") as simulator:
        yield simulator


@pytest.fixture(scope="session")
def running_gateway() -> Iterator[RunningGateway]:
    gateway = RunningGateway()
    yield gateway
    gateway.close()


@pytest.fixture(scope="session")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=20) as client:
        yield client


def as_if_just_started(
    simulator: SimulatedDashScope, gateway: RunningGateway
) -> Iterator[SimulatedDashScope]:
    """Nothing of a test's calls, nor what its gateway sends as it ends, is left to the next one."""
    gateway.await_former()
    simulator.reset()
    yield simulator
    simulator.reset()


@pytest.fixture
def simulator(
    running_simulator: SimulatedDashScope, running_gateway: RunningGateway
) -> Iterator[SimulatedDashScope]:
    """The vendor, as if just started."""
    yield from as_if_just_started(running_simulator, running_gateway)


@pytest.fixture
def other_simulator(
    running_other_simulator: SimulatedDashScope, running_gateway: RunningGateway
) -> Iterator[SimulatedDashScope]:
    """A second one, for a second account."""
    yield from as_if_just_started(running_other_simulator, running_gateway)


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def logs() -> Iterator[Logs]:
    """What the gateway logs."""
    with captured_logs() as collected:
        yield collected


@pytest.fixture
def start(
    running_gateway: RunningGateway, http: httpx.Client, clock: HeldClock, logs: Logs
) -> Iterator[Start]:
    """Starts the gateway with a configuration."""
    running_gateway.await_former()
    logs.lines.clear()  # of a former one's end

    def with_config(config: Config) -> Client:
        running_gateway.use(config, clock.clock())
        hidden = [one.base_url.split("/")[2] for one in config.accounts]
        return Client(http, running_gateway.url, hidden)

    yield with_config
    running_gateway.rest()


@pytest.fixture
def gateway(start: Start, simulator: SimulatedDashScope) -> Client:
    """A gateway with one account, just started."""
    return start(config_for(account(simulator.base_url)))


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits between attempts, of calls and of downloads, a hundred times shorter."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", retry.FIRST_WAIT_S / 100)
    monkeypatch.setattr(download, "FIRST_WAIT_S", download.FIRST_WAIT_S / 100)
    unseen = tuple(wait / 100 for wait in download.UNSEEN_WAITS_S)
    monkeypatch.setattr(download, "UNSEEN_WAITS_S", unseen)
    monkeypatch.setattr("gateway.requests.calls.THROTTLED_S", accounts.THROTTLED_S / 100)

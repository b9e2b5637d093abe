"""What a generation costs is what the account that made it pays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.config import Config, Limits
from gateway.domain.prices import Money, Price
from tests.running import Client, account, config_for, tenants
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.usefixtures("quick_retries")

MODEL = "qwen-image-2.0"


def priced(simulator: SimulatedDashScope, name: str, cost: int, **more: Any) -> Any:
    """An account on which each image has this price, in millionths."""
    return account(simulator.base_url, name, prices={"*": (Price(Money(cost)),)}, **more)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def limited(config: Config, spend: int) -> Config:
    acme, *rest = tenants()
    budget = Limits(spend_per_month=Money(spend))
    return replace(config, tenants=(replace(acme, limits=budget), *rest))


def refusal(gateway: Client) -> str:
    code: str = gateway.generate("more", model=MODEL).json()["error"]["code"]
    return code


def test_the_account_that_served_is_booked(
    start: Start, simulator: SimulatedDashScope, other_simulator: SimulatedDashScope, tmp_path: Path
) -> None:
    """And the dearest is reserved, since nobody knows before which one will."""
    log = tmp_path / "usage.jsonl"
    cheap, dear = priced(simulator, "cheap", 100), priced(other_simulator, "dear", 250)
    gateway = start(limited(config_for(cheap, dear, usage_log=str(log)), 600))

    assert gateway.generate("one", model=MODEL).status_code == 200
    simulator.fault("Arrearage")
    assert gateway.generate("two", model=MODEL).status_code == 200

    assert [line["cost"] for line in records(log)] == [100, 250]
    simulator.reset()
    assert gateway.generate("three", model=MODEL, n=2).json()["error"]["code"] == (
        "insufficient_quota"
    )
    assert gateway.generate("four", model=MODEL).status_code == 200  # 250 of what is left


def test_only_accounts_that_serve_a_model_make_it_dear(
    start: Start, simulator: SimulatedDashScope, other_simulator: SimulatedDashScope
) -> None:
    cheap = priced(simulator, "cheap", 100)
    dear = priced(other_simulator, "dear", 250, models=("qwen-image-plus",))
    gateway = start(limited(config_for(cheap, dear), 200))

    assert [gateway.generate(str(n), model=MODEL).status_code for n in range(2)] == [200, 200]
    assert refusal(gateway) == "insufficient_quota"


@pytest.mark.parametrize(("region", "cost"), [("cn-beijing", 200_000), ("ap-southeast-1", 256_873)])
def test_an_account_pays_the_price_of_its_region(
    region: str, cost: int, start: Start, simulator: SimulatedDashScope, tmp_path: Path
) -> None:
    log = tmp_path / "usage.jsonl"
    one = account(simulator.base_url, price_region=region)
    gateway = start(config_for(one, usage_log=str(log)))

    assert gateway.generate(model=MODEL, n=3).status_code == 200

    assert [line["cost"] for line in records(log)] == [3 * cost]

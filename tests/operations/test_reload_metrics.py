"""What a reload takes away is not shown as if it were still there."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import httpx
import pytest

from tests.operations.site import IMAGE, PATH, document, one_account, tenant, write
from tests.redis_server import RedisServer
from tests.running import ACME, GatewayProcess, key_of, until
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.timing

QUICK = {"connect_timeout_ms": 2000, "command_timeout_ms": 2000}
BETA = key_of("beta")


def shown(gateway: GatewayProcess, name: str, label: str) -> dict[str, float]:
    """The series of a metric by one of their labels."""
    text = httpx.get(f"{gateway.url}/metrics", trust_env=False).text
    found = re.finditer(rf'^{name}{{.*\b{label}="(\w+)".*}} (\S+)$', text, re.MULTILINE)
    return {one[1]: float(one[2]) for one in found}


def ask(gateway: GatewayProcess, key: str = ACME, prompt: str = IMAGE["prompt"]) -> int:
    headers = {"authorization": f"Bearer {key}"}
    image = {**IMAGE, "prompt": prompt}
    return httpx.post(gateway.url + PATH, json=image, headers=headers, trust_env=False).status_code


@pytest.mark.parametrize("workers", [1, 2])
def test_a_budget_that_is_gone_or_changed(workers: int, tmp_path: Path) -> None:
    """Over several workers 0 stays of it, since they share files that forget nothing."""
    file = tmp_path / "gateway.yaml"
    with SimulatedDashScope(render="plain") as vendor, RedisServer() as redis:
        small, large = {"images_per_day": 2}, {"images_per_day": 2000}
        unchanged = tenant("kept", key_of("kept"), limits=small)
        common = {"redis": {"url": redis.url, **QUICK}}
        both = [
            tenant("acme", ACME, limits=small),
            tenant("beta", BETA, limits=small),
            unchanged,
        ]
        write(file, document(vendor.base_url, **common, tenants=both))
        with GatewayProcess.serving(file, "--workers", str(workers)) as gateway:

            def used() -> dict[str, float]:
                return shown(gateway, "gateway_budget_used_ratio", "tenant")

            def is_used_up() -> bool:
                """Both workers are told in the end."""
                for key in (ACME, BETA, key_of("kept")):
                    ask(gateway, key)
                return used() == {"acme": 1, "beta": 1, "kept": 1}

            until(is_used_up)
            fewer = [tenant("acme", ACME, limits=large), unchanged]
            write(file, document(vendor.base_url, **common, tenants=fewer))
            gateway.stop(signal.SIGHUP)

            until(lambda: not used().get("beta") and not used().get("acme"))
            assert ("beta" in used()) is (workers > 1)
            assert used()["kept"] == 1
            # A worker that follows a moment later forgets this again, until the next request.
            until(lambda: ask(gateway) == 200 and 0.001 < used().get("acme", 0) < 0.5)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_breaker_of_an_account_that_is_gone(workers: int, tmp_path: Path) -> None:
    """And not that of one which stays, though nobody calls it meanwhile."""
    file = tmp_path / "gateway.yaml"
    with (
        SimulatedDashScope(render="plain") as bad,
        SimulatedDashScope(render="plain") as good,
        RedisServer() as redis,
    ):
        common = {"redis": {"url": redis.url, **QUICK}}
        bad.fault("reset_before", count=None)
        names = ("gone", "stays")
        accounts = [one_account(bad.base_url, name=name) for name in names]
        accounts.append(one_account(good.base_url, name="good"))
        write(file, document(bad.base_url, **common, accounts=accounts))
        with GatewayProcess.serving(file, "--workers", str(workers)) as gateway:

            def is_open() -> dict[str, float]:
                return shown(gateway, "gateway_breaker_open", "account")

            for number in range(40 * workers):  # the same again would be told the same, unasked
                ask(gateway, prompt=f"fox {number}")
            until(lambda: is_open() == {"gone": 1, "stays": 1, "good": 0})
            write(file, document(bad.base_url, **common, accounts=accounts[1:]))
            gateway.stop(signal.SIGHUP)

            until(lambda: not is_open().get("gone"))
            assert is_open()["stays"] == 1

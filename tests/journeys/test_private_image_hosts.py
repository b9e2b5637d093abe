"""Image hosts behind private addresses: seen once, said clearly, and not paid for again."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from gateway.config import Images
from gateway.upstream.images import LOOK_AGAIN_S
from tests.name_server import Names
from tests.running import Client, HeldClock, Logs, account, config_for
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.usefixtures("quick_retries")

IMAGES = Images(allowed_hosts=(".aliyuncs.com",), timeout_s=5.0)
HOST = "dashscope-result-bj.oss-cn-beijing.aliyuncs.com"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """The name server of this machine."""
    names = Names("198.18.0.7")
    monkeypatch.setattr(aiohttp, "ThreadedResolver", lambda: names)
    return names


def calls(simulator: SimulatedDashScope) -> int:
    return sum(simulator.state(log=0)["calls"].values())


def b64(gateway: Client, seed: int) -> Any:
    return gateway.generate(model="qwen-image-2.0", response_format="b64_json", seed=seed)


def test_after_the_first_failure_no_image_is_paid_for_in_vain(
    start: Start,
    simulator: SimulatedDashScope,
    clock: HeldClock,
    logs: Logs,
    names: Names,
) -> None:
    """URLs go on; and once the name server says otherwise, so do images."""
    simulator.configure(image_base=f"https://{HOST}")
    gateway = start(config_for(account(simulator.base_url), images=IMAGES))

    paid, refused = b64(gateway, 1), b64(gateway, 2)

    assert (paid.status_code, paid.json()["error"]["code"]) == (502, "image_unavailable")
    assert (refused.status_code, refused.json()["error"]["code"]) == (
        503,
        "image_hosts_unreachable",
    )
    for answer in (paid, refused):
        assert "`images.trusted_networks`" in answer.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert calls(simulator) == 1
    [line] = logs.named("image_host_private")
    assert (line["host"], line["addresses"]) == (HOST, ("198.18.0.7",))
    assert line["setting"] == "images.trusted_networks"

    urls = gateway.generate(model="qwen-image-2.0", seed=3)
    assert (urls.status_code, calls(simulator)) == (200, 2)

    names.addresses = ("192.0.32.8",)
    clock.ahead_s += LOOK_AGAIN_S
    assert b64(gateway, 4).json()["error"]["code"] != "image_hosts_unreachable"
    assert calls(simulator) == 3


def test_a_trusted_network_is_connected_to(
    start: Start, simulator: SimulatedDashScope, names: Names, logs: Logs
) -> None:
    """The name server's address is used as it is."""
    names.addresses = ("127.0.0.1",)
    simulator.configure(image_base=f"https://{HOST}")
    images = replace(IMAGES, trusted_networks=("127.0.0.0/8",), timeout_s=0.5)
    gateway = start(config_for(account(simulator.base_url), images=images))

    b64(gateway, 1)

    assert logs.named("image_host_private") == []
    assert logs.named("image_given_up") != []

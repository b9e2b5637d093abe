"""Whatever goes wrong, a client learns nothing of the account, the host or the code behind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.config import Upstream
from gateway.simulator.faults import AFTER, BEFORE, IMAGE
from tests.running import UPSTREAM_KEY, Client, account, config_for
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

pytestmark = [pytest.mark.usefixtures("quick_retries"), pytest.mark.slow]

REPLIES: Final = Path(__file__).parents[2] / "gateway" / "simulator" / "replies"
ERRORS: Final = sorted(path.stem for path in (REPLIES / "errors").glob("*.json"))
RAW: Final = sorted(path.stem for path in (REPLIES / "raw").glob("*.json"))
HARMLESS: Final = {
    "slow",
    "text_content",
    "fewer_images",
    "more_images",
    "task_failed",
    "image_slow",
    "image_wrong_type",
}
INSIDE: Final = (
    f"key {UPSTREAM_KEY} at https://inner.aliyuncs.com:8443/api/v1?token=hush, account 1234567890"
)
OF_THE_VENDOR: Final = re.compile(
    r"dashscope|aliyun|alibaba|127\.0\.0\.1|https?://|hush|1234567890|InvalidApiKey|Arrearage",
    re.IGNORECASE,
)


@pytest.fixture
def impatient(start: Start, simulator: SimulatedDashScope) -> Client:
    """A gateway that gives up soon, on a vendor that hangs."""
    return start(config_for(account(simulator.base_url), upstream=Upstream(deadline_s=0.5)))


def shown(answer: Any) -> str:
    headers = "\n".join(f"{name}: {text}" for name, text in answer.headers.items())
    return f"{headers}\n{answer.text}"


@pytest.mark.parametrize("kind", ERRORS)
def test_a_vendor_s_error(kind: str, impatient: Client, simulator: SimulatedDashScope) -> None:
    """Even where its message names what must not be named."""
    simulator.fault(kind, count=None, message=INSIDE)

    answer = impatient.generate(model="qwen-image-2.0")

    assert answer.status_code >= 400
    assert not OF_THE_VENDOR.search(shown(answer))


@pytest.mark.parametrize("kind", sorted({*RAW, *BEFORE, *AFTER} - HARMLESS))
def test_a_broken_answer(kind: str, impatient: Client, simulator: SimulatedDashScope) -> None:
    simulator.fault(kind, count=None, size_bytes=2 * 1024 * 1024)

    answer = impatient.generate(model="qwen-image-2.0")

    assert answer.status_code >= 400
    assert not OF_THE_VENDOR.search(shown(answer))


@pytest.mark.parametrize("kind", sorted(set(IMAGE) - HARMLESS))
def test_a_broken_image(kind: str, impatient: Client, simulator: SimulatedDashScope) -> None:
    simulator.configure(image_bytes=200_000)
    simulator.fault(kind, count=None, size_bytes=64 * 1024 * 1024, at_byte=20)

    answer = impatient.generate(model="qwen-image-2.0", response_format="b64_json")

    assert answer.status_code in {502, 504}
    may_yet_come = kind in {
        "image_404",
        "image_500",
        "image_hang",
        "image_reset",
        "image_truncated",
    }
    assert answer.headers["x-should-retry"] == str(may_yet_come).lower()
    assert not OF_THE_VENDOR.search(shown(answer))


@pytest.mark.parametrize(
    "base",
    [
        "http://10.1.2.3:9000",
        "https://internal.example",
        "http://169.254.169.254",
        "http://127.0.0.1.nip.io",
        "file://",
        "gopher://127.0.0.1",
    ],
)
@pytest.mark.parametrize("form", ["url", "b64_json"])
def test_an_image_address_that_is_not_allowed(
    form: str, base: str, impatient: Client, simulator: SimulatedDashScope
) -> None:
    """Neither fetched, nor handed to the client, which might fetch it."""
    simulator.configure(image_base=base)

    answer = impatient.generate(model="qwen-image-2.0", response_format=form)

    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "image_unavailable"
    assert base.partition("://")[2].partition(":")[0] not in answer.text or base == "file://"
    assert sum(simulator.state(log=0)["downloads"].values()) == 0


def test_the_vendor_sees_its_own_key_and_the_image_host_none(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """A client's key goes no further than the gateway."""
    simulator.configure(api_keys=[UPSTREAM_KEY])

    answer = gateway.generate(
        model="qwen-image-2.0", response_format="b64_json", headers={"cookie": "a=b", "x-mine": "1"}
    )

    state = simulator.state()
    assert answer.status_code == 200
    assert state["authorised_downloads"] == 0
    assert not {"cookie", "x-mine", "api-key"} & set(state["log"][0]["headers"])

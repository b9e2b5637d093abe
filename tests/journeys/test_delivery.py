"""b64_json through the whole gateway: what arrives is what the vendor made, or a failure."""

from __future__ import annotations

import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from time import time
from typing import Any

import httpx
import pytest

from tests.running import Client, HeldClock, account, config_for
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.usefixtures("quick_retries")

MIB = 1024 * 1024
ASKED: dict[str, Any] = {"model": "qwen-image-2.0", "n": 3, "size": "1024x1024", "seed": 7}


def digests(answer: httpx.Response) -> list[str]:
    """Of the images in an answer, in their order."""
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(answer.content)
    images = [base64.b64decode(each["b64_json"], validate=True) for each in answer.json()["data"]]
    return [hashlib.sha256(image).hexdigest() for image in images]


def sources(gateway: Client) -> list[str]:
    """Digests of the same images, fetched from where the vendor has them."""
    answer = gateway.generate(response_format="url", **ASKED)
    images = [gateway.http.get(each["url"]).content for each in answer.json()["data"]]
    return [hashlib.sha256(image).hexdigest() for image in images]


def b64(gateway: Client, **more: Any) -> httpx.Response:
    return gateway.generate(response_format="b64_json", **{**ASKED, **more})


def downloads(simulator: SimulatedDashScope) -> dict[str, int]:
    found: dict[str, int] = simulator.state(log=0)["downloads"]
    return found


@pytest.mark.slow
def test_every_byte_arrives(gateway: Client, simulator: SimulatedDashScope) -> None:
    """Many answers at once, larger than every buffer on the way."""
    simulator.configure(image_bytes=2 * MIB)
    expected = sources(gateway)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: b64(gateway), range(8)))

    assert [digests(each) for each in answers] == [expected] * 8
    assert answers[0].json()["size"] == "1024x1024"


def test_small_images_arrive_too(gateway: Client) -> None:
    assert digests(b64(gateway)) == sources(gateway)


def test_a_download_that_breaks_is_resumed(gateway: Client, simulator: SimulatedDashScope) -> None:
    """The rest is asked for, not the whole; the client notices nothing."""
    simulator.configure(image_bytes=MIB)
    expected = sources(gateway)
    simulator.fault("image_truncated", count=2, at_byte=600_000)

    assert digests(b64(gateway)) == expected
    # On a busy machine a broken connection may be met once more before a fresh one is made, and a
    # reader that rests has its connection closed.
    assert downloads(simulator)["206"] in range(2, 6)


@pytest.mark.parametrize("kind", ["image_500", "image_reset"])
def test_a_failing_host_is_asked_again(
    kind: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    expected = sources(gateway)
    simulator.fault(kind, count=2)

    assert digests(b64(gateway)) == expected


@pytest.mark.parametrize(
    "kind",
    ["image_expired", "image_redirect", "image_not_png", "image_oversized"],
)
def test_hopeless_before_the_first_byte(
    kind: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """One image of three is enough: none is left out. SDKs are told not to pay again."""
    simulator.fault(kind)

    answer = b64(gateway)

    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "image_unavailable"
    assert answer.headers["x-should-retry"] == "false"


def test_a_new_image_is_not_there_yet(gateway: Client, simulator: SimulatedDashScope) -> None:
    """Its host shows it a moment later; what was paid for is not lost."""
    simulator.fault("image_404", count=3)

    answer = b64(gateway, n=1)

    assert len(digests(answer)) == 1
    assert downloads(simulator)["404"] == 3


def test_a_kept_result_that_is_gone(
    start: Start, simulator: SimulatedDashScope, clock: HeldClock
) -> None:
    """Nobody waits for what was there before and is no longer."""
    clock.now = time()
    gateway = start(config_for(account(simulator.base_url)))
    sources(gateway)
    simulator.fault("image_404", count=None)

    answer = b64(gateway)

    assert answer.status_code == 502
    assert downloads(simulator)["404"] <= ASKED["n"]


def test_hopeless_after_the_first_byte(gateway: Client, simulator: SimulatedDashScope) -> None:
    """The SDKs' HTTP client sees a broken connection, and no answer."""
    simulator.configure(image_bytes=4 * MIB)
    sources(gateway)
    simulator.fault("image_truncated", at_byte=2 * MIB)
    simulator.fault("image_expired")

    with pytest.raises(httpx.RemoteProtocolError, match="complete message body"):
        b64(gateway, n=1)


def test_no_key_reaches_an_image_host(gateway: Client, simulator: SimulatedDashScope) -> None:
    b64(gateway)

    assert simulator.state(log=0)["authorised_downloads"] == 0


def test_a_client_that_hangs_up_frees_its_downloads(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """And does not disturb the next one."""
    simulator.configure(image_bytes=4 * MIB)
    expected = sources(gateway)
    body = {"prompt": "a fox", "response_format": "b64_json", **ASKED}
    for _ in range(3):
        with httpx.Client(trust_env=False) as leaving:
            url = f"{gateway.url}/v1/images/generations"
            headers = gateway.ask("GET", "/v1/models").request.headers
            auth = {"authorization": headers["authorization"]}
            with leaving.stream("POST", url, json=body, headers=auth) as answer:
                assert answer.status_code == 200
                next(answer.iter_raw())

    assert digests(b64(gateway)) == expected

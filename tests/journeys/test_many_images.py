"""n images on models that make fewer at a time: split, side by side, in order."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.running import Client
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.usefixtures("quick_retries")


def parameters(simulator: SimulatedDashScope) -> list[dict[str, Any]]:
    return [call["body"]["parameters"] for call in simulator.state()["log"]]


@pytest.mark.parametrize(
    ("model", "n", "counts"),
    [
        ("qwen-image-2.0", 1, [1]),
        ("qwen-image-2.0", 6, [6]),
        ("qwen-image-2.0", 7, [3, 4]),
        ("qwen-image-2.0", 10, [5, 5]),
        ("qwen-image-plus", 1, [1]),
        ("qwen-image-plus", 7, [1] * 7),
        ("qwen-image-max", 10, [1] * 10),
        ("qwen-image", 3, [1] * 3),
        ("wan2.6-t2i", 10, [3, 3, 4]),
    ],
)
def test_n_on_every_model(
    model: str, n: int, counts: list[int], gateway: Client, simulator: SimulatedDashScope
) -> None:
    answer = gateway.generate(model=model, n=n)

    assert len({image["url"] for image in answer.json()["data"]}) == n
    assert sorted(each["n"] for each in parameters(simulator)) == counts
    assert sum(simulator.state()["paid"].values()) == n


def test_calls_run_side_by_side(gateway: Client, simulator: SimulatedDashScope) -> None:
    """Ten images take as long as one."""
    simulator.configure(latency_s=0.3)

    answer = gateway.generate(model="qwen-image-plus", n=10)

    assert simulator.state()["peak_in_flight"] == 10
    assert 0.3 <= answer.elapsed.total_seconds() < 1.5


@pytest.mark.slow
def test_images_come_in_the_order_of_their_seeds(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """Whichever call ends first: image k of a seed is the same one each time."""
    simulator.configure(latency_s=[0.0, 0.15])

    def pictures() -> list[str]:
        answer = gateway.generate(
            model="qwen-image-plus", n=6, seed=100, response_format="b64_json"
        )
        return [image["b64_json"] for image in answer.json()["data"]]

    first = pictures()
    alone = [
        gateway.generate(model="qwen-image-plus", seed=100 + k, response_format="b64_json")
        for k in range(6)
    ]

    assert len(set(first)) == 6
    assert first == pictures()
    assert first == [answer.json()["data"][0]["b64_json"] for answer in alone]


def test_the_first_images_of_more_are_those_of_fewer(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """Split or not, the k-th image comes from the seed's k-th place."""
    gateway.generate(model="qwen-image-2.0", n=7, seed=5)

    asked = sorted((each["seed"], each["n"]) for each in parameters(simulator))
    assert asked == [(5, 4), (9, 3)]


@pytest.mark.parametrize("choice_per_image", [False, True])
def test_both_shapes_of_the_vendor_s_answer(
    choice_per_image: bool, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """One choice with six items, or six choices with one."""
    simulator.configure(choice_per_image=choice_per_image)

    data = gateway.generate(model="qwen-image-2.0", n=6).json()["data"]

    assert len({image["url"] for image in data}) == 6


def test_one_throttled_call_of_many_is_sent_again_alone(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    simulator.fault("Throttling.RateQuota")

    answer = gateway.generate(model="qwen-image-plus", n=5, seed=1)

    assert len(answer.json()["data"]) == 5
    assert sum(simulator.state()["paid"].values()) == 5
    seeds = sorted(each["seed"] for each in parameters(simulator))
    assert len(seeds) == 6
    assert set(seeds) == {1, 2, 3, 4, 5}


def test_several_answers_that_lack_images_are_topped_up(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """Each call for its own, with seeds that nobody else has."""
    simulator.configure(latency_s=0.2)  # so that both calls are there before either is answered
    simulator.fault("fewer_images", count=2)

    answer = gateway.generate(model="qwen-image-2.0", n=10, seed=0, response_format="b64_json")

    assert len({image["b64_json"] for image in answer.json()["data"]}) == 10
    asked = sorted((each["seed"], each["n"]) for each in parameters(simulator))
    assert asked == [(0, 5), (4, 1), (5, 5), (9, 1)]


def test_many_clients_at_once_get_their_own(gateway: Client, simulator: SimulatedDashScope) -> None:
    """Fifty requests in flight: each answer belongs to its question."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    simulator.configure(latency_s=[0.0, 0.1])

    def ask(number: int) -> tuple[int, str]:
        answer = gateway.generate(f"fox {number}", model="qwen-image-2.0", seed=number)
        return number, answer.headers["x-request-id"]

    with ThreadPoolExecutor(25) as threads:
        answers = list(threads.map(ask, range(50)))

    assert len({request_id for _, request_id in answers}) == 50
    for call in simulator.state()["log"]:
        number = call["body"]["parameters"]["seed"]
        text = call["body"]["input"]["messages"][0]["content"][0]["text"]
        assert text == f"fox {number}"


def test_an_answer_s_urls_are_the_vendor_s_byte_for_byte(gateway: Client) -> None:
    """Their signature covers %2B, %2F and %3D: decoded and encoded again, it would not hold."""
    urls = [i["url"] for i in gateway.generate(model="qwen-image-2.0", n=3).json()["data"]]

    for url in urls:
        assert "%2B" in url or "%2F" in url
        assert url.endswith("%3D")
        assert httpx.get(url, trust_env=False).status_code == 200

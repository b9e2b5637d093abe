from __future__ import annotations

import re
import socket
import uuid
from typing import Any

import httpx
import msgspec
import pytest

from gateway.simulator.generation import PATHS
from gateway.simulator.replies import REPLIES
from tests.simulated import SimulatedDashScope
from tests.simulator.calls import KEY, SYNC, Ask, Clock, keys_of, request, urls_in, wait_for


@pytest.mark.parametrize(
    ("model", "reply"),
    [
        ("qwen-image-2.0-pro", "qwen-image-2.0"),
        ("qwen-image-2.0-2026-03-03", "qwen-image-2.0"),
        ("qwen-image-2.1-turbo", "qwen-image-2.0"),
        ("qwen-image-max", "qwen-image"),
        ("qwen-image-plus", "qwen-image"),
        ("qwen-image", "qwen-image"),
        ("qwen-image-3.0", "qwen-image-3.0"),
        ("wan2.6-t2i", "wan2.6"),
        ("wan2.7-image", "wan2.7"),
    ],
)
def test_each_family_answers_in_the_shape_the_vendor_documents(
    ask: Ask, model: str, reply: str
) -> None:
    """The reply file's keys, no more and no fewer."""
    documented = msgspec.json.decode((REPLIES / "success" / f"{reply}.json").read_bytes())
    answer = ask(model=model, n=1)
    assert answer.status_code == documented["status"]
    assert keys_of(answer.json()) == keys_of(documented["body"])


def test_max_plus_and_image_count_their_work_in_the_singular(ask: Ask) -> None:
    """`task_metric` on a synchronous answer, where tasks have `task_metrics`."""
    output = ask(model="qwen-image-plus").json()["output"]
    assert output["task_metric"] == {"TOTAL": 1, "SUCCEEDED": 1, "FAILED": 0}


@pytest.mark.parametrize(
    ("size", "kind"), [("1024*1024", "qima_output_1k"), ("2048*2048", "qima_output_2k")]
)
def test_the_newest_family_has_a_usage_of_its_own(
    sim: SimulatedDashScope, ask: Ask, size: str, kind: str
) -> None:
    """With no `image_count`, and the size class that decides the price."""
    sim.configure(usage_geometry="true")
    answer = ask(model="qwen-image-3.0-pro", size=size, n=2, prompt_extend=False).json()
    width, height = map(int, size.split("*"))
    assert answer["usage"] == {
        "output_width": width,
        "output_height": height,
        "output_image_count": 2,
        "output_image_type": kind,
        "input_image_count": 0,
        "input_image_type": "",
    }
    assert answer["output"]["rewrite_status"] == "not_use"


def test_z_image_shows_the_prompt_it_rewrote(ask: Ask) -> None:
    """A text item beside the image, when it was asked to extend the prompt."""
    extended = ask(model="z-image-turbo", prompt_extend=True).json()
    plain = ask(model="z-image-turbo").json()
    contents = [a["output"]["choices"][0]["message"]["content"] for a in (extended, plain)]
    assert [sorted(item) for item in contents[0]] == [["image", "type"], ["text"]]
    assert len(contents[1]) == 1


def test_several_images_come_in_one_choice(ask: Ask) -> None:
    """As in every example of the vendor."""
    output = ask(n=3).json()["output"]
    assert len(output["choices"]) == 1
    assert len(output["choices"][0]["message"]["content"]) == 3


def test_several_images_can_come_in_a_choice_each(sim: SimulatedDashScope, ask: Ask) -> None:
    """As the vendor's field description says."""
    sim.configure(choice_per_image=True)
    choices = ask(n=3).json()["output"]["choices"]
    assert [len(choice["message"]["content"]) for choice in choices] == [1, 1, 1]
    assert {choice["finish_reason"] for choice in choices} == {"stop"}


def test_fewer_images_than_asked_may_come(sim: SimulatedDashScope, ask: Ask) -> None:
    """Only those that came are counted and paid, and at least one always comes."""
    sim.configure(missing_images=2, usage_geometry="true")
    answer = ask(n=4)
    assert len(urls_in(answer)) == answer.json()["usage"]["image_count"] == 2
    assert len(urls_in(ask(n=1))) == 1
    assert sim.state()["paid"] == {"qwen-image-2.0-pro": 3}


def test_usage_misstates_the_size_unless_told_to_be_true(sim: SimulatedDashScope, ask: Ask) -> None:
    """As the vendor's own examples do, so that nobody relies on it."""
    lies = [ask(size=size).json()["usage"] for size in ("1024*1536", "1664*928")]
    sim.configure(usage_geometry="true")
    truth = ask(size="1024*1536").json()["usage"]
    assert [(u["width"], u["height"]) for u in lies] == [(1664, 928), (928, 1664)]
    assert (truth["width"], truth["height"]) == (1024, 1536)


def test_the_headers_are_those_seen_on_real_answers(ask: Ask) -> None:
    """The request id is a UUID, the same in header and body."""
    answer = ask()
    expected = {
        "content-type": "application/json",
        "server": "istio-envoy",
        "x-dashscope-call-gateway": "true",
        "x-dashscope-finished": "true",
        "x-dashscope-timeout": "298",
    }
    assert expected.items() <= dict(answer.headers).items()
    for name in ("req-cost-time", "req-arrive-time", "x-envoy-upstream-service-time"):
        assert answer.headers[name].isdecimal()
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert str(uuid.UUID(answer.json()["request_id"])) == answer.json()["request_id"]


def test_errors_have_code_message_and_request_id(ask: Ask) -> None:
    """Nothing else, and the same headers as successes."""
    refused = ask(n=7)
    assert refused.status_code == 400
    assert sorted(refused.json()) == ["code", "message", "request_id"]
    assert refused.headers["x-request-id"] == refused.json()["request_id"]


@pytest.mark.parametrize(
    ("model", "pattern"),
    [
        ("qwen-image-plus", r"/{id}-1\.png"),
        ("qwen-image-2.0-pro", r"/{id}-1\.png"),
        ("qwen-image-3.0", r"/{id}_qwen_image3_serving_output_0\.png"),
    ],
)
def test_the_file_is_named_as_the_family_names_it(ask: Ask, model: str, pattern: str) -> None:
    """After the request id."""
    answer = ask(model=model)
    wanted = pattern.replace("{id}", answer.json()["request_id"])
    assert re.search(wanted, urls_in(answer)[0])


def test_the_url_has_the_form_of_object_storage(ask: Ask, clock: Clock) -> None:
    """Life, two hex digits, the day in Beijing, eight hex digits, name, expiry, signature."""
    url = urls_in(ask())[0]
    match = re.fullmatch(
        r"http://127\.0\.0\.1:\d+/1d/[0-9a-f]{2}/(\d{8})/[0-9a-f]{8}/[0-9a-f-]+-1\.png"
        r"\?Expires=(\d+)&OSSAccessKeyId=LTAI\w+&Signature=([\w%.~-]+)",
        url,
    )
    assert match is not None, url
    assert match[1] == "20261123"  # 02:13 in Beijing, still the 22nd in Greenwich
    assert int(match[2]) == int(clock.now) + 86_400


def test_signatures_are_full_of_escapes(ask: Ask) -> None:
    """A client that touches the query breaks nearly every one."""
    urls = [url for _ in range(10) for url in urls_in(ask(n=6))]
    assert all("%3D" in url for url in urls)
    assert sum("%2B" in url and "%2F" in url for url in urls) > 50


def test_urls_can_live_a_week_or_any_time(sim: SimulatedDashScope, ask: Ask, clock: Clock) -> None:
    """`/7d/` URLs live seven days; a test may want ten seconds."""
    sim.configure(url_life="7d")
    week = urls_in(ask())[0]
    sim.configure(url_life_s=10)
    short = urls_in(ask())[0]
    assert f"/7d/{week.split('/')[4]}/" in week
    assert f"Expires={int(clock.now) + 7 * 86_400}&" in week
    assert f"Expires={int(clock.now) + 10}&" in short


def test_urls_point_where_they_are_told_to(sim: SimulatedDashScope, ask: Ask) -> None:
    """The request's own host, unless another base is set."""
    assert urls_in(ask())[0].startswith(f"{sim.origin}/1d/")
    sim.configure(image_base="http://localhost:9001/")
    assert urls_in(ask())[0].startswith("http://localhost:9001/1d/")


@pytest.mark.parametrize(
    ("authorization", "message"),
    [
        (None, "No API-key provided."),
        ("", "No API-key provided."),
        ("Bearer", "No API-key provided."),
        ("Basic c2stdGVzdA==", "No API-key provided."),
    ],
)
def test_a_call_needs_a_bearer_key(
    sim: SimulatedDashScope, http: httpx.Client, authorization: str | None, message: str
) -> None:
    """401 otherwise, whatever the body."""
    headers = {} if authorization is None else {"Authorization": authorization}
    refused = http.post(sim.base_url + SYNC, headers=headers, json={})
    assert refused.status_code == 401
    assert refused.json()["code"] == "InvalidApiKey"
    assert refused.json()["message"] == message


def test_named_keys_shut_out_all_others(sim: SimulatedDashScope, ask: Ask) -> None:
    """Any key will do until some are named."""
    assert ask().status_code == 200
    sim.configure(api_keys=["sk-real"])
    assert ask().status_code == 401
    assert ask().json()["message"] == "Invalid API-key provided."
    sim.configure(api_keys=["sk-real", "sk-test"])
    assert ask().status_code == 200


def test_headers_nobody_knows_are_ignored(sim: SimulatedDashScope, http: httpx.Client) -> None:
    """As is the charset the SDK adds to the content type."""
    headers = KEY | {
        "Content-Type": "application/json; charset=utf-8",
        "X-DashScope-WorkSpace": "ws-1",
        "X-Trace": "1",
    }
    body = msgspec.json.encode(request("a cat", "qwen-image", {}))
    assert http.post(sim.base_url + SYNC, headers=headers, content=body).status_code == 200


def test_a_body_that_is_not_said_to_be_json_is_refused(
    sim: SimulatedDashScope, http: httpx.Client
) -> None:
    """Even if it is."""
    body = msgspec.json.encode(request("a cat", "qwen-image", {}))
    headers = KEY | {"Content-Type": "text/plain"}
    refused = http.post(sim.base_url + SYNC, headers=headers, content=body)
    assert refused.json()["message"].startswith("Required body invalid")


def test_an_asynchronous_call_of_the_synchronous_path_is_denied(
    sim: SimulatedDashScope, http: httpx.Client
) -> None:
    """With the words that tell which way is closed."""
    headers = KEY | {"X-DashScope-Async": "enable"}
    body = request("a cat", "qwen-image-2.0-pro", {})
    refused = http.post(sim.base_url + SYNC, headers=headers, json=body)
    assert refused.status_code == 403
    assert refused.json()["code"] == "AccessDenied"
    assert "asynchronous" in refused.json()["message"]


@pytest.mark.parametrize("path", [path for path, kind in PATHS.items() if kind != "sync"])
def test_a_task_path_called_synchronously_is_denied(
    sim: SimulatedDashScope, http: httpx.Client, path: str
) -> None:
    """The header is required there."""
    body = request("a cat", "qwen-image-3.0", {})
    refused = http.post(sim.origin + path, headers=KEY, json=body)
    assert refused.status_code == 403
    assert refused.json()["message"] == "current user api does not support synchronous calls"


def test_a_body_over_the_limit_is_413(sim: SimulatedDashScope, http: httpx.Client) -> None:
    """Four times as much is allowed when an image travels in it."""
    sim.configure(max_body_bytes=1000)

    def status(reference: str) -> int:
        body = request("x", "qwen-image-2.0", {})
        body["input"]["messages"][0]["content"].append({"image": reference})
        return http.post(sim.base_url + SYNC, headers=KEY, json=body).status_code

    pixel = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    assert status("https://example.com/" + "x" * 1000) == 413
    assert status(pixel) == 200
    assert status("data:image/png;base64," + "A" * 2000) == 400
    assert status("data:image/png;base64," + "A" * 4000) == 413
    assert sim.state()["refused"]["413"] == 2


def test_a_body_sent_in_pieces_is_limited_too(sim: SimulatedDashScope, http: httpx.Client) -> None:
    """Without a declared length there is only counting."""
    sim.configure(max_body_bytes=1000)
    pieces = (b"x" * 500 for _ in range(20))
    headers = KEY | {"Content-Type": "application/json"}
    assert http.post(sim.base_url + SYNC, headers=headers, content=pieces).status_code == 413


def test_a_client_that_leaves_in_the_middle_of_its_body_is_noted(sim: SimulatedDashScope) -> None:
    """It gets no answer and pays nothing."""
    with socket.create_connection(("127.0.0.1", sim.port)) as raw:
        raw.sendall(f"POST /api/v1{SYNC} HTTP/1.1\r\nHost: x\r\n".encode())
        raw.sendall(b"Content-Length: 100\r\n\r\n{")
    state = wait_for(sim, lambda state: state["clients_gone"] == 1)
    assert state["in_flight"] == 0
    assert state["paid"] == {}
    assert state["log"][0]["outcome"] == "client gone"


def test_other_methods_and_paths_are_not_found(sim: SimulatedDashScope, http: httpx.Client) -> None:
    """In the vendor's shape."""
    for found in (http.get(sim.base_url + SYNC), http.post(sim.base_url + "/nowhere")):
        assert found.status_code == 404
        assert found.json()["code"] == "NotFound"


@pytest.mark.parametrize(
    ("latency", "expected"),
    [
        (2.5, [2.5]),
        ({"qwen-image-2.0-pro": 3.0, "*": 1.0}, [3.0]),
        ({"*": 1.0}, [1.0]),
        ({"qwen-image-max": 3.0}, []),
        (0, []),
    ],
)
def test_a_generation_takes_the_time_it_is_set_to(
    sim: SimulatedDashScope, ask: Ask, clock: Clock, latency: Any, expected: list[float]
) -> None:
    """The same for all, or by model."""
    sim.configure(latency_s=latency)
    answer = ask()
    assert clock.naps == expected
    assert answer.headers["req-cost-time"] == str(int(sum(expected) * 1000))


def test_a_latency_can_be_drawn_from_a_range(
    sim: SimulatedDashScope, ask: Ask, clock: Clock
) -> None:
    """Evenly, and never outside."""
    sim.configure(latency_s=[1, 2])
    for _ in range(20):
        ask()
    assert len(set(clock.naps)) == 20
    assert all(1 <= nap <= 2 for nap in clock.naps)


def test_a_refused_call_takes_no_time(sim: SimulatedDashScope, ask: Ask, clock: Clock) -> None:
    """Real refusals come within a fraction of a second."""
    sim.configure(latency_s=30)
    assert ask(n=9).status_code == 400
    assert clock.naps == []


def test_the_same_seed_gives_the_same_image(ask: Ask, http: httpx.Client) -> None:
    """Byte for byte, behind URLs that differ; each of several images is different."""
    first, again = ask(seed=7, n=2), ask(seed=7, n=2)
    images = [http.get(url).content for answer in (first, again) for url in urls_in(answer)]
    assert images[0] == images[2]
    assert images[1] == images[3]
    assert images[0] != images[1]
    assert not set(urls_in(first)) & set(urls_in(again))


def test_no_seed_gives_another_image_each_time(ask: Ask, http: httpx.Client) -> None:
    """A random seed is used, and can be read from the image."""
    images = [http.get(urls_in(ask())[0]).content for _ in range(3)]
    assert len(set(images)) == 3

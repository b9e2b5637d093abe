from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from gateway.simulator.replies import REPLIES
from gateway.simulator.tasks import KEPT_TASKS, TaskBoard
from tests.simulated import SimulatedDashScope
from tests.simulator.calls import KEY, Clock, keys_of, request

NEW = "/services/aigc/image-generation/generation"
OLD = "/services/aigc/text2image/image-synthesis"
ASYNC = KEY | {"X-DashScope-Async": "enable"}

Json = dict[str, Any]
Submit = Callable[..., str]


def documented(name: str) -> Json:
    body: Json = msgspec.json.decode((REPLIES / "success" / f"{name}.json").read_bytes())["body"]
    return body


@pytest.fixture
def submit(sim: SimulatedDashScope, http: httpx.Client) -> Submit:
    """Submits a task on the newer or the older path and returns its id."""

    def call(path: str = NEW, **parameters: Any) -> str:
        body = request("a cat", "qwen-image-3.0", parameters)
        if path == OLD:
            given = {"prompt": "a cat"}
            body = {"model": "qwen-image-plus", "input": given, "parameters": parameters}
        answer = http.post(sim.base_url + path, headers=ASYNC, json=body)
        assert answer.status_code == 200, answer.text
        assert keys_of(answer.json()) == keys_of(documented("task-submitted"))
        assert answer.json()["output"]["task_status"] == "PENDING"
        task_id: str = answer.json()["output"]["task_id"]
        return task_id

    return call


@pytest.fixture
def poll(sim: SimulatedDashScope, http: httpx.Client) -> Callable[[str], Json]:
    def call(task_id: str) -> Json:
        answer = http.get(f"{sim.base_url}/tasks/{task_id}", headers=KEY)
        assert answer.status_code == 200
        body: Json = answer.json()
        return body

    return call


Poll = Callable[[str], Json]


def test_a_task_waits_runs_and_succeeds(
    sim: SimulatedDashScope, submit: Submit, poll: Poll, clock: Clock
) -> None:
    """By the clock; its images are paid for at the end."""
    sim.configure(task_pending_s=2, latency_s=10)
    task_id = submit(n=2)
    seen = []
    for seconds in (1.9, 0.2, 9.8, 0.2):
        clock.advance(seconds)
        seen.append(poll(task_id)["output"]["task_status"])
    assert seen == ["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"]
    assert sim.state()["paid"] == {"qwen-image-3.0": 2}


def test_each_state_has_the_shape_the_vendor_documents(
    sim: SimulatedDashScope, submit: Submit, poll: Poll, clock: Clock
) -> None:
    """Times without a zone, and metrics while running."""
    sim.configure(task_pending_s=2, latency_s=10)
    task_id = submit()
    pending = poll(task_id)
    clock.advance(3)
    running = poll(task_id)
    clock.advance(10)
    done = poll(task_id)
    assert keys_of(pending) == keys_of(documented("task-pending"))
    assert keys_of(running) == keys_of(documented("task-running"))
    assert pending["output"]["submit_time"] == "2026-11-23 02:13:20.000"
    assert done["output"]["end_time"] == "2026-11-23 02:13:32.000"
    assert done["output"]["choices"][0]["message"]["content"][0]["type"] == "image"
    assert done["usage"]["output_image_count"] == 1


def test_a_finished_task_stays_as_it_is(
    sim: SimulatedDashScope, submit: Submit, poll: Poll
) -> None:
    """The same images however often it is asked for, and paid once."""
    task_id = submit()
    first, again = poll(task_id), poll(task_id)
    assert first["output"] == again["output"]
    assert first["request_id"] != again["request_id"]
    assert sim.state()["paid"] == {"qwen-image-3.0": 1}


def test_an_image_of_a_task_can_be_fetched(
    sim: SimulatedDashScope, submit: Submit, poll: Poll, http: httpx.Client
) -> None:
    """On either path."""
    new = poll(submit())["output"]["choices"][0]["message"]["content"][0]["image"]
    old = poll(submit(OLD))["output"]["results"][0]["url"]
    for url in (new, old):
        assert http.get(url).headers["content-type"] == "image/png"


def test_the_older_path_lists_results_with_both_prompts(submit: Submit, poll: Poll) -> None:
    """The one given, and the one used; only the first without rewriting."""
    rewritten = poll(submit(OLD))
    plain = poll(submit(OLD, prompt_extend=False))
    assert rewritten["output"]["results"][0]["orig_prompt"] == "a cat"
    assert "actual_prompt" in rewritten["output"]["results"][0]
    assert "actual_prompt" not in plain["output"]["results"][0]
    assert plain["usage"] == {"image_count": 1}
    assert plain["output"]["task_metrics"] == {"TOTAL": 1, "SUCCEEDED": 1, "FAILED": 0}


def test_part_of_a_task_may_fail(sim: SimulatedDashScope, http: httpx.Client, poll: Poll) -> None:
    """It succeeds, with a code in place of the missing image."""
    sim.configure(missing_images=1)
    body = {"model": "wan2.5-t2i-preview", "input": {"prompt": "x"}, "parameters": {"n": 3}}
    answer = http.post(sim.base_url + OLD, headers=ASYNC, json=body)
    done = poll(answer.json()["output"]["task_id"])
    assert [min(result) for result in done["output"]["results"]] == [
        "actual_prompt",
        "actual_prompt",
        "code",
    ]
    assert done["output"]["task_metrics"] == {"TOTAL": 3, "SUCCEEDED": 2, "FAILED": 1}
    assert done["usage"]["image_count"] == 2
    assert sim.state()["paid"] == {"wan2.5-t2i-preview": 2}


def test_a_task_may_fail(sim: SimulatedDashScope, submit: Submit, poll: Poll) -> None:
    """200 with the error inside, and nothing paid."""
    sim.fault("task_failed")
    failed = poll(submit())
    assert keys_of(failed) == keys_of(documented("task-failed"))
    assert failed["output"]["code"] == "InternalError.Timeout"
    assert sim.state()["paid"] == {}


def test_an_unknown_task_is_a_200(poll: Poll) -> None:
    """With a status of its own."""
    unknown = poll("no-such-task")
    assert unknown["output"] == {"task_id": "no-such-task", "task_status": "UNKNOWN"}


def test_a_task_is_forgotten_after_a_day(submit: Submit, poll: Poll, clock: Clock) -> None:
    """UNKNOWN from then on."""
    task_id = submit()
    clock.advance(24 * 3600 + 1)
    assert poll(task_id)["output"]["task_status"] == "UNKNOWN"


def test_a_task_belongs_to_its_account(
    sim: SimulatedDashScope, submit: Submit, http: httpx.Client
) -> None:
    """Nobody else sees it."""
    sim.configure(accounts={"sk-other": "other"})
    other = {"Authorization": "Bearer sk-other"}
    answer = http.get(f"{sim.base_url}/tasks/{submit()}", headers=other)
    assert answer.json()["output"]["task_status"] == "UNKNOWN"


def test_only_a_waiting_task_can_be_cancelled(
    sim: SimulatedDashScope, submit: Submit, poll: Poll, http: httpx.Client
) -> None:
    """Then it is never paid."""
    sim.configure(task_pending_s=5)
    task_id = submit()
    url = f"{sim.base_url}/tasks/{task_id}/cancel"
    done = http.post(url, headers=KEY)
    again = http.post(url, headers=KEY)
    assert (done.status_code, sorted(done.json())) == (200, ["request_id"])
    assert poll(task_id)["output"]["task_status"] == "CANCELED"
    assert (again.status_code, again.json()["code"]) == (400, "UnsupportedOperation")
    assert "PENDING" in again.json()["message"]
    assert sim.state()["paid"] == {}


def test_tasks_are_listed_newest_first_in_pages(
    sim: SimulatedDashScope, submit: Submit, http: httpx.Client
) -> None:
    """By state and model, if wanted."""
    ids = [submit(), submit(OLD), submit()]

    def listed(**query: Any) -> Json:
        page: Json = http.get(f"{sim.base_url}/tasks", headers=KEY, params=query).json()
        return page

    assert keys_of(listed()) | {"data": []} == keys_of(documented("task-list")) | {"data": []}
    assert [task["task_id"] for task in listed()["data"]] == ids[::-1]
    page = listed(page_no=2, page_size=2)
    assert ([task["task_id"] for task in page["data"]], page["total_page"]) == ([ids[0]], 2)
    assert listed(model_name="qwen-image-plus")["total"] == 1
    assert listed(status="PENDING")["total"] == 0


def test_tasks_are_paid_even_if_nobody_asks(
    sim: SimulatedDashScope, submit: Submit, clock: Clock
) -> None:
    """The vendor bills what it made, fetched or not."""
    sim.configure(latency_s=10)
    submit(n=3)
    assert sim.state()["paid"] == {}
    clock.advance(10)
    assert sim.state()["paid"] == {"qwen-image-3.0": 3}
    assert sim.state()["log"][0]["outcome"] == "submitted"


@pytest.mark.parametrize("path", ["/tasks/x", "/tasks"])
def test_asking_for_tasks_needs_a_key(
    sim: SimulatedDashScope, http: httpx.Client, path: str
) -> None:
    """As everything does."""
    refused = http.get(sim.base_url + path)
    assert (refused.status_code, refused.json()["code"]) == (401, "InvalidApiKey")


def test_the_board_forgets_the_oldest_tasks() -> None:
    """It must not grow without end."""
    board = TaskBoard()
    task = type("T", (), {"account": "a", "submitted": 0.0})
    for number in range(KEPT_TASKS + 1):
        numbered = task()
        numbered.task_id = str(number)
        board.add(numbered)
    assert len(board.all()) == KEPT_TASKS
    assert board.find("0", "a", 0) is None

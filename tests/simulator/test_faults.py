from __future__ import annotations

import random
import socket

import httpx
import msgspec
import pytest

from gateway.simulator.faults import AFTER, BEFORE, IMAGE, Fault, FaultQueue, UnknownKind
from tests.simulated import SimulatedDashScope
from tests.simulator.calls import KEY, SYNC, Ask, Clock, request, urls_in, wait_for

MODEL = "qwen-image-2.0-pro"


def queue() -> FaultQueue:
    return FaultQueue(["InternalError", "Throttling.RateQuota"], random.Random(1))


def test_a_fault_is_met_as_often_as_it_counts() -> None:
    """Once unless said otherwise; without end when the count is null."""
    faults = queue()
    faults.add(Fault(kind="slow"))
    faults.add(Fault(kind="hang", count=2))
    faults.add(Fault(kind="InternalError", count=None))
    met = [faults.take_for_call("m") for _ in range(6)]
    assert [fault.kind for fault in met if fault] == ["slow", "hang", "hang"] + [
        "InternalError"
    ] * 3
    assert [fault.kind for fault in faults.waiting()] == ["InternalError"]


def test_a_fault_may_wait_for_a_model() -> None:
    """By name or glob, while others go first."""
    faults = queue()
    faults.add(Fault(kind="slow", model="qwen-image-2.0*"))
    faults.add(Fault(kind="hang"))
    assert [getattr(faults.take_for_call(m), "kind", None) for m in ("wan2.6-t2i", MODEL)] == [
        "hang",
        "slow",
    ]


def test_a_fault_may_hit_only_a_share_of_calls() -> None:
    """For a vendor that fails now and then."""
    faults = queue()
    faults.add(Fault(kind="InternalError", count=None, share=0.25))
    hits = sum(faults.take_for_call("m") is not None for _ in range(1000))
    assert 200 < hits < 300


def test_calls_and_downloads_meet_their_own_faults() -> None:
    """An image fault waits for a download."""
    faults = queue()
    faults.add(Fault(kind="image_404"))
    assert faults.take_for_call("m") is None
    assert faults.take_for_image("m") == Fault(kind="image_404")


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    """So that a typo does not pass for a quiet vendor."""
    with pytest.raises(UnknownKind, match=r"unknown fault kind 'slwo'; known: .*slow"):
        queue().add(Fault(kind="slwo"))


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ("a cat", None),
        ("a cat [simulate:nonsense]", None),
        ("a cat [simulate:InternalError] on a mat", Fault(kind="InternalError")),
        ("[simulate:Throttling.RateQuota]", Fault(kind="Throttling.RateQuota")),
        ("[simulate:slow 2.5]", Fault(kind="slow", after_s=2.5)),
    ],
)
def test_a_prompt_may_ask_for_a_fault(prompt: str, fault: Fault | None) -> None:
    """With a delay in seconds, if wanted."""
    assert queue().from_prompt(prompt) == fault


def test_a_fault_in_the_prompt_is_met_by_that_call(sim: SimulatedDashScope, ask: Ask) -> None:
    """Every time, without using up what is queued; unless prompts may not."""
    sim.fault("InternalError")
    prompt = "a cat [simulate:DataInspectionFailed]"
    assert [ask(prompt).json()["code"] for _ in range(2)] == ["DataInspectionFailed"] * 2
    sim.configure(prompt_faults=False)
    assert ask(prompt).json()["code"] == "InternalError"
    assert ask(prompt).status_code == 200


def test_an_image_fault_in_the_prompt_is_met_by_its_downloads(ask: Ask, http: httpx.Client) -> None:
    """The call itself succeeds."""
    url = urls_in(ask("a cat [simulate:image_404]"))[0]
    assert [http.get(url).status_code for _ in range(2)] == [404, 404]
    assert http.get(urls_in(ask())[0]).status_code == 200


def test_a_fault_can_word_its_message(sim: SimulatedDashScope, ask: Ask) -> None:
    """The code and status stay those of the file."""
    sim.fault("InvalidParameter-n-range", message="num_images_per_prompt must be odd")
    answer = ask()
    assert answer.status_code == 400
    assert answer.json()["message"] == "num_images_per_prompt must be odd"


def test_a_fault_can_come_late(sim: SimulatedDashScope, ask: Ask, clock: Clock) -> None:
    """`after_s` works with any kind."""
    sim.fault("ModelServingError", after_s=12)
    assert ask().status_code == 503
    assert clock.naps == [12]


def test_slow_adds_to_the_latency(sim: SimulatedDashScope, ask: Ask, clock: Clock) -> None:
    """Five seconds unless said otherwise."""
    sim.configure(latency_s=1)
    sim.fault("slow")
    sim.fault("slow", after_s=290)
    assert [ask().status_code for _ in range(3)] == [200] * 3
    assert clock.naps == [6, 291, 1]


def test_an_invalid_call_meets_no_fault(sim: SimulatedDashScope, ask: Ask) -> None:
    """A fault hits only what would have succeeded."""
    sim.fault("InternalError")
    assert ask(n=9).status_code == 400
    assert ask().status_code == 500


def raw_call(sim: SimulatedDashScope) -> socket.socket:
    """A connection on which a valid call has been sent."""
    body = msgspec.json.encode(request("a cat", MODEL, {}))
    head = (
        f"POST /api/v1{SYNC} HTTP/1.1\r\nHost: 127.0.0.1:{sim.port}\r\n"
        f"Authorization: {KEY['Authorization']}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", sim.port), timeout=5)
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize(("kind", "paid"), [("reset_before", 0), ("reset_after_generation", 1)])
def test_a_connection_is_reset(sim: SimulatedDashScope, ask: Ask, kind: str, paid: int) -> None:
    """By a TCP reset before the first byte; the images are paid for or not."""
    sim.fault(kind)
    with raw_call(sim) as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)
    sim.fault(kind)
    with pytest.raises(httpx.ReadError):
        ask()
    state = sim.state()
    assert state["paid"].get(MODEL, 0) == 2 * paid
    assert state["faults"] == {kind: 2}
    assert [(call["status"], call["outcome"]) for call in state["log"]] == [(None, kind)] * 2
    assert ask().status_code == 200


def test_a_hanging_call_ends_when_the_client_leaves(sim: SimulatedDashScope) -> None:
    """It is in flight until then, and unpaid."""
    sim.fault("hang")
    with raw_call(sim):
        wait_for(sim, lambda state: state["in_flight"] == 1)
    state = wait_for(sim, lambda state: state["in_flight"] == 0)
    assert state["clients_gone"] == 1
    assert state["paid"] == {}


def test_a_hanging_call_can_be_cut(sim: SimulatedDashScope) -> None:
    """After as long as it is told."""
    sim.fault("hang", after_s=0.01)
    with raw_call(sim) as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)


def test_a_generation_is_paid_though_its_client_has_left() -> None:
    """Nobody knows that hanging up stops the vendor's bill, so it does not here."""
    with SimulatedDashScope(latency_s=0.3, render="plain") as sim:
        with raw_call(sim):
            wait_for(sim, lambda state: bool(state["calls"]))
        state = wait_for(sim, lambda state: bool(state["paid"]))
    assert state["paid"] == {MODEL: 1}
    assert state["clients_gone"] == 1
    assert state["log"][0]["client_gone"]


def test_a_call_does_not_outlast_a_reset() -> None:
    """As if the vendor's process had ended: what comes after it is never told of the call."""
    with SimulatedDashScope(latency_s=60, render="plain") as sim, raw_call(sim) as connection:
        wait_for(sim, lambda state: state["in_flight"] == 1)
        sim.reset()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        state = sim.state()
    assert (state["in_flight"], state["peak_in_flight"]) == (0, 0)
    assert (state["calls"], state["paid"], state["clients_gone"]) == ({}, {}, 0)


def test_calls_in_flight_are_counted_with_their_peak(sim: SimulatedDashScope) -> None:
    """The peak stays when they are gone."""
    sim.fault("hang", count=3)
    connections = [raw_call(sim) for _ in range(3)]
    wait_for(sim, lambda state: state["in_flight"] == 3)
    for connection in connections:
        connection.close()
    state = wait_for(sim, lambda state: state["in_flight"] == 0)
    assert state["peak_in_flight"] == 3


def test_truncated_json_is_no_json(sim: SimulatedDashScope, ask: Ask) -> None:
    """A complete HTTP answer with half a document, and it is paid."""
    sim.fault("truncated_json")
    answer = ask()
    assert answer.status_code == 200
    assert answer.text.startswith('{"output"')
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(answer.content)
    assert sim.state()["paid"] == {MODEL: 1}


def test_empty_choices_cost_nothing(sim: SimulatedDashScope, ask: Ask) -> None:
    """200 without an image, in either shape of choices."""
    sim.fault("empty_choices", count=2)
    assert ask().json()["output"]["choices"] == []
    sim.configure(choice_per_image=True)
    assert ask().json()["usage"]["image_count"] == 0
    assert sim.state()["paid"][MODEL] == 0


def test_fewer_images_are_fewer_by_one(sim: SimulatedDashScope, ask: Ask) -> None:
    """And only they are paid."""
    sim.fault("fewer_images")
    assert len(urls_in(ask(n=3))) == 2
    assert sim.state()["paid"] == {MODEL: 2}


def test_more_images_are_more_by_one(sim: SimulatedDashScope, ask: Ask) -> None:
    """And paid like the others."""
    sim.fault("more_images")
    assert len(urls_in(ask(n=3))) == 4
    assert sim.state()["paid"] == {MODEL: 4}


def test_text_may_stand_beside_the_images(sim: SimulatedDashScope, ask: Ask) -> None:
    """Before and after them."""
    sim.fault("text_content")
    content = ask(n=2).json()["output"]["choices"][0]["message"]["content"]
    assert [sorted(item) for item in content] == [
        ["text"],
        ["image"],
        ["image"],
        ["reasoning_content"],
    ]


def test_an_image_may_be_null(sim: SimulatedDashScope, ask: Ask) -> None:
    """In its place in the content."""
    sim.fault("null_image")
    content = ask(n=2).json()["output"]["choices"][0]["message"]["content"]
    assert content == [{"image": None}, {"image": None}]


def test_a_body_may_be_huge(sim: SimulatedDashScope, ask: Ask) -> None:
    """Valid JSON, of the size asked."""
    sim.fault("huge_body", size_bytes=1_000_000)
    answer = ask()
    assert len(answer.content) > 1_000_000
    assert len(urls_in(answer)) == 1


def test_200_with_a_code_has_no_output(sim: SimulatedDashScope, ask: Ask) -> None:
    """The SDK guards against it, so somebody has seen it."""
    sim.fault("200_with_code")
    answer = ask()
    assert answer.status_code == 200
    assert answer.json()["code"] == "InternalError"
    assert "output" not in answer.json()


def test_every_kind_is_described_once() -> None:
    """In one of the three tables."""
    kinds = [*BEFORE, *AFTER, *IMAGE]
    assert len(kinds) == len(set(kinds))

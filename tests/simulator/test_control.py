from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

import gateway.simulator
from gateway.simulator.settings import LIFELIKE, Settings
from tests.simulated import SimulatedDashScope
from tests.simulator.calls import KEY, START, SYNC, Ask, request


def test_the_state_tells_what_happened(sim: SimulatedDashScope, ask: Ask) -> None:
    """Calls and paid images by model, refusals by code."""
    ask(n=3)
    ask(model="qwen-image-max")
    ask(model="qwen-image-max", n=2)
    ask(model="gpt-image-1")
    state = sim.state()
    assert state["calls"] == {"qwen-image-2.0-pro": 1, "qwen-image-max": 2, "gpt-image-1": 1}
    assert state["paid"] == {"qwen-image-2.0-pro": 3, "qwen-image-max": 1}
    assert state["refused"] == {"InvalidParameter": 2}
    assert (state["in_flight"], state["peak_in_flight"]) == (0, 1)
    assert state["settings"]["render"] == "plain"


def test_the_log_has_what_was_received(sim: SimulatedDashScope, ask: Ask) -> None:
    """Body, headers, time and outcome; the key redacted."""
    ask("a cat", n=2, seed=3)
    ask(n=9)
    good, bad = sim.state()["log"]
    assert good["body"] == request("a cat", "qwen-image-2.0-pro", {"n": 2, "seed": 3})
    assert good["headers"]["authorization"] == "[redacted]"
    assert good["headers"]["content-type"] == "application/json"
    assert good["path"] == "/api/v1" + SYNC
    assert (good["status"], good["outcome"], good["images"]) == (200, "generated", 2)
    assert good["at"] == START
    assert (bad["status"], bad["outcome"], bad["images"]) == (400, "InvalidParameter", 0)
    assert "sk-test" not in msgspec.json.encode(sim.state()).decode()


@pytest.mark.slow
def test_the_log_keeps_the_last_thousand_calls(sim: SimulatedDashScope, http: httpx.Client) -> None:
    """And shows as many as asked for."""
    for number in range(1010):
        http.post(sim.base_url + SYNC, headers=KEY, content=str(number).encode())
    log = sim.state()["log"]
    assert [log[0]["body"], log[-1]["body"], len(log)] == [10, 1009, 1000]
    assert [call["body"] for call in sim.state(log=2)["log"]] == [1008, 1009]
    assert sim.state(log=0)["log"] == []


def test_a_body_that_is_no_json_or_very_long_is_logged_as_text(
    sim: SimulatedDashScope, http: httpx.Client
) -> None:
    """And only its start, if long."""
    http.post(sim.base_url + SYNC, headers=KEY, content=b"{nonsense")
    http.post(sim.base_url + SYNC, headers=KEY, json=request("x" * 100_000, "m", {}))
    short, long = (call["body"] for call in sim.state()["log"])
    assert short == "{nonsense"
    assert long.startswith('{"model":"m"')
    assert len(long) == 32 * 1024


def test_settings_change_while_it_runs(sim: SimulatedDashScope) -> None:
    """Some of them; the others stay."""
    before = sim.state()["settings"]
    after = sim.configure(latency_s=[1, 2], strict_parameters=True)
    assert after == before | {"latency_s": [1.0, 2.0], "strict_parameters": True}
    assert sim.state()["settings"] == after


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"latency": 1}, "unknown field `latency`"),
        ({"latency_s": -1}, "must not be negative"),
        ({"latency_s": {"m": [-1, 2]}}, "must not be negative"),
        ({"latency_s": "fast"}, "latency_s"),
        ({"render": "oil"}, "render"),
        ({"throttle": "none"}, "throttle"),
        ({"rates": {"m": {"count": 0}}}, "rates"),
        ({"rates": {"m": {"count": 1, "every": 2}}}, "unknown field `every`"),
        ({"image_bytes": -1}, "image_bytes"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(
    sim: SimulatedDashScope, http: httpx.Client, changes: dict[str, object], complaint: str
) -> None:
    """400 with its name, and nothing changes."""
    before = sim.state()["settings"]
    refused = http.put(f"{sim.origin}/_simulator/settings", json=changes)
    assert refused.status_code == 400
    assert complaint in refused.json()["error"]
    assert sim.state()["settings"] == before


def test_strict_parameters_reach_the_endpoint(sim: SimulatedDashScope, ask: Ask) -> None:
    """From the settings to the refusal."""
    assert ask(quality="hd").status_code == 200
    sim.configure(strict_parameters=True)
    assert ask(quality="hd").json()["message"] == "parameters.quality is not supported"


def test_keys_are_not_shown(sim: SimulatedDashScope) -> None:
    """Somebody may have used a real one."""
    sim.configure(api_keys=["sk-secret"], accounts={"sk-secret": "one"})
    state = sim.state()["settings"]
    assert (state["api_keys"], state["accounts"]) == (["[redacted]"], ["one"])


def test_faults_are_queued_one_or_many(
    sim: SimulatedDashScope, http: httpx.Client, ask: Ask
) -> None:
    """And can be seen waiting."""
    url = f"{sim.origin}/_simulator/faults"
    two = [{"kind": "Throttling"}, {"kind": "InternalError", "count": 2}]
    assert http.post(url, json=two).status_code == 200
    assert [fault["kind"] for fault in sim.state()["faults_waiting"]] == [
        "Throttling",
        "InternalError",
    ]
    assert [ask().status_code for _ in range(4)] == [429, 500, 500, 200]


def test_faults_can_be_called_off(sim: SimulatedDashScope, http: httpx.Client, ask: Ask) -> None:
    """All at once."""
    sim.fault("InternalError", count=None)
    assert http.delete(f"{sim.origin}/_simulator/faults").json() == {"waiting": []}
    assert ask().status_code == 200


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ({"kind": "slwo"}, "unknown fault kind 'slwo'"),
        ({"kind": "slow", "count": 0}, "count"),
        ({"kind": "slow", "after": 3}, "unknown field `after`"),
        ({"kind": "slow", "share": 2}, "share"),
        ({"kind": 7}, "kind"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(
    sim: SimulatedDashScope, fault: dict[str, Any], complaint: str
) -> None:
    """Rather than never met."""
    with pytest.raises(ValueError, match=complaint):
        sim.fault(**fault)
    assert sim.state()["faults_waiting"] == []


def test_the_kinds_of_faults_can_be_looked_up(sim: SimulatedDashScope, http: httpx.Client) -> None:
    """Each with what it does."""
    kinds = http.get(f"{sim.origin}/_simulator/faults").json()["kinds"]
    assert {"hang", "image_404", "Throttling.BurstRate", "html_502"} <= set(kinds)
    assert all(kinds.values())


def test_a_reset_returns_to_the_start(sim: SimulatedDashScope, ask: Ask) -> None:
    """Settings, counters, log and faults."""
    started = sim.state()
    sim.configure(latency_s=9)
    sim.fault("InternalError", count=None)
    ask()
    sim.reset()
    assert sim.state() == started


def test_the_command_starts_with_a_lifelike_pace() -> None:
    """Tests start without any."""
    assert LIFELIKE.latency_s == 1.5
    assert Settings().latency_s == 0


def test_the_simulator_knows_nothing_of_the_gateway() -> None:
    """Else a misreading of the vendor would pass on both sides."""
    folder = Path(gateway.simulator.__file__).parent
    trees = [ast.parse(path.read_text()) for path in folder.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    ours = {name for name in names if name.split(".")[0] == "gateway"}
    assert {name for name in ours if not name.startswith("gateway.simulator")} == set()

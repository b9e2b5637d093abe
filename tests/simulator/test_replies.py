from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.simulator.replies import REPLIES, Refused, Replies
from tests.simulated import SimulatedDashScope
from tests.simulator.calls import Ask

ERROR_FILES = sorted((REPLIES / "errors").glob("*.json"))
RAW_FILES = sorted((REPLIES / "raw").glob("*.json"))

# Codes of the vendor's table, by HTTP status.
TABLE = {
    400: """InvalidParameter InvalidParameter.DataInspection DataInspectionFailed
        data_inspection_failed IPInfringementSuspect Arrearage InvalidURL
        InvalidURL.ConnectionRefused InvalidURL.Timeout BadRequest.EmptyInput
        BadRequest.EmptyParameters BadRequest.EmptyModel BadRequest.IllegalInput
        BadRequest.InputDownloadFailed BadRequest.UnsupportedFileFormat BadRequest.TooLarge
        BadRequest.ResourceNotExist InvalidImage InvalidFile.Format
        InternalError.Algo.InvalidParameter FlowNotPublished FaqRuleBlocked CustomRoleBlocked
        UnsupportedOperation ClientDisconnect APIConnectionError""",
    401: "InvalidApiKey invalid_api_key",
    403: """AccessDenied access_denied AccessDenied.Unpurchased Model.AccessDenied
        Workspace.AccessDenied App.AccessDenied Endpoint.AccessDenied
        AllocationQuota.FreeTierOnly""",
    404: """ModelNotFound model_not_found WorkSpaceNotFound NotFound model_not_supported
        InvalidParameter Model.NotExist""",
    429: """Throttling Throttling.RateQuota limit_requests Throttling.BurstRate limit_burst_rate
        Throttling.AllocationQuota insufficient_quota CommodityNotPurchased PrepaidBillOverdue
        PostpaidBillOverdue""",
    500: """InternalError InternalError.FileUpload InternalError.Upload InternalError.Algo
        InternalError.Timeout SystemError ModelServiceFailed RewriteFailed RequestTimeOut
        ResponseTimeout ModelServingError""",
    503: "ModelServingError ModelUnavailable ServiceUnavailable",
    504: "GatewayTimeout",
}


def read(path: Path) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    return decoded


@pytest.mark.parametrize("path", ERROR_FILES, ids=lambda path: path.stem)
def test_every_error_file_is_well_formed(path: Path) -> None:
    """Status, code and message; the template, filled, could be the message."""
    reply = read(path)
    assert set(reply) <= {"status", "body", "source", "template"}
    assert 400 <= reply["status"] < 600
    assert sorted(reply["body"]) == ["code", "message"]
    assert path.stem.startswith(reply["body"]["code"])
    assert reply["source"] in {"documented", "captured", "sdk only", "inferred"}
    if "template" in reply:
        assert reply["body"]["message"].startswith(reply["template"].partition("{")[0])


@pytest.mark.parametrize(
    ("status", "code"), [(status, code) for status, row in TABLE.items() for code in row.split()]
)
def test_every_code_of_the_vendors_table_has_a_file(status: int, code: str) -> None:
    """With that status."""
    replies = [read(path) for path in ERROR_FILES]
    assert (status, code) in {(reply["status"], reply["body"]["code"]) for reply in replies}


def test_no_file_has_a_code_outside_the_table() -> None:
    """Apart from the details of a bad image or file."""
    known = {code for row in TABLE.values() for code in row.split()}
    codes = {read(path)["body"]["code"] for path in ERROR_FILES}
    assert {code for code in codes - known if not code.startswith("Invalid")} == set()


@pytest.mark.parametrize("path", ERROR_FILES, ids=lambda path: path.stem)
def test_every_error_file_can_be_had_as_an_answer(
    sim: SimulatedDashScope, ask: Ask, path: Path
) -> None:
    """By its name, with a request id added; and it is neither paid nor met twice."""
    reply = read(path)
    sim.fault(path.stem)
    answer = ask()
    body = answer.json()
    assert answer.status_code == reply["status"]
    assert body.pop("request_id") == answer.headers["x-request-id"]
    assert body == reply["body"]
    assert sim.state(log=1)["log"][0]["outcome"] == path.stem
    assert ask().status_code == 200
    assert sim.state(log=0)["paid"] == {"qwen-image-2.0-pro": 1}


@pytest.mark.parametrize("path", RAW_FILES, ids=lambda path: path.stem)
def test_every_raw_file_can_be_had_as_an_answer(
    sim: SimulatedDashScope, ask: Ask, path: Path
) -> None:
    """Byte for byte."""
    reply = read(path)
    sim.fault(path.stem)
    answer = ask()
    assert answer.status_code == reply["status"]
    assert answer.text == reply["text"]
    assert answer.headers.get("content-type", "") == reply["content_type"]
    assert sim.state(log=0)["paid"] == {}


@pytest.mark.parametrize(
    "path", sorted((REPLIES / "success").glob("*.json")), ids=lambda path: path.stem
)
def test_every_success_file_is_a_200_with_a_request_id(path: Path) -> None:
    """And no `code` or `message`, which real successes lack."""
    reply = read(path)
    assert reply["status"] == 200
    assert "request_id" in reply["body"]
    assert not {"code", "message"} & set(reply["body"])


def test_known_facts_replace_the_examples() -> None:
    """At any depth; other values stay as the vendor gives them."""
    replies = Replies()
    body = replies.generated("qwen-image", ["u1", "u2"], {"TOTAL": 2, "width": 5}, apart=False)
    assert body["output"]["task_metric"] == {"FAILED": 0, "SUCCEEDED": 1, "TOTAL": 2}
    assert body["usage"] == {"height": 928, "image_count": 1, "width": 5}
    content = body["output"]["choices"][0]["message"]["content"]
    assert content == [{"image": "u1"}, {"image": "u2"}]


def test_a_template_is_filled_and_a_message_overrides() -> None:
    """Braces in a value do no harm."""
    replies = Replies()
    refused = Refused("InvalidParameter-size-format", size="{x}")
    assert replies.error(refused, "id")[1]["message"].endswith("got {x}")
    told = Refused("InternalError", message="out of paint")
    assert replies.error(told, "id") == (
        500,
        {"code": "InternalError", "message": "out of paint", "request_id": "id"},
    )

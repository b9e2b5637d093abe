"""The vendor's failures, one by one: what the client sees, and what the gateway may do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from gateway.api.errors import error_response
from gateway.domain import errors
from gateway.domain.errors import GatewayError
from gateway.protocol.dashscope import GenerationReply
from gateway.translate.failure import TABLE, Remedy, Row, UpstreamFailure, to_failure

REPLIES: Final = Path(__file__).parents[2] / "gateway" / "simulator" / "replies"


class Seen(NamedTuple):
    """What comes of a failure: for the client, and for the gateway itself."""

    error: type[GatewayError]
    status: int
    code: str
    param: str | None
    should_retry: str | None
    remedy: Remedy
    retry_after_s: float | None = None


BAD_INPUT: Final = Seen(errors.InvalidRequest, 400, "invalid_value", None, "false", Remedy.NONE)
BAD_SIZE: Final = BAD_INPUT._replace(param="size")
BAD_N: Final = BAD_INPUT._replace(param="n")
TOO_LARGE: Final = Seen(errors.BodyTooLarge, 413, "request_too_large", None, "false", Remedy.NONE)
MODERATED: Final = Seen(
    errors.ModerationBlocked, 400, "moderation_blocked", None, "false", Remedy.NONE
)
NO_CREDIT: Final = Seen(
    errors.UpstreamBilling, 429, "insufficient_quota", None, "false", Remedy.OTHER_ACCOUNT
)
NO_MODEL: Final = Seen(
    errors.ModelNotFound, 404, "model_not_found", "model", "false", Remedy.OTHER_ACCOUNT
)
REFUSED: Final = Seen(
    errors.UpstreamRefused, 502, "upstream_account_error", None, "false", Remedy.OTHER_ACCOUNT
)
NOT_OURS: Final = REFUSED._replace(remedy=Remedy.NONE)
THROTTLED: Final = Seen(
    errors.UpstreamThrottled, 429, "rate_limit_exceeded", None, None, Remedy.THROTTLED
)
OUT_OF_QUOTA: Final = THROTTLED._replace(retry_after_s=60.0)
OVERLOADED: Final = Seen(
    errors.UpstreamOverloaded, 503, "server_is_overloaded", None, None, Remedy.RESEND
)
FAILED: Final = Seen(errors.UpstreamFailed, 502, "upstream_error", None, None, Remedy.NONE)
TIMED_OUT: Final = Seen(
    errors.UpstreamTimeout, 504, "upstream_timeout", None, "false", Remedy.UNKNOWN
)
LOST: Final = Seen(
    errors.UpstreamAmbiguous, 502, "upstream_outcome_unknown", None, "false", Remedy.UNKNOWN
)

# Every file of replies/errors, by name.
ERRORS: Final[dict[str, Seen]] = {
    "APIConnectionError": LOST,
    "AccessDenied": REFUSED,
    "AccessDenied-asynchronous": REFUSED,
    "AccessDenied-synchronous": REFUSED,
    "AccessDenied.Unpurchased": NO_CREDIT,
    "AllocationQuota.FreeTierOnly": NO_CREDIT,
    "App.AccessDenied": REFUSED,
    "Arrearage": NO_CREDIT,
    "BadRequest.EmptyInput": BAD_INPUT,
    "BadRequest.EmptyModel": BAD_INPUT,
    "BadRequest.EmptyParameters": BAD_INPUT,
    "BadRequest.IllegalInput": BAD_INPUT,
    "BadRequest.InputDownloadFailed": BAD_INPUT,
    "BadRequest.ResourceNotExist": BAD_INPUT,
    "BadRequest.TooLarge": TOO_LARGE,
    "BadRequest.UnsupportedFileFormat": BAD_INPUT,
    "ClientDisconnect": LOST,
    "CommodityNotPurchased": NO_CREDIT,
    "CustomRoleBlocked": MODERATED,
    "DataInspectionFailed": MODERATED,
    "Endpoint.AccessDenied": REFUSED,
    "FaqRuleBlocked": MODERATED,
    "FlowNotPublished": NOT_OURS,
    "GatewayTimeout": TIMED_OUT,
    "IPInfringementSuspect": MODERATED,
    "InternalError": FAILED,
    "InternalError.Algo": FAILED,
    "InternalError.Algo.InvalidParameter": BAD_INPUT,
    "InternalError.FileUpload": FAILED,
    "InternalError.Timeout": TIMED_OUT,
    "InternalError.Upload": FAILED,
    "InvalidApiKey": REFUSED,
    "InvalidApiKey-missing": REFUSED,
    "InvalidApiKey-not-authorized": REFUSED,
    "InvalidApiKey-token": REFUSED,
    "InvalidFile.Format": BAD_INPUT,
    "InvalidFile.Size": BAD_INPUT,
    "InvalidImage": BAD_INPUT,
    "InvalidImage.Format": BAD_INPUT,
    "InvalidImage.ImageSize": BAD_INPUT,
    "InvalidParameter": BAD_INPUT,
    "InvalidParameter-agent-with-images": BAD_INPUT,
    "InvalidParameter-body": BAD_INPUT,
    "InvalidParameter-content-length": BAD_INPUT,
    "InvalidParameter-data-uri-too-large": BAD_INPUT,
    "InvalidParameter-download-failed": BAD_INPUT,
    "InvalidParameter-image-format": BAD_INPUT,
    "InvalidParameter-interleave": BAD_INPUT,
    "InvalidParameter-lack-of-image-or-text": BAD_INPUT,
    "InvalidParameter-media-not-found": BAD_INPUT,
    "InvalidParameter-messages-length": BAD_INPUT,
    "InvalidParameter-model": NO_MODEL,
    "InvalidParameter-model-400": NO_MODEL,
    "InvalidParameter-n-one": BAD_N,
    "InvalidParameter-n-range": BAD_N,
    "InvalidParameter-no-messages": BAD_INPUT,
    "InvalidParameter-one-text": BAD_INPUT,
    "InvalidParameter-prompt-extend-mode": BAD_INPUT,
    "InvalidParameter-role": BAD_INPUT,
    "InvalidParameter-seed": BAD_INPUT,
    "InvalidParameter-size-area": BAD_SIZE,
    "InvalidParameter-size-aspect": BAD_SIZE,
    "InvalidParameter-size-fixed": BAD_SIZE,
    "InvalidParameter-size-format": BAD_SIZE,
    "InvalidParameter-size-side": BAD_SIZE,
    "InvalidParameter-type": BAD_INPUT,
    "InvalidParameter-unknown-parameter": BAD_INPUT,
    "InvalidParameter-url": BAD_INPUT._replace(param="model"),
    "InvalidParameter.DataInspection": BAD_INPUT,
    "InvalidURL": BAD_INPUT,
    "InvalidURL.ConnectionRefused": BAD_INPUT,
    "InvalidURL.Timeout": BAD_INPUT,
    "Model.AccessDenied": REFUSED,
    "Model.NotExist": NO_MODEL,
    "ModelNotFound": NO_MODEL,
    "ModelServiceFailed": FAILED,
    "ModelServingError": OVERLOADED,
    "ModelServingError-500": OVERLOADED,
    "ModelUnavailable": OVERLOADED,
    "NotFound": REFUSED,
    "PostpaidBillOverdue": NO_CREDIT,
    "PrepaidBillOverdue": NO_CREDIT,
    "RequestTimeOut": TIMED_OUT,
    "ResponseTimeout": TIMED_OUT,
    "RewriteFailed": FAILED,
    "ServiceUnavailable": OVERLOADED,
    "SystemError": FAILED,
    "Throttling": THROTTLED,
    "Throttling.AllocationQuota": OUT_OF_QUOTA,
    "Throttling.BurstRate": THROTTLED,
    "Throttling.RateQuota": THROTTLED,
    "UnsupportedOperation": NOT_OURS,
    "UnsupportedOperation-cancel": NOT_OURS,
    "WorkSpaceNotFound": REFUSED,
    "Workspace.AccessDenied": REFUSED,
    "access_denied": REFUSED,
    "data_inspection_failed": MODERATED,
    "insufficient_quota": OUT_OF_QUOTA,
    "invalid_api_key": REFUSED,
    "limit_burst_rate": THROTTLED,
    "limit_requests": THROTTLED,
    "model_not_found": NO_MODEL,
    "model_not_supported": NO_MODEL,
}

# Answers without the vendor's JSON, and codes that no document has: the status decides.
BARE: Final[dict[int, Seen]] = {
    200: LOST,
    202: LOST,
    302: NOT_OURS,
    400: BAD_INPUT,
    401: REFUSED,
    403: REFUSED,
    404: NOT_OURS,
    408: TIMED_OUT,
    413: TOO_LARGE,
    418: NOT_OURS,
    422: NOT_OURS,
    429: THROTTLED,
    500: FAILED,
    502: OVERLOADED,
    503: OVERLOADED,
    504: TIMED_OUT,
}


def seen(failure: UpstreamFailure) -> Seen:
    error = failure.error
    answer = error_response(error)
    told = json.loads(answer.content)["error"]
    return Seen(
        type(error),
        int(answer.status_code or 0),
        told["code"],
        told["param"],
        answer.headers.get("x-should-retry"),
        failure.remedy,
        error.retry_after_s,
    )


def replied(status: int, **body: Any) -> UpstreamFailure:
    return to_failure(status, msgspec.convert(body, GenerationReply))


def reply_file(name: str) -> tuple[int, dict[str, str]]:
    found = json.loads((REPLIES / "errors" / f"{name}.json").read_text())
    return found["status"], found["body"]


def test_every_reply_file_is_in_the_table() -> None:
    assert set(ERRORS) == {path.stem for path in (REPLIES / "errors").glob("*.json")}


@pytest.mark.parametrize("name", ERRORS)
def test_a_documented_failure(name: str) -> None:
    """As the vendor words it, with the status that it has."""
    status, body = reply_file(name)

    assert seen(replied(status, **body, request_id="r-1")) == ERRORS[name]


@pytest.mark.parametrize("name", ERRORS)
def test_a_documented_failure_under_200(name: str) -> None:
    """The vendor's SDK expects failures under 200 as well: the code decides all the same."""
    _, body = reply_file(name)

    assert seen(replied(200, **body)) == ERRORS[name]


@pytest.mark.parametrize("name", ERRORS)
def test_the_vendor_s_words_are_not_shown(name: str) -> None:
    """They may name hosts, URLs, accounts; the log has them, under the vendor's request id."""
    status, body = reply_file(name)
    inside = f"{body['message']} https://host.internal/?key=sk-secret"

    failure = replied(status, code=body["code"], message=inside, request_id="r-1")

    assert "internal" not in failure.error.message
    assert body["message"] not in failure.error.message
    assert (failure.status, failure.code, failure.message) == (status, body["code"], inside)
    assert failure.request_id == "r-1"


@pytest.mark.parametrize("status", BARE)
@pytest.mark.parametrize("body", [None, {}, {"code": None, "message": None}, {"code": ""}], ids=str)
def test_an_answer_without_a_code(status: int, body: dict[str, Any] | None) -> None:
    """HTML from an edge, an empty 504, JSON cut short: what the status says, and no more."""
    reply = None if body is None else msgspec.convert(body, GenerationReply)

    assert seen(to_failure(status, reply)) == BARE[status]


@pytest.mark.parametrize("status", [status for status in BARE if status != 200])
def test_an_undocumented_code(status: int) -> None:
    """An edge's own 502 and 503 have no code; what the service says of itself may have cost."""
    expected = FAILED if status in {502, 503} else BARE[status]

    assert seen(replied(status, code="Brand.New", message="?")) == expected


def test_an_undocumented_code_under_200() -> None:
    """It says that it failed, so nothing was generated; how, nobody knows."""
    assert seen(replied(200, code="Brand.New")) == FAILED


@pytest.mark.parametrize(
    ("code", "status"),
    [("Arrearage", 403), ("DataInspectionFailed", 500), ("Throttling.RateQuota", 400),
     ("PostpaidBillOverdue", 400), ("InvalidApiKey", 403), ("ModelNotFound", 400)],
)  # fmt: skip
def test_the_code_decides_whatever_the_status(code: str, status: int) -> None:
    """The documents disagree on the status of several codes."""
    assert seen(replied(status, code=code, message="")) == ERRORS[code]


def test_the_vendor_s_retry_after_wins_over_the_table() -> None:
    status, body = reply_file("Throttling.AllocationQuota")
    reply = msgspec.convert(body, GenerationReply)

    assert to_failure(status, reply, 7.5).error.retry_after_s == 7.5
    assert to_failure(status, reply, 0.0).error.retry_after_s == 0.0


def first_row(status: int, code: str, message: str) -> Row:
    return next(row for row in TABLE if row.covers(status, code, message))


def test_every_row_is_reached() -> None:
    """A row behind one that covers all of it would be a rule that nobody follows."""
    failures = [(s, b["code"], b["message"]) for s, b in map(reply_file, ERRORS)]
    bare = [(status, "", "") for status in BARE]
    undocumented = [(status, "Brand.New", "") for status in BARE]

    reached = {id(first_row(*each)) for each in (*failures, *bare, *undocumented)}

    assert [row for row in TABLE if id(row) not in reached] == []


def test_the_last_row_covers_everything() -> None:
    """So that no answer of the vendor's, however odd, is a defect of the gateway."""
    assert TABLE[-1].covers(599, "anything", "at all")


def test_nothing_that_may_be_paid_is_sent_again() -> None:
    """The rule about money, over the whole table: neither by the gateway nor by an SDK."""
    for row in TABLE:
        ambiguous = issubclass(row.error, errors.UpstreamAmbiguous)
        assert ambiguous == (row.remedy is Remedy.UNKNOWN)
        if ambiguous:
            assert row.error.should_retry is False


def test_billing_is_not_a_matter_of_waiting() -> None:
    for row in TABLE:
        if issubclass(row.error, errors.UpstreamBilling):
            assert row.error.should_retry is False
            assert row.retry_after_s is None

"""The vendor's failures, one by one: what the client sees, and what the gateway may do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest
from msgspec.structs import replace

from gateway.api.errors import error_response
from gateway.domain import errors
from gateway.domain.errors import GatewayError
from gateway.protocol.dashscope import GenerationReply
from gateway.translate.failure import (
    ANYBODY_S,
    EDGE_TABLE,
    TABLE,
    Answer,
    Remedy,
    Row,
    Source,
    UpstreamFailure,
    to_failure,
)

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

# A code of the vendor's own that no document has: the status decides.
UNDOCUMENTED: Final[dict[int, Seen]] = {
    200: FAILED,
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
    502: FAILED,
    503: FAILED,
    504: TIMED_OUT,
}

# Answers without such a code are those of whoever stands in between.
BARE: Final[dict[int, Seen]] = {
    **dict.fromkeys((200, 202, 204, 300, 302, 303, 304, 402, 409, 418, 422, 429, 499), LOST),
    **dict.fromkeys((500, 501, 502, 503, 505, 520, 521, 522, 524, 530, 561, 599), LOST),
    **dict.fromkeys((301, 307, 308, 400, 401, 403, 404, 405, 407, 411, 414, 415), NOT_OURS),
    **dict.fromkeys((417, 421, 426, 431, 451), NOT_OURS),
    408: TIMED_OUT,
    504: TIMED_OUT,
    413: TOO_LARGE,
}


def seen(failure: UpstreamFailure) -> Seen:
    error = failure.error
    answer = error_response(error)
    told = answer.content.error
    return Seen(
        type(error),
        int(answer.status_code or 0),
        str(told.code),
        told.param,
        answer.headers.get("x-should-retry"),
        failure.remedy,
        error.retry_after_s,
    )


def replied(status: int, **body: Any) -> UpstreamFailure:
    """What an answer of the vendor's form means; without a request id where that is None."""
    body = {"request_id": "r-1", **body}
    return to_failure(Answer(status=status, reply=msgspec.convert(body, GenerationReply)))


def answered(status: int, page: str = "") -> UpstreamFailure:
    """What a page means."""
    return to_failure(Answer(status=status, page=page))


def reply_file(name: str) -> tuple[int, dict[str, str]]:
    found = json.loads((REPLIES / "errors" / f"{name}.json").read_text())
    return found["status"], found["body"]


def test_every_reply_file_is_in_the_table() -> None:
    assert set(ERRORS) == {path.stem for path in (REPLIES / "errors").glob("*.json")}


@pytest.mark.parametrize("name", ERRORS)
def test_a_documented_failure(name: str) -> None:
    """As the vendor words it, with the status that it has."""
    status, body = reply_file(name)

    failure = replied(status, **body)

    assert seen(failure) == ERRORS[name]
    assert failure.source is Source.UPSTREAM


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
    """Its status says who refused what; that it was not generated, only a refusal says."""
    failure = answered(status) if body is None else replied(status, **body)

    assert seen(failure) == BARE[status]
    assert failure.source is (Source.PROXY if status == 407 else Source.EDGE)


@pytest.mark.parametrize("status", UNDOCUMENTED)
def test_an_undocumented_code(status: int) -> None:
    """Beside the vendor's request id it is the vendor's."""
    assert seen(replied(status, code="Brand.New", message="?")) == UNDOCUMENTED[status]


@pytest.mark.parametrize("status", BARE)
@pytest.mark.parametrize("code", ["Brand.New", "SERVICE_UNAVAILABLE", *ANYBODY_S])
def test_a_code_that_anybody_may_have(status: int, code: str) -> None:
    """Without a request id it is somebody else's, and says as little as a page."""
    assert seen(replied(status, code=code, message="?", request_id=None)) == BARE[status]


@pytest.mark.parametrize("code", ["ModelServingError", "Throttling.RateQuota", "Arrearage"])
def test_a_code_that_only_the_vendor_has(code: str) -> None:
    status, body = reply_file(code)

    assert seen(replied(status, **body, request_id=None)) == ERRORS[code]


RESET: Final = "upstream connect error or disconnect/reset before headers. "
NEVER_SENT: Final = Seen(
    errors.UpstreamUnreachable, 503, "upstream_unreachable", None, None, Remedy.RESEND
)
PROOFS: Final = (
    *("no healthy upstream", "envoy overloaded", f"{RESET}reset reason: connection failure"),
    *(f"{RESET}reset reason: local connection failure", f"{RESET}reset reason: overflow"),
    f"{RESET}reset reason: remote connection failure, transport failure reason: delayed: 111",
    f"{RESET}reset reason: connection timeout\n",
)


@pytest.mark.parametrize("page", PROOFS)
def test_words_that_prove_that_a_call_was_not_sent(page: str) -> None:
    """They are Envoy's, and the whole of the page."""
    assert seen(answered(503, page)) == NEVER_SENT
    assert seen(answered(504, page)) == NEVER_SENT


@pytest.mark.parametrize("status", [status for status in BARE if status not in {503, 504}])
def test_proof_under_another_status_is_none(status: int) -> None:
    assert seen(answered(status, PROOFS[0])) == BARE[status]


@pytest.mark.parametrize(
    "page",
    [
        *(f"x{proof}" for proof in PROOFS),
        *(f'{{"message": "{proof}"}}' for proof in PROOFS),
        *(f"<html>{proof}</html>" for proof in PROOFS),
        *(f"{RESET}reset reason: {reason}" for reason in (
            "connection termination", "remote reset", "local reset", "protocol error",
            "remote refused stream reset", "local refused stream reset", "overflowing",
            "connection failures", "Connection failure", "", "overload manager reset",
        )),
        f"{RESET}retried and the latest reset reason: connection failure",
        f"{RESET}retried and the latest reset reason: remote connection failure, transport: 111",
        RESET.strip(),
        "upstream request timeout",
        "no healthy upstream here, yet it was sent",
        "",
    ],
)  # fmt: skip
def test_words_that_prove_nothing(page: str) -> None:
    """An Envoy that tried again says only how the last attempt ended."""
    assert seen(answered(503, page)) == LOST


def test_an_edge_s_own_rate_limit_comes_before_the_call() -> None:
    assert seen(answered(429, "local_rate_limited")) == THROTTLED
    assert seen(answered(429, "<p>local_rate_limited</p>")) == LOST


def test_an_edge_s_retry_after_is_obeyed_only_where_the_call_may_be_sent_again() -> None:
    throttled = to_failure(Answer(status=429, page="local_rate_limited", retry_after_s=3.0))
    unknown = to_failure(Answer(status=503, page="busy", retry_after_s=3.0))

    assert throttled.error.retry_after_s == 3.0
    assert unknown.error.retry_after_s is None


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("InternalError.Algo.DataInspectionFailed", "Input text data may contain …"),
        ("Output.DataInspection", "?"),
        ("invalid_parameter.data_inspection_failed", "?"),
        ("InvalidParameter", "<400> InternalError.Algo.DataInspectionFailed: Output data"),
        ("InternalError.Algo", "Output data may contain inappropriate content."),
        ("", "Input data may contain inappropriate content."),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 403, 429, 500, 503])
def test_moderation_wherever_the_vendor_puts_the_word(status: int, code: str, message: str) -> None:
    """The prompt's fault: final, and nothing against the account."""
    failure = replied(status, code=code, message=message)

    assert seen(failure) == MODERATED
    assert not failure.is_outage


@pytest.mark.parametrize(
    "message",
    [
        "download image failed",
        "Failed to find the requested media resource during the data inspection process.",
        "The media format is not supported or incorrect for the data inspection.",
    ],
)
def test_a_picture_that_could_not_be_inspected_is_no_moderation(message: str) -> None:
    failure = replied(400, code="InvalidParameter.DataInspection", message=message)

    assert seen(failure) == BAD_INPUT


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("Throttling.AllocationQuota", "Free allocated quota exceeded."),
        ("Throttling", "Your account is overdue."),
        ("insufficient_quota", "The free quota has been exhausted."),
        ("Brand.New", "Please check your billing."),
    ],
)
def test_a_quota_that_no_wait_brings_back(code: str, message: str) -> None:
    """It is out of credit: not waited for, and alerted of."""
    failure = replied(429, code=code, message=message)

    assert seen(failure) == NO_CREDIT
    assert failure.label == "unpaid_quota"


@pytest.mark.parametrize("status", [400, 413, 429])
def test_what_a_request_asked_for_is_no_outage(status: int) -> None:
    assert not replied(status, code="InvalidParameter", message="?").is_outage
    assert not answered(405, "Sorry, your request has been blocked").is_outage
    assert answered(502).is_outage
    assert replied(500, code="InternalError", message="?").is_outage


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
    answer = Answer(status=status, reply=msgspec.convert(body, GenerationReply))

    assert to_failure(replace(answer, retry_after_s=7.5)).error.retry_after_s == 7.5
    assert to_failure(replace(answer, retry_after_s=0.0)).error.retry_after_s == 0.0


def first_row(status: int, code: str, message: str) -> Row:
    return next(row for row in TABLE if row.covers(status, code, message))


def test_every_row_is_reached() -> None:
    """A row behind one that covers all of it would be a rule that nobody follows."""
    failures = [(s, b["code"], b["message"]) for s, b in map(reply_file, ERRORS)]
    undocumented = [(status, "Brand.New", "") for status in UNDOCUMENTED]
    words = [
        (429, "Throttling", "free quota"),
        (429, "Brand.New", "billing"),
        (400, "InvalidParameter", "inappropriate content"),
    ]

    reached = {id(first_row(*each)) for each in (*failures, *undocumented, *words)}

    assert [row for row in TABLE if id(row) not in reached] == []


def test_every_row_of_an_edge_is_reached() -> None:
    pages = [answered(status) for status in BARE]
    words = [answered(503, PROOFS[0]), answered(429, "local_rate_limited")]

    reached = {failure.label for failure in (*pages, *words)}

    assert reached == {row.name for row in EDGE_TABLE}


def test_the_last_rows_cover_everything() -> None:
    """So that no answer, however odd, is a defect of the gateway."""
    assert TABLE[-1].covers(599, "anything", "at all")
    assert EDGE_TABLE[-1].covers(599, "", "at all")


def test_nothing_that_may_be_paid_is_sent_again() -> None:
    """The rule about money, over the whole table: neither by the gateway nor by an SDK."""
    for row in (*TABLE, *EDGE_TABLE):
        ambiguous = issubclass(row.error, errors.UpstreamAmbiguous)
        assert ambiguous == (row.remedy is Remedy.UNKNOWN)
        if ambiguous:
            assert row.error.should_retry is False


def test_billing_is_not_a_matter_of_waiting() -> None:
    for row in TABLE:
        if issubclass(row.error, errors.UpstreamBilling):
            assert row.error.should_retry is False
            assert row.retry_after_s is None

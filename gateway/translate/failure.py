"""DashScope's failures as the gateway's errors: one table, first match wins.

The vendor's code decides before its status, because the same code is seen under several statuses
(`Arrearage` under 400 and 403, "Model not exist." under 400 and 404, anything under 200).
The vendor's own message is never shown: it may name hosts and URLs. The log has it.

Source: Alibaba Cloud Model Studio, "Error messages"; `Remedy` follows its advice on retries, made
stricter where a generation may have been billed.
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from gateway.domain import errors
from gateway.domain.catalogue import matches
from gateway.domain.errors import GatewayError
from gateway.protocol.dashscope import GenerationReply


class Remedy(Enum):
    """What the gateway itself may do about a failed call."""

    NONE = "none"
    """Nothing: the answer is final, and was not billed."""
    RESEND = "resend"
    """Send it again: it was certainly not generated."""
    THROTTLED = "throttled"
    """The same, but this account needs a rest first."""
    OTHER_ACCOUNT = "other_account"
    """This account cannot serve the model now; another may."""
    UNKNOWN = "unknown"
    """It may have been generated and billed: never send it again unasked."""


class Row(Struct, frozen=True, kw_only=True):
    """A failure the vendor documents. Empty `codes` match any; `says` is part of its message."""

    codes: tuple[str, ...] = ()
    status: int | range | None = None
    says: tuple[str, ...] = ()
    error: type[GatewayError]
    text: str
    param: str | None = None
    code: str | None = None
    remedy: Remedy = Remedy.NONE
    retry_after_s: float | None = None

    def label(self, code: str) -> str:
        """What a metric may call this failure: a code, or the pattern of codes, that it covers."""
        named = next((glob for glob in self.codes if glob and matches((glob,), code)), None)
        return named or f"http_{as_range(self.status)[0]}"

    def covers(self, status: int, code: str, message: str) -> bool:
        """Whether this row describes the failure."""
        return (
            status in as_range(self.status)
            and (not self.codes or matches(self.codes, code))
            and (not self.says or any(part in message.lower() for part in self.says))
        )


def as_range(status: int | range | None) -> range:
    """The statuses that a row is for."""
    if isinstance(status, range):
        return status
    return range(100, 600) if status is None else range(status, status + 1)


class UpstreamFailure(Exception):
    """A failed upstream call: the error to show, what may be done, and what the log should say.

    `label` is what a metric may call it; `reply` is the vendor's answer, if there was one.
    """

    def __init__(
        self,
        error: GatewayError,
        remedy: Remedy,
        *,
        label: str = "other",
        status: int = 0,
        reply: GenerationReply | None = None,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.remedy = remedy
        self.label = label
        self.status = status
        self.code = (reply and reply.code) or ""
        self.message = (reply and reply.message) or ""
        self.request_id = reply.request_id if reply else None


NO_CREDIT = (
    "The image service's account behind this gateway cannot pay; tell the gateway's operator."
)
NO_ACCESS = "The image service refuses this gateway's account; tell the gateway's operator."
THROTTLED = "The image service is at its rate limit; try again later."
OVERLOADED = "The image service is overloaded; try again later."
TIMED_OUT = "The image service did not finish in time; the image may have been generated."
BAD_INPUT = "The image service rejected the request as invalid."
TOO_LARGE = "The image service found the request too large."
FAILED = "The image service failed."
NO_MODEL = "The image service does not offer this model to this gateway."
UNREADABLE = "The image service's answer could not be read; the image may have been generated."

THROTTLE_REST_S = 60.0
"""An exceeded quota recovers within about a minute ("Rate limits")."""

TABLE: tuple[Row, ...] = (
    Row(codes=("DataInspectionFailed", "data_inspection_failed", "IPInfringementSuspect",
               "FaqRuleBlocked", "CustomRoleBlocked"), error=errors.ModerationBlocked,
        text="The request was rejected by the image service's safety system."),
    Row(codes=("Arrearage", "CommodityNotPurchased", "PrepaidBillOverdue", "PostpaidBillOverdue",
               "AccessDenied.Unpurchased", "AllocationQuota.FreeTierOnly"),
        error=errors.UpstreamBilling, text=NO_CREDIT, remedy=Remedy.OTHER_ACCOUNT),
    Row(says=("model not exist",), error=errors.ModelNotFound, text=NO_MODEL, param="model",
        remedy=Remedy.OTHER_ACCOUNT),
    Row(codes=("ModelNotFound", "model_not_found", "Model.NotExist", "model_not_supported"),
        error=errors.ModelNotFound, text=NO_MODEL, param="model", remedy=Remedy.OTHER_ACCOUNT),
    Row(codes=("InvalidApiKey", "invalid_api_key", "AccessDenied", "access_denied",
               "*.AccessDenied", "AccessDenied.*", "WorkSpaceNotFound", "NotFound"),
        error=errors.UpstreamRefused, text=NO_ACCESS, remedy=Remedy.OTHER_ACCOUNT),
    Row(codes=("Throttling.AllocationQuota", "insufficient_quota"), error=errors.UpstreamThrottled,
        text=THROTTLED, remedy=Remedy.THROTTLED, retry_after_s=THROTTLE_REST_S),
    Row(codes=("Throttling", "Throttling.*", "limit_requests", "limit_burst_rate"),
        error=errors.UpstreamThrottled, text=THROTTLED, remedy=Remedy.THROTTLED),
    Row(codes=("RequestTimeOut", "ResponseTimeout", "InternalError.Timeout", "GatewayTimeout"),
        error=errors.UpstreamTimeout, text=TIMED_OUT, remedy=Remedy.UNKNOWN),
    Row(codes=("ClientDisconnect", "APIConnectionError"), error=errors.UpstreamAmbiguous,
        text="The connection to the image service was lost.", remedy=Remedy.UNKNOWN),
    Row(codes=("ModelServingError", "ModelUnavailable", "ServiceUnavailable"),
        error=errors.UpstreamOverloaded, text=OVERLOADED, remedy=Remedy.RESEND),
    Row(codes=("InvalidParameter",), error=errors.InvalidRequest, param="size",
        says=("size", "image area", "aspect ratio", "width and height"),
        text="The image service does not accept this size for this model."),
    Row(codes=("InvalidParameter",), says=("num_images_per_prompt",), error=errors.InvalidRequest,
        text="The image service does not accept this number of images for this model.", param="n"),
    Row(codes=("InvalidParameter",), says=("url error",), error=errors.InvalidRequest,
        param="model", text="The image service does not serve this model on its image endpoint."),
    Row(codes=("BadRequest.TooLarge",), error=errors.BodyTooLarge, text=TOO_LARGE),
    Row(codes=("UnsupportedOperation", "FlowNotPublished"), error=errors.UpstreamRefused,
        text=NO_ACCESS),
    Row(codes=("InvalidParameter", "InvalidParameter.*", "BadRequest.*", "InvalidURL",
               "InvalidURL.*", "InvalidImage*", "InvalidFile.*",
               "InternalError.Algo.InvalidParameter"),
        error=errors.InvalidRequest, text=BAD_INPUT),
    Row(codes=("InternalError", "InternalError.*", "SystemError", "ModelServiceFailed",
               "RewriteFailed"), error=errors.UpstreamFailed, text=FAILED),
    # No code, or one that is not documented: the status decides.
    Row(status=400, error=errors.InvalidRequest, text=BAD_INPUT),
    Row(status=401, error=errors.UpstreamRefused, text=NO_ACCESS, remedy=Remedy.OTHER_ACCOUNT),
    Row(status=403, error=errors.UpstreamRefused, text=NO_ACCESS, remedy=Remedy.OTHER_ACCOUNT),
    Row(status=408, error=errors.UpstreamTimeout, text=TIMED_OUT, remedy=Remedy.UNKNOWN),
    Row(status=413, error=errors.BodyTooLarge, text=TOO_LARGE),
    Row(status=429, error=errors.UpstreamThrottled, text=THROTTLED, remedy=Remedy.THROTTLED),
    Row(status=502, codes=("",), error=errors.UpstreamOverloaded, text=OVERLOADED,
        remedy=Remedy.RESEND),
    Row(status=503, codes=("",), error=errors.UpstreamOverloaded, text=OVERLOADED,
        remedy=Remedy.RESEND),
    # The vendor's edge sent it on and heard nothing in time.
    Row(status=504, error=errors.UpstreamTimeout, text=TIMED_OUT, remedy=Remedy.UNKNOWN),
    Row(status=200, codes=("?*",), error=errors.UpstreamFailed, text=FAILED),
    Row(status=range(300, 500), error=errors.UpstreamRefused, text=FAILED),
    Row(status=range(200, 300), error=errors.UpstreamAmbiguous, text=UNREADABLE,
        remedy=Remedy.UNKNOWN),
    Row(error=errors.UpstreamFailed, text=FAILED),
)  # fmt: skip


def to_failure(
    status: int, reply: GenerationReply | None, retry_after_s: float | None = None
) -> UpstreamFailure:
    """What a failed answer means; `reply` is None where the body was not the vendor's JSON.

    `retry_after_s` is the vendor's own, if it sent one.
    """
    code = (reply and reply.code) or ""
    message = (reply and reply.message) or ""
    row = next(row for row in TABLE if row.covers(status, code, message))
    wait_s = retry_after_s if retry_after_s is not None else row.retry_after_s
    return UpstreamFailure(
        row.error(row.text, param=row.param, code=row.code, retry_after_s=wait_s),
        row.remedy,
        label=row.label(code) if row.codes or row.status else "other",
        status=status,
        reply=reply,
    )

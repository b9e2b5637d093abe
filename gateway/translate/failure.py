"""What a failed answer means: first who gave it, then one of two tables, first match wins.

Why only some answers allow another call: 0005. The upstream's code goes before its status, which
varies (`Arrearage` under 400 and 403). No message is shown: it may name hosts and URLs.

Sources: Alibaba Cloud Model Studio, "Error messages"; Envoy's `Http::Utility::resetReasonToString`
and local replies of its router and connection manager.
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
    """The answer is final, and was not billed."""
    RESEND = "resend"
    """Send it again: it was certainly not generated."""
    THROTTLED = "throttled"
    """The same, but this account needs a rest first."""
    OTHER_ACCOUNT = "other_account"
    """This account cannot serve the model now; another may."""
    UNKNOWN = "unknown"
    """It may have been generated and billed: never send it again unasked."""


class Source(Enum):
    UPSTREAM = "upstream"
    """DashScope: JSON with a code of its own."""
    EDGE = "edge"
    """Its load balancer, gateway or firewall."""
    PROXY = "proxy"
    """A forward proxy on the way to it."""
    NOBODY = "nobody"
    """There was no answer."""


class Answer(Struct, frozen=True, kw_only=True):
    """An HTTP answer to a call, as far as it is judged; its texts are cut."""

    status: int
    reply: GenerationReply | None = None
    """Its body, where that is JSON of the upstream's form."""
    page: str = ""
    """The beginning of any other body."""
    is_proxy_s: bool = False
    """Whether a header says that a forward proxy made it."""
    retry_after_s: float | None = None


class Row(Struct, frozen=True, kw_only=True):
    """A failure. Empty `codes` match any; `says` is part of its message, in lower case."""

    codes: tuple[str, ...] = ()
    status: int | range | frozenset[int] = range(100, 600)
    says: tuple[str, ...] = ()
    error: type[GatewayError]
    text: str
    param: str | None = None
    remedy: Remedy = Remedy.NONE
    retry_after_s: float | None = None
    name: str = ""
    """Its name in a metric; absent: a code, or the pattern of codes, that it covers."""
    proof: str = ""
    """What an edge's page has to prove."""
    when: str = ""
    """For the documentation of an edge's answers."""

    def label(self, code: str) -> str:
        named = next((glob for glob in self.codes if matches((glob,), code)), None)
        return self.name or named or f"http_{min(self.statuses)}"

    @property
    def statuses(self) -> range | frozenset[int]:
        return frozenset({self.status}) if isinstance(self.status, int) else self.status

    def covers(self, status: int, code: str, message: str) -> bool:
        return (
            status in self.statuses
            and (not self.codes or matches(self.codes, code))
            and (not self.says or any(part in message.lower() for part in self.says))
        )


class UpstreamFailure(Exception):
    """The error to show, what may be done, and what the log should say.

    `label` is for metrics. `is_outage`: it counts against the account, which an answer to one
    request's content, or its own deadline, does not.
    """

    def __init__(
        self,
        error: GatewayError,
        remedy: Remedy,
        *,
        label: str = "other",
        source: Source = Source.NOBODY,
        answer: Answer | None = None,
        is_outage: bool | None = None,
    ) -> None:
        super().__init__(error.message)
        reply = answer.reply if answer else None
        self.error = error
        self.remedy = remedy
        self.label = label
        self.source = source
        self.is_outage = isinstance(error, OUTAGES) if is_outage is None else is_outage
        self.status = answer.status if answer else 0
        self.code = (reply and reply.code) or ""
        self.message = (reply and reply.message) or (answer.page if answer else "")
        self.request_id = reply.request_id if reply else None


OUTAGES = (
    errors.UpstreamFailed,
    errors.UpstreamAmbiguous,
    errors.UpstreamOverloaded,
    errors.UpstreamUnreachable,
)

MODERATED = "The request was rejected by the image service's safety system."
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
UNREACHABLE = "The image service cannot be reached; nothing was generated."
REFUSED = (
    "Something in front of the image service refused the request; nothing was generated. "
    "Tell the gateway's operator."
)
UNKNOWN = (
    "Something in front of the image service answered in its place; the image may have been "
    "generated."
)

THROTTLE_REST_S = 60.0
"""An exceeded quota recovers within about a minute ("Rate limits")."""
NOT_HAD = ("download", "media resource", "media format", "timeout", "timed out")
"""A picture that its host did not give, or that is none."""
INSPECTED = ("datainspection", "data_inspection", "inappropriate content")
"""The safety system's words; some services have them only in the message."""
UNPAID = (
    *("free allocated", "free quota", "free tier", "free-tier", "free trial", "free usage", "免费"),
    *("billing", "overdue", "arrear", "account balance", "insufficient balance", "payment"),
)
"""Words for a quota that does not come back by waiting."""
QUOTAS = ("Throttling", "Throttling.*", "limit_*", "insufficient_quota", "*Quota*")

TABLE: tuple[Row, ...] = (
    Row(codes=("InvalidParameter.DataInspection",), says=NOT_HAD, text=BAD_INPUT,
        error=errors.InvalidRequest),  # an input picture could not be fetched
    Row(codes=("*DataInspection*", "*data_inspection*", "IPInfringementSuspect", "FaqRuleBlocked",
               "CustomRoleBlocked"), error=errors.ModerationBlocked, text=MODERATED),
    Row(says=INSPECTED, error=errors.ModerationBlocked, text=MODERATED, name="*DataInspection*"),
    Row(codes=("Arrearage", "CommodityNotPurchased", "PrepaidBillOverdue", "PostpaidBillOverdue",
               "AccessDenied.Unpurchased", "AllocationQuota.FreeTierOnly"),
        error=errors.UpstreamBilling, text=NO_CREDIT, remedy=Remedy.OTHER_ACCOUNT),
    # Documented as another name of Throttling.AllocationQuota, in words that OpenAI has for a bill.
    Row(codes=("insufficient_quota",), says=("check your plan and billing details",),
        error=errors.UpstreamThrottled, text=THROTTLED, remedy=Remedy.THROTTLED,
        retry_after_s=THROTTLE_REST_S),
    Row(codes=QUOTAS, says=UNPAID, error=errors.UpstreamBilling, text=NO_CREDIT,
        remedy=Remedy.OTHER_ACCOUNT, name="unpaid_quota"),
    Row(status=429, says=UNPAID, error=errors.UpstreamBilling, text=NO_CREDIT,
        remedy=Remedy.OTHER_ACCOUNT, name="unpaid_quota"),
    Row(says=("model not exist",), error=errors.ModelNotFound, text=NO_MODEL, param="model",
        remedy=Remedy.OTHER_ACCOUNT, name="ModelNotFound"),
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
    # The upstream's own code, but none that it documents: the status decides.
    Row(status=400, error=errors.InvalidRequest, text=BAD_INPUT),
    Row(status=401, error=errors.UpstreamRefused, text=NO_ACCESS, remedy=Remedy.OTHER_ACCOUNT),
    Row(status=403, error=errors.UpstreamRefused, text=NO_ACCESS, remedy=Remedy.OTHER_ACCOUNT),
    Row(status=408, error=errors.UpstreamTimeout, text=TIMED_OUT, remedy=Remedy.UNKNOWN),
    Row(status=413, error=errors.BodyTooLarge, text=TOO_LARGE),
    Row(status=429, error=errors.UpstreamThrottled, text=THROTTLED, remedy=Remedy.THROTTLED),
    Row(status=504, error=errors.UpstreamTimeout, text=TIMED_OUT, remedy=Remedy.UNKNOWN),
    Row(status=range(201, 300), error=errors.UpstreamAmbiguous, text=UNREADABLE,
        remedy=Remedy.UNKNOWN),
    Row(status=range(300, 500), error=errors.UpstreamRefused, text=FAILED),
    Row(error=errors.UpstreamFailed, text=FAILED, name="undocumented"),
)  # fmt: skip

ANYBODY_S = (
    *("AccessDenied", "access_denied", "APIConnectionError", "GatewayTimeout", "InternalError"),
    *("NotFound", "RequestTimeOut", "ServiceUnavailable", "SystemError", "UnsupportedOperation"),
    "insufficient_quota",
)
"""Codes that other services have, too: the upstream's only beside a request id."""

NOT_SENT = "not sent"
NOT_TAKEN = "over its rate"
RESET = "upstream connect error or disconnect/reset before headers. reset reason: "
"""Envoy's sentence. "retried and the latest reset reason" says nothing of the attempts before."""
NOT_CONNECTED = frozenset({
    "connection failure", "local connection failure", "remote connection failure",
    "connection timeout", "overflow",
})  # fmt: skip
"""Reasons that Envoy gives while it has no connection, so that nothing was sent over one."""
NOT_PASSED_ON = frozenset({"no healthy upstream", "envoy overloaded"})
"""Its words for no server behind it, and for overload."""
RATE_LIMITED = "local_rate_limited"

EDGE_TABLE: tuple[Row, ...] = (
    Row(name="edge_not_sent", status=frozenset({503, 504}), proof=NOT_SENT,
        error=errors.UpstreamUnreachable, text=UNREACHABLE, remedy=Remedy.RESEND,
        when="Envoy had no connection to pass it on: `connection failure` (`local`, `remote`),"
             " `connection timeout`, `overflow`, `no healthy upstream`, `envoy overloaded`"),
    Row(name="edge_throttled", status=429, proof=NOT_TAKEN,
        error=errors.UpstreamThrottled, text=THROTTLED, remedy=Remedy.THROTTLED,
        when="Envoy's own rate limit, which comes before it passes anything on"),
    Row(name="edge_too_large", status=413, error=errors.BodyTooLarge, text=TOO_LARGE,
        when="the body was refused for its size, before it was read"),
    Row(name="edge_refused", error=errors.UpstreamRefused, text=REFUSED,
        status=frozenset({301, 307, 308, 400, 401, 403, 404, 405, 407, 411, 414, 415, 417, 421,
                          426, 431, 451}),
        when="refused or sent elsewhere for what the request is: a firewall's page, a proxy that"
             " wants a password, no such route"),
    Row(name="edge_timeout", status=frozenset({408, 504}), error=errors.UpstreamTimeout,
        text=TIMED_OUT, remedy=Remedy.UNKNOWN,
        when="it waited for somebody; whether for the generation, it does not say"),
    Row(name="unreadable", status=range(200, 300), error=errors.UpstreamAmbiguous, text=UNREADABLE,
        remedy=Remedy.UNKNOWN,
        when="a success that is no JSON, has been cut short, or lacks both images and a code"),
    Row(name="edge_unknown", error=errors.UpstreamAmbiguous, text=UNKNOWN, remedy=Remedy.UNKNOWN,
        when="everything else: any 5xx page or JSON without the upstream's code, `connection"
             " termination`, `remote reset`, `protocol error`, a retried reset, 429, 499, 302"),
)  # fmt: skip


def source_of(answer: Answer) -> Source:
    if is_upstream_s(answer.reply):
        return Source.UPSTREAM
    is_proxy_s = answer.is_proxy_s or answer.status == 407
    return Source.PROXY if is_proxy_s else Source.EDGE


def is_upstream_s(reply: GenerationReply | None) -> bool:
    """Its own code, or the word of its safety system."""
    if reply is None:
        return False
    message = (reply.message or "").lower()
    if any(word in message for word in INSPECTED):
        return True
    if not reply.code:
        return False
    return bool(reply.request_id) or is_only_upstream_s(reply.code)


def is_only_upstream_s(code: str) -> bool:
    """Whether no other service has this code."""
    is_documented = any(row.codes and matches(row.codes, code) for row in TABLE)
    return is_documented and code not in ANYBODY_S


def proof_in(page: str) -> str:
    """What an edge's whole page proves; empty for nothing."""
    words = page.strip()
    if words == RATE_LIMITED:
        return NOT_TAKEN
    reason, _, _ = words.removeprefix(RESET).partition(",")
    has_no_connection = words.startswith(RESET) and reason in NOT_CONNECTED
    return NOT_SENT if has_no_connection or words in NOT_PASSED_ON else ""


def to_failure(answer: Answer) -> UpstreamFailure:
    source, reply = source_of(answer), answer.reply
    code = (reply and reply.code) or ""
    message = (reply and reply.message) or ""
    if source is Source.UPSTREAM:
        row = next(row for row in TABLE if row.covers(answer.status, code, message))
    else:
        proofs = {"", proof_in(answer.page)}
        row = next(r for r in EDGE_TABLE if r.proof in proofs and answer.status in r.statuses)
    is_told = row.remedy in {Remedy.RESEND, Remedy.THROTTLED}
    told = answer.retry_after_s if is_told or source is Source.UPSTREAM else None
    return UpstreamFailure(
        row.error(
            row.text, param=row.param, retry_after_s=row.retry_after_s if told is None else told
        ),
        row.remedy,
        label=row.label(code),
        source=source,
        answer=answer,
    )

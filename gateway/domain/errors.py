"""Every failure a client can see, as one tree.

    GatewayError
    ├── InvalidRequest            400  the caller's mistake; `param` names the field
    │   ├── UnknownParameter      400
    │   ├── Unsupported           400  OpenAI serves it, and this gateway makes images only
    │   ├── EndpointRetired       410  OpenAI served it
    │   ├── IdempotencyConflict   422  the key came before with another body
    │   ├── ModerationBlocked     400  the vendor's safety system refused prompt or picture
    │   ├── BodyTooLarge          413
    │   └── UnsupportedMediaType  415
    ├── InvalidKey                401
    ├── ModelForbidden            403
    ├── CallModeForbidden         403  the vendor's own path answers at once and whole
    ├── NotFound                  404
    │   └── ModelNotFound         404
    ├── MethodNotAllowed          405
    ├── BodyTimeout               408  the body did not arrive in time
    ├── NotCached                 504  only-if-cached, and it is not
    ├── RateLimited               429  wait, then try again
    │   ├── LargerThanLimit       429  no wait is long enough
    │   └── UpstreamThrottled     429  the account behind the gateway is at its limit
    ├── BudgetExhausted           429  trying again does not help
    │   └── UpstreamBilling       429  the account behind the gateway is out of credit
    ├── ClientGone                499  hung up before the answer
    ├── ServiceUnavailable        503  a part the gateway needs is down
    │   ├── UpstreamOverloaded    503
    │   ├── ImageHostsUnreachable 503  our own network lets no image through
    │   └── UpstreamUnreachable   503  nothing was sent
    ├── UpstreamRefused           502  the gateway's own set-up is at fault: key, access
    ├── UpstreamFailed            502  the vendor failed and billed nothing
    ├── UpstreamAmbiguous         502  a picture may have been generated and billed
    │   ├── UpstreamTimeout       504
    │   └── IncompleteResult      502  fewer images than asked, and some may be billed
    ├── ImageUnavailable          502  a picture was generated and billed, and cannot be fetched
    └── InternalFault             500

Each class carries its own facts; `gateway.api.errors` renders them all in one place.
Messages are written for the caller: they never hold a vendor key, host, URL or stack trace.
"""

from __future__ import annotations

import re
from typing import ClassVar

WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")


class GatewayError(Exception):
    """A failure that is safe to show.

    `status` is HTTP's; `type`, `code` and `param` fill OpenAI's error object. `should_retry`
    becomes `x-should-retry`, which the OpenAI SDKs put above their own rule (None leaves it to
    them); `retry_after_s` becomes `retry-after` and `retry-after-ms`. A failure may override its
    class' `code` and `should_retry`.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    should_retry: bool | None = None

    @classmethod
    def label(cls) -> str:
        """The class as a metric's label: `ModelNotFound` is `model_not_found`."""
        return WORD.sub("_", cls.__name__).lower()

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code
        self.should_retry = type(self).should_retry
        self.retry_after_s = retry_after_s


class InvalidRequest(GatewayError):
    """The request cannot be honoured as it stands; nothing was paid."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"
    should_retry = False


class UnknownParameter(InvalidRequest):
    """A key that neither OpenAI's API nor the gateway knows."""

    code = "unknown_parameter"


class Unsupported(InvalidRequest):
    """OpenAI serves this path, and the gateway does not: it makes images only."""

    code = "unsupported"


class EndpointRetired(InvalidRequest):
    """OpenAI retired this path."""

    status = 410
    code = "endpoint_retired"


class IdempotencyConflict(InvalidRequest):
    """The idempotency key came before with another body."""

    status = 422
    code = "idempotency_key_reused"


class ModerationBlocked(InvalidRequest):
    """The vendor's safety system refused; the same prompt will be refused again."""

    type = "image_generation_user_error"
    code = "moderation_blocked"


class BodyTooLarge(InvalidRequest):
    """The body is over the gateway's limit, or the vendor's."""

    status = 413
    code = "request_too_large"


class UnsupportedMediaType(InvalidRequest):
    """The body is not declared as JSON."""

    status = 415
    code = "unsupported_media_type"


class InvalidKey(GatewayError):
    """No key, an unknown one or an expired one: only the message says which."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    should_retry = False


class ModelForbidden(GatewayError):
    """The model exists, and this tenant may not use it."""

    status = 403
    type = "invalid_request_error"
    code = "model_not_allowed"
    should_retry = False


class CallModeForbidden(GatewayError):
    """Asked to answer later or bit by bit, on the vendor's own path, which answers at once."""

    status = 403
    type = "invalid_request_error"
    code = "call_mode_not_allowed"
    should_retry = False


class NotFound(GatewayError):
    """No such path."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"
    should_retry = False


class ModelNotFound(NotFound):
    """No model or alias of that name."""

    code = "model_not_found"


class MethodNotAllowed(GatewayError):
    """The path exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"
    should_retry = False


class BodyTimeout(GatewayError):
    """The client was too slow to send its body."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class NotCached(GatewayError):
    """`Cache-Control: only-if-cached`, and no result is kept."""

    status = 504
    type = "invalid_request_error"
    code = "not_cached"
    should_retry = False


class RateLimited(GatewayError):
    """A limit of the tenant's; `retry_after_s` says when it has room."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class LargerThanLimit(RateLimited):
    """The request alone is larger than a limit of the tenant's, so that no wait helps."""

    should_retry = False


class UpstreamThrottled(RateLimited):
    """The upstream account is at its own limit."""


class BudgetExhausted(GatewayError):
    """Too little is left of a daily or monthly budget, so a retry within seconds cannot help."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"
    should_retry = False


class UpstreamBilling(BudgetExhausted):
    """The upstream account is out of credit, which only the gateway's operator can mend."""


class ClientGone(GatewayError):
    """The client hung up before its answer; one that closed only its sending side reads it."""

    status = 499
    type = "invalid_request_error"
    code = "client_closed_request"


class ServiceUnavailable(GatewayError):
    """A part that the gateway needs is away; nothing was paid."""

    status = 503
    type = "service_unavailable_error"
    code = "service_unavailable"


class UpstreamOverloaded(ServiceUnavailable):
    """The vendor said that it has no capacity, which it does before generating."""

    code = "server_is_overloaded"


class UpstreamUnreachable(ServiceUnavailable):
    """No connection to the vendor could be opened: the request never left."""

    code = "upstream_unreachable"


class ImageHostsUnreachable(ServiceUnavailable):
    """The gateway's own network or settings let no image through; nothing was generated.

    Only the operator can mend that; answers of URLs still work.
    """

    code = "image_hosts_unreachable"
    should_retry = False


class UpstreamRefused(GatewayError):
    """The vendor refused the gateway itself: its key or its rights.

    Only the operator can mend that, so clients must not retry.
    """

    status = 502
    code = "upstream_account_error"
    should_retry = False


class UpstreamFailed(GatewayError):
    """The vendor failed in a way that is known not to be billed."""

    status = 502
    code = "upstream_error"


class UpstreamAmbiguous(GatewayError):
    """The request was sent and its outcome is unknown: it may have been generated and billed.

    SDKs repeat a 5xx by themselves, which would pay twice: this one tells them not to.
    """

    status = 502
    code = "upstream_outcome_unknown"
    should_retry = False


class UpstreamTimeout(UpstreamAmbiguous):
    """The deadline passed after the request was sent."""

    status = 504
    code = "upstream_timeout"


class IncompleteResult(UpstreamAmbiguous):
    """The vendor answered with fewer images than asked; none is dropped in silence."""

    code = "incomplete_result"


class ImageUnavailable(GatewayError):
    """An image was generated, and billed, but cannot be fetched; retry where the header says so.

    `for_good`: it never will be, and its result is dropped. Otherwise a retry gets it unpaid.
    """

    status = 502
    code = "image_unavailable"
    should_retry = False
    for_good: bool = False

    def __init__(self, message: str, *, for_good: bool = False) -> None:
        super().__init__(message)
        self.for_good = for_good
        self.should_retry = not for_good


class InternalFault(GatewayError):
    """A defect of the gateway; the log has the details under the request id."""

    code = "internal_error"

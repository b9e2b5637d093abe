"""Cross-origin requests from the configured origins.

Litestar's CORS middleware knows no private networks, answers a refused preflight with text, and
holds two more frames for each waiting request.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Sequence

from litestar.enums import ScopeType
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp, Receive, Scope, Send

from gateway.observability.context import context_of

ANY = "*"
MAX_AGE_S = 7200
"""The longest that Chromium keeps the answer to a preflight."""
METHODS = b"GET, HEAD, OPTIONS, POST"
NAMES = re.compile(rb"[\w!#$%&'*+.^`|~-]+(?:[ \t]*,[ \t]*[\w!#$%&'*+.^`|~-]+)*")
EXPOSED = b", ".join(
    [
        *(b"x-request-id", b"x-should-retry", b"retry-after", b"retry-after-ms"),
        *(b"x-cache", b"age", b"x-image-expires-in", b"openai-processing-ms"),
        *(b"x-gateway-model", b"x-gateway-size", b"x-gateway-ignored", b"x-gateway-warning"),
        b"x-gateway-repeated-error",
        *(b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests"),
        *(b"x-ratelimit-reset-requests", b"x-ratelimit-limit-images"),
        *(b"x-ratelimit-remaining-images", b"x-ratelimit-reset-images"),
    ]
)
"""Readable by scripts, beside type and length."""

OPERATIONS = frozenset({"/healthz", "/readyz", "/metrics"})
"""For no page: their access is by address, and a browser may have an allowed one."""

Headers = list[tuple[bytes, bytes]]


class CorsMiddleware:
    """Answers preflights, which carry no key, and marks every answer, failures included."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._any = ANY in origins
        self._origins = frozenset(origin.lower().encode() for origin in origins)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """No coroutine: it would hold a frame while the request waits."""
        if scope["type"] != ScopeType.HTTP:
            return self._app(scope, receive, send)
        if scope["path"] in OPERATIONS:
            return self._app(scope, receive, send)
        asked = dict(scope["headers"])
        marks = self._marks(asked.get(b"origin"))
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in asked:
            return preflight(asked, marks)(scope, receive, send)

        # So that an answer that is sent early has them, too.
        answer = context_of(scope).answer_headers
        answer.update((name.decode(), value.decode("latin-1")) for name, value in marks)
        return self._app(scope, receive, send)

    def _marks(self, origin: bytes | None) -> Headers:
        if self._any:
            return [(b"access-control-allow-origin", b"*"), EXPOSE] if origin else []
        vary = (b"vary", b"Origin")  # on what no page asked for, too: a cache may give it to one
        if origin is None or origin.lower() not in self._origins:
            return [vary]
        return [(b"access-control-allow-origin", origin), EXPOSE, vary]


EXPOSE = (b"access-control-expose-headers", EXPOSED)


def preflight(asked: dict[bytes, bytes], marks: Headers) -> ASGIResponse:
    """Any header that the browser names is allowed: SDKs add some with each version."""
    answer = ASGIResponse(status_code=204)
    for name, value in [*marks, *(allowed(asked) if EXPOSE in marks else [])]:
        if name != EXPOSE[0]:
            answer.headers.add(name.decode(), value.decode("latin-1"))
    return answer


def allowed(asked: dict[bytes, bytes]) -> Headers:
    headers = [
        (b"access-control-allow-methods", METHODS),
        (b"access-control-max-age", str(MAX_AGE_S).encode()),
        (b"vary", b"Access-Control-Request-Headers"),
    ]
    names = asked.get(b"access-control-request-headers", b"").strip()
    if NAMES.fullmatch(names):
        headers.append((b"access-control-allow-headers", names))
    if asked.get(b"access-control-request-private-network") == b"true":
        headers.append((b"access-control-allow-private-network", b"true"))
    return headers

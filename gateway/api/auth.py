"""The caller's key, from `Authorization: Bearer` or `api-key`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from litestar.types import ASGIApp, Receive, Scope, Send

from gateway.domain.errors import InvalidKey
from gateway.observability.context import context_of
from gateway.tenants.keys import Caller, KeyRing

MISSING_IN = "You didn't provide an API key. Send it in the header {}."
MISSING = (
    "You didn't provide an API key. Send it in an Authorization header as 'Bearer YOUR_KEY', "
    "or in an api-key header."
)


def presented_key(scope: Scope, header: bytes | None = None) -> str:
    """The one key of a request, in a `header` of the operator's choice or in one of the usual two.

    Raises:
        InvalidKey: there is none, or two that differ, of which somebody else may have sent one.
    """
    found = own_keys(scope, header) if header else usual_keys(scope)
    if len(found) > 1:
        raise InvalidKey("The request carries more than one API key.")
    if not found:
        raise InvalidKey(MISSING_IN.format(header.decode()) if header else MISSING)
    return found.pop().decode("latin-1")


def usual_keys(scope: Scope) -> set[bytes]:
    """Those of OpenAI's header, and of Azure's."""
    return {
        key
        for name, value in scope["headers"]
        if (name == b"authorization" and (key := bearer(value)))
        or (name == b"api-key" and (key := value.strip()))
    }


def own_keys(scope: Scope, header: bytes) -> set[bytes]:
    """Those of one header alone, whether it says Bearer or not: another one is a proxy's."""
    values = [value.strip() for name, value in scope["headers"] if name == header]
    return {key for value in values if (key := bearer(value) or value)}


def bearer(value: bytes) -> bytes:
    """The token of a Bearer header; empty for another scheme."""
    scheme, _, token = value.strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


class Authenticator:
    """Turns a request into its caller. `now` gives Unix seconds.

    `header` is the only one that is read for a key; None: the usual two.
    """

    def __init__(self, keys: KeyRing, now: Callable[[], float], header: str | None = None) -> None:
        self._keys = keys
        self._now = now
        self._header = header.lower().encode() if header else None

    def use(self, keys: KeyRing) -> None:
        """Follow a changed configuration, from the next request on."""
        self._keys = keys

    def __call__(self, scope: Scope) -> Caller:
        """Find the caller.

        Raises:
            InvalidKey: no valid key.
        """
        now = datetime.fromtimestamp(self._now(), UTC)
        return self._keys.find(presented_key(scope, self._header), now)


class KeyMiddleware:
    """Litestar's authentication by key: `request.user` is the `Caller`.

    Litestar's own base class would hold a frame, and grow the scope by an `auth` that nobody reads,
    1.1 KiB together, for as long as a request waits.
    """

    def __init__(self, app: ASGIApp, authenticate: Authenticator) -> None:
        self._app = app
        self._authenticate = authenticate

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Find the caller, and pass the request on.

        Raises:
            InvalidKey: no valid key.
        """
        caller = self._authenticate(scope)
        context_of(scope).tenant = caller.tenant.name
        scope["user"] = caller
        return self._app(scope, receive, send)

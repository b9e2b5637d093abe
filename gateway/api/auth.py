"""The caller's key, from `Authorization: Bearer` or `api-key`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from litestar.connection import ASGIConnection
from litestar.middleware.authentication import (
    AbstractAuthenticationMiddleware,
    AuthenticationResult,
)
from litestar.types import ASGIApp, Scope

from gateway.domain.errors import InvalidKey
from gateway.observability.context import context_of
from gateway.tenants.keys import Caller, KeyRing

MISSING = (
    "You didn't provide an API key. Send it in an Authorization header as 'Bearer YOUR_KEY', "
    "or in an api-key header."
)


def presented_key(scope: Scope) -> str:
    """The one key of a request.

    Raises:
        InvalidKey: there is none, or two that differ, of which somebody else may have sent one.
    """
    found = {
        key
        for name, value in scope["headers"]
        if (name == b"authorization" and (key := bearer(value)))
        or (name == b"api-key" and (key := value.strip()))
    }
    if len(found) > 1:
        raise InvalidKey("The request carries more than one API key.")
    if not found:
        raise InvalidKey(MISSING)
    return found.pop().decode("latin-1")


def bearer(value: bytes) -> bytes:
    """The token of a Bearer header; empty for another scheme."""
    scheme, _, token = value.strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


class Authenticator:
    """Turns a request into its caller. `now` gives Unix seconds."""

    def __init__(self, keys: KeyRing, now: Callable[[], float]) -> None:
        self._keys = keys
        self._now = now

    def use(self, keys: KeyRing) -> None:
        """Follow a changed configuration, from the next request on."""
        self._keys = keys

    def __call__(self, scope: Scope) -> Caller:
        """Find the caller.

        Raises:
            InvalidKey: no valid key.
        """
        now = datetime.fromtimestamp(self._now(), UTC)
        return self._keys.find(presented_key(scope), now)


class KeyMiddleware(AbstractAuthenticationMiddleware):
    """Litestar's authentication by key: `request.user` is the `Caller`."""

    def __init__(self, app: ASGIApp, authenticate: Authenticator) -> None:
        super().__init__(app)
        self._authenticate = authenticate

    async def authenticate_request(
        self, connection: ASGIConnection[Any, Any, Any, Any]
    ) -> AuthenticationResult:
        """Find the caller.

        Raises:
            InvalidKey: no valid key.
        """
        caller = self._authenticate(connection.scope)
        context_of(connection.scope).tenant = caller.tenant.name
        return AuthenticationResult(user=caller, auth=None)

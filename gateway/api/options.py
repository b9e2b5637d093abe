"""What a client says beside the body: of caching, of repeating, and of waiting."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import msgspec

from gateway.config import Tenant
from gateway.domain.errors import InvalidRequest
from gateway.requests.pipeline import RequestOptions
from gateway.results import Idempotency
from gateway.results.cache_policy import CacheControl, idempotency, retry_hash
from gateway.tenants.keys import Caller

LONGEST_LEAD_S = 1.0
SHORTEST_TOLD_S = 0.1
"""A shorter SDK time-out is taken for a mistake."""
GRACE_S = 1.0
"""A generation that ends at its own deadline has better words for it than "not ready"."""
LONGEST_SILENCE_S = 15.0
"""Many proxies end an answer that is silent for 60 s, some after 30 s."""
LONGEST_IDEMPOTENCY_KEY = 255


def parse_options(
    lines: Sequence[tuple[bytes, bytes]],
    caller: Caller,
    body: dict[str, Any],
    deadline_s: float,
    *,
    streams: bool = False,
) -> RequestOptions:
    """Several Cache-Control lines are one list (RFC 9110, section 5.3): a proxy may add its own.

    `body` is what makes two requests the same, in any order of keys. Raises InvalidRequest for a
    bad or second Idempotency-Key, or a Cache-Control that is too long.
    """
    headers = dict(lines)
    tenant = caller.tenant
    allowed_s = tenant.deadline_s or deadline_s
    control = b",".join(values_of(b"cache-control", lines))
    return RequestOptions(
        retry_key=retry_hash(tenant.name, caller.key.hash, canonical(body)),
        control=CacheControl.parse(control.decode("latin-1")) if control else CacheControl(),
        idempotency=to_idempotency(values_of(b"idempotency-key", lines), tenant, body),
        is_retry=headers.get(b"x-stainless-retry-count", b"0") not in {b"0", b""},
        client_timeout_s=allowed_s + GRACE_S
        if streams
        else client_timeout_s(headers.get(b"x-stainless-read-timeout"), allowed_s + GRACE_S),
        silence_s=silence_s(headers),
        deadline_s=allowed_s,
    )


def canonical(body: dict[str, Any]) -> bytes:
    """The same bytes for the same content."""
    return msgspec.json.encode(body, order="deterministic")


def values_of(name: bytes, lines: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    return [value for key, value in lines if key == name]


def to_idempotency(
    keys: Sequence[bytes], tenant: Tenant, body: dict[str, Any]
) -> Idempotency | None:
    texts = {key.decode("latin-1").strip() for key in keys}
    if not texts:
        return None
    if len(texts) > 1:
        message = "Two different Idempotency-Keys came with this request; send one."
        raise InvalidRequest(message, code="invalid_idempotency_key")
    (text,) = texts
    if not text or len(text) > LONGEST_IDEMPOTENCY_KEY or not text.isprintable():
        message = f"An Idempotency-Key has 1 to {LONGEST_IDEMPOTENCY_KEY} printable characters."
        raise InvalidRequest(message, code="invalid_idempotency_key")
    return idempotency(tenant.name, text, body)


def client_timeout_s(sdk_timeout: bytes | None, allowed_s: float) -> float:
    """Seconds the client waits: what it is allowed, or the SDK's own time-out if shorter.

    openai-python sends it as `x-stainless-read-timeout`, and repeats the request after it: the
    gateway gives up a little earlier.
    """
    told = told_s(sdk_timeout)
    return allowed_s if told is None else min(allowed_s, told - min(told / 10, LONGEST_LEAD_S))


def silence_s(headers: dict[bytes, bytes]) -> float:
    """Seconds for which a streamed answer may be silent.

    openai-python's read time-out restarts with each byte, openai-node's ends at the answer's head.
    """
    names = (b"x-stainless-read-timeout", b"x-stainless-timeout")
    told = [s for s in map(told_s, map(headers.get, names)) if s is not None]
    return min([LONGEST_SILENCE_S, *(s / 2 for s in told)])


def told_s(sdk_timeout: bytes | None) -> float | None:
    """None where the header can hardly be meant."""
    try:
        told = float(sdk_timeout or b"")
    except ValueError:
        return None
    return told if isfinite(told) and told >= SHORTEST_TOLD_S else None

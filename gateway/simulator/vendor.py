"""How the vendor answers: its headers, its JSON, its keys."""

from __future__ import annotations

import msgspec
from litestar.types import Scope

from gateway.simulator.replies import Json, RawReply, Refused, Replies
from gateway.simulator.settings import Settings
from gateway.simulator.wire import Answer, Headers, header

SYNC_TIMEOUT_S = 298
"""What `x-dashscope-timeout` says on synchronous calls."""

_encode = msgspec.json.Encoder().encode


def account_of(scope: Scope, settings: Settings) -> str:
    """The account behind the call's bearer key; `Refused` when there is none."""
    scheme, _, key = header(scope, b"authorization").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise Refused("InvalidApiKey-missing")
    if settings.api_keys and key not in settings.api_keys:
        raise Refused("InvalidApiKey")
    return settings.accounts.get(key, "default")


def headers(request_id: str, arrived: float, took_s: float) -> Headers:
    """The headers seen on real answers. `arrived` in Unix seconds."""
    arrived_ms, took_ms = int(arrived * 1000), int(took_s * 1000)
    return [
        (b"content-type", b"application/json"),
        (b"x-request-id", request_id.encode()),
        (b"x-dashscope-call-gateway", b"true"),
        (b"x-dashscope-finished", b"true"),
        (b"x-dashscope-timeout", b"%d" % SYNC_TIMEOUT_S),
        (b"req-cost-time", b"%d" % took_ms),
        (b"req-arrive-time", b"%d" % arrived_ms),
        (b"resp-start-time", b"%d" % (arrived_ms + took_ms)),
        (b"x-envoy-upstream-service-time", b"%d" % took_ms),
        (b"server", b"istio-envoy"),
        (b"vary", b"Origin,Access-Control-Request-Method,Access-Control-Request-Headers"),
    ]


def answer(body: Json, request_id: str, arrived: float, took_s: float, status: int = 200) -> Answer:
    """A JSON answer of the vendor."""
    return Answer(status, headers(request_id, arrived, took_s), _encode(body))


def refusal(
    refused: Refused, replies: Replies, request_id: str, arrived: float, settings: Settings
) -> Answer:
    """The vendor's error answer; with `Retry-After` on 429 only when the settings say so."""
    status, body = replies.error(refused, request_id)
    found = answer(body, request_id, arrived, 0.0, status)
    if status == 429 and settings.retry_after_s is not None:
        found.headers.append((b"retry-after", f"{settings.retry_after_s:g}".encode()))
    return found


def raw_answer(reply: RawReply) -> Answer:
    """An answer that comes from something in front of the vendor."""
    named = {"server": "nginx", **reply.headers}
    if reply.content_type:
        named["content-type"] = reply.content_type
    if reply.gzip:
        named["content-encoding"] = "gzip"
    headers = [(name.encode(), value.encode()) for name, value in named.items()]
    return Answer(reply.status, headers, reply.content)

"""Result URLs, served the way object storage does: signed, anonymous, with ranges.

Refusals are XML. A request that carries an `Authorization` header is refused and counted: a client
that sends one has leaked its DashScope key to a storage host.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from email.utils import formatdate

from litestar.types import Receive, Scope, Send

from gateway.simulator.faults import Fault
from gateway.simulator.gallery import Issued, Rendered
from gateway.simulator.simulator import Simulator
from gateway.simulator.wire import (
    CHUNK_BYTES,
    Answer,
    Cut,
    Headers,
    cut,
    header,
    method,
    send_answer,
    send_head,
    send_part,
    wait_until_gone,
)

OVERSIZED_BYTES = 256 * 1024 * 1024
NOT_A_PNG = b"<!doctype html><title>Sign in</title><p>Please sign in to the network.\n"

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_TICK_S = 0.1

_REFUSALS = {
    "authorised": (400, "InvalidArgument", "Only one auth mechanism is allowed."),
    "unsigned": (
        403,
        "AccessDenied",
        "You have no right to access this object because of bucket acl.",
    ),
    "mismatch": (
        403,
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided.",
    ),
    "expired": (403, "AccessDenied", "Request has expired."),
    "unknown": (404, "NoSuchKey", "The specified key does not exist."),
    "method": (
        405,
        "MethodNotAllowed",
        "The specified method is not allowed against this resource.",
    ),
    "range": (416, "InvalidRange", "The requested range cannot be satisfied."),
    "broken": (500, "InternalError", "We encountered an internal error. Please try again."),
}
_REFUSING_FAULTS = {"image_404": "unknown", "image_500": "broken", "image_expired": "expired"}


class _Refused(Exception):
    """The storage refuses, for a reason in `_REFUSALS`."""


@dataclass(frozen=True, slots=True)
class _Exchange:
    """One download under way."""

    scope: Scope
    receive: Receive
    send: Send
    issued: Issued


class DownloadEndpoint:
    """An ASGI application for everything below `/1d` and `/7d`."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one image, or refuses."""
        counts = self._simulator.journal.downloads
        try:
            exchange = _Exchange(scope, receive, send, self._checked(scope))
            counts[await self._serve(exchange)] += 1
        except _Refused as refused:
            answer = _refusal(str(refused))
            counts[str(answer.status)] += 1
            await send_answer(send, answer)
        except Cut as end:
            counts["cut"] += 1
            await cut(scope, receive, orderly=end.orderly)

    def _checked(self, scope: Scope) -> Issued:
        """The image a request is allowed to fetch; raises `_Refused`."""
        simulator = self._simulator
        if header(scope, b"authorization"):
            simulator.journal.authorised_downloads += 1
            raise _Refused("authorised")
        if method(scope) not in {"GET", "HEAD"}:
            raise _Refused("method")
        path, query = scope["raw_path"], scope["query_string"]
        verdict = simulator.signer.check(path, query, simulator.clock())
        if verdict != "valid":
            raise _Refused(verdict)
        issued = simulator.gallery.find(path.decode())
        if issued is None:
            raise _Refused("unknown")
        return issued

    async def _serve(self, exchange: _Exchange) -> str:
        """Sends the image, through its fault if it has one; returns what was answered."""
        simulator, model = self._simulator, exchange.issued.picture.model
        fault = exchange.issued.fault or simulator.faults.take_for_image(model)
        if fault is not None:
            simulator.journal.faults[fault.kind] += 1
            return await self._misbehave(exchange, fault)
        rendered = await simulator.gallery.png(exchange.issued.picture, simulator.settings)
        answer = _image_answer(rendered, header(exchange.scope, b"range"), simulator.clock())
        await _send(exchange, answer)
        return str(answer.status)

    async def _misbehave(self, exchange: _Exchange, fault: Fault) -> str:
        if fault.after_s:
            await self._simulator.sleep(fault.after_s)
        if fault.kind in _REFUSING_FAULTS:
            raise _Refused(_REFUSING_FAULTS[fault.kind])
        if fault.kind == "image_reset":
            raise Cut
        if fault.kind == "image_hang":
            await wait_until_gone(exchange.receive)
            return "hung"
        if fault.kind == "image_oversized":
            return await _send_oversized(exchange, fault)
        if fault.kind == "image_redirect":
            await send_answer(exchange.send, Answer(302, [_location(fault)], b""))
            return "302"
        return await self._spoil(exchange, fault)

    async def _spoil(self, exchange: _Exchange, fault: Fault) -> str:
        """Sends the image, but cut short, slowly, or as something else."""
        simulator = self._simulator
        rendered = await simulator.gallery.png(exchange.issued.picture, simulator.settings)
        answer = _image_answer(rendered, "", simulator.clock())
        if fault.kind == "image_truncated":
            end = len(answer.body) // 2 if fault.at_byte is None else fault.at_byte
            await send_head(exchange.send, 200, [*answer.headers, _length(answer.body)])
            await send_part(exchange.send, answer.body[:end])
            raise Cut(orderly=True)
        if fault.kind == "image_slow":
            await self._drip(exchange, answer, fault.bytes_per_s)
        else:
            await _send(exchange, _disguised(answer, fault.kind))
        return "200"

    async def _drip(self, exchange: _Exchange, answer: Answer, bytes_per_s: int) -> None:
        await send_head(exchange.send, 200, [*answer.headers, _length(answer.body)])
        step = max(1, int(bytes_per_s * _TICK_S))
        for start in range(0, len(answer.body), step):
            await self._simulator.sleep(_TICK_S)
            await send_part(exchange.send, answer.body[start : start + step])
        await send_part(exchange.send, b"", more=False)


def _image_answer(rendered: Rendered, wanted: str, now: float) -> Answer:
    """200 with the whole image, or 206 with the one range asked for; raises `_Refused`."""
    headers: Headers = [
        (b"content-type", b"image/png"),
        (b"accept-ranges", b"bytes"),
        (b"etag", f'"{rendered.etag}"'.encode()),
        (b"last-modified", formatdate(now, usegmt=True).encode()),
        (b"server", b"AliyunOSS"),
        (b"x-oss-object-type", b"Normal"),
        (b"x-oss-request-id", uuid.uuid4().hex[:24].upper().encode()),
    ]
    total = len(rendered.png)
    span = _span(wanted, total)
    if span is None:
        return Answer(200, headers, rendered.png)
    first, last = span
    place = (b"content-range", b"bytes %d-%d/%d" % (first, last, total))
    return Answer(206, [*headers, place], rendered.png[first : last + 1])


def _span(wanted: str, total: int) -> tuple[int, int] | None:
    """First and last byte of a `Range` header; none when absent or not understood."""
    match = _RANGE.fullmatch(wanted)
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        first, last = max(0, total - int(match[2])), total - 1
    else:
        first, last = int(match[1]), min(int(match[2] or total), total - 1)
    if first > last:
        raise _Refused("range")
    return first, last


def _disguised(answer: Answer, kind: str) -> Answer:
    if kind == "image_not_png":
        return Answer(200, answer.headers, NOT_A_PNG)
    return Answer(200, [(b"content-type", b"text/html"), *answer.headers[1:]], answer.body)


async def _send_oversized(exchange: _Exchange, fault: Fault) -> str:
    size = OVERSIZED_BYTES if fault.size_bytes is None else fault.size_bytes
    headers = [(b"content-type", b"image/png"), (b"content-length", b"%d" % size)]
    await send_head(exchange.send, 200, headers)
    for start in range(0, size, CHUNK_BYTES):
        await send_part(exchange.send, b"\xa5" * min(CHUNK_BYTES, size - start))
    await send_part(exchange.send, b"", more=False)
    return "200"


async def _send(exchange: _Exchange, answer: Answer) -> None:
    if method(exchange.scope) == "HEAD":
        await send_head(exchange.send, answer.status, [*answer.headers, _length(answer.body)])
        await send_part(exchange.send, b"", more=False)
    else:
        await send_answer(exchange.send, answer)


def _length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % len(body)


def _location(fault: Fault) -> tuple[bytes, bytes]:
    return b"location", fault.location.encode()


def _refusal(reason: str) -> Answer:
    status, code, message = _REFUSALS[reason]
    request_id = uuid.uuid4().hex[:24].upper()
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error>\n  <Code>{code}</Code>\n  <Message>{message}</Message>\n"
        f"  <RequestId>{request_id}</RequestId>\n</Error>\n"
    )
    headers = [(b"content-type", b"application/xml"), (b"server", b"AliyunOSS")]
    return Answer(status, headers, text.encode())

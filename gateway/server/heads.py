"""What a request's head must be, beyond its grammar, and how an answer's head is written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from secrets import token_hex
from typing import Final
from urllib.parse import unquote

import httptools
import msgspec
from msgspec import Struct

from gateway.protocol.openai import ErrorDetail, ErrorResponse

Headers = Iterable[tuple[bytes, bytes]]

VERSIONS: Final = frozenset({"1.0", "1.1"})
HOST: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
SLASHES: Final = re.compile("//+")
RULED: Final = frozenset({b"host", b"transfer-encoding", b"expect"})
"""Headers that are the server's business; all others are the application's."""
SCHEMES: Final = (b"http", b"https")


class Refusal(Struct, frozen=True):
    """The connection's own and last answer, before any application."""

    status: int
    message: str
    code: str = "invalid_http"
    type: str = "invalid_request_error"
    retry_after_s: int | None = None

    def body(self) -> bytes:
        """In the form of OpenAI's errors."""
        detail = ErrorDetail(self.message, self.type, None, self.code)
        return msgspec.json.encode(ErrorResponse(detail))

    def headers(self, request_id: str, length: int) -> list[tuple[bytes, bytes]]:
        again = b"false" if self.retry_after_s is None else b"true"
        found = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % length),
            (b"x-request-id", request_id.encode()),
            (b"x-should-retry", again),
        ]
        if self.retry_after_s is not None:
            found.append((b"retry-after", b"%d" % self.retry_after_s))
        return found

    def answer(self, request_id: str, default: Headers) -> bytes:
        """`default` are the server's own headers."""
        body = self.body()
        fields = self.headers(request_id, len(body))
        return answer_head(self.status, [*default, *fields], is_last=True) + body


MALFORMED: Final = Refusal(400, "The request is not valid HTTP/1.1.")
FRAMING: Final = Refusal(400, "HTTP/1.0 has no Transfer-Encoding; send a Content-Length.")
NO_HOST: Final = Refusal(400, "The request must name one host, in one valid Host header.")
TARGET: Final = Refusal(400, "The request's target must be a path, or an http URL.")
PADDED: Final = Refusal(400, "The body has far more framing than content.")
TOO_SLOW: Final = Refusal(408, "The request's headers did not arrive in time.")
TOO_LARGE: Final = Refusal(431, "The request's headers are too large.")
NO_TUNNEL: Final = Refusal(501, "The gateway is no forward proxy: CONNECT is not served.")
CODING: Final = Refusal(501, "The only Transfer-Encoding that is served is chunked.")
VERSION: Final = Refusal(505, "The gateway speaks HTTP/1.1 and HTTP/1.0.")
TOO_MANY: Final = Refusal(
    503, "The gateway has as many connections as it can hold. Try again soon.",
    "service_unavailable", "service_unavailable_error", 1,
)  # fmt: skip
TOO_BUSY: Final = Refusal(
    503, "The gateway is reading as many requests as it can hold. Try again soon.",
    "service_unavailable", "service_unavailable_error", 1,
)  # fmt: skip
FAILED: Final = Refusal(
    500, "The gateway failed; its log says why.", "internal_error", "server_error"
)


def new_request_id() -> str:
    return f"req_{token_hex(16)}"


def fault_of(method: bytes, version: str, headers: Headers) -> Refusal | None:
    """A fault that the parser lets through (RFC 9112: 2.3, 3.2, 6.1); reads `RULED` headers."""
    if version not in VERSIONS:
        return MALFORMED if version == "0.9" else VERSION
    if method == b"CONNECT":
        return NO_TUNNEL
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        return NO_HOST
    if hosts and not HOST.fullmatch(hosts[0]):
        return NO_HOST
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and version == "1.0":
        return FRAMING
    return fault_of_codings(codings)


def fault_of_codings(codings: list[bytes]) -> Refusal | None:
    """RFC 9112, 6.1 and 6.3: without a final chunk the end of the body is unknown."""
    if codings in ([], [b"chunked"]):
        return None
    return CODING if codings[-1].endswith((b",chunked", b" chunked")) else MALFORMED


class Target(Struct, frozen=True):
    """Where a request goes, in ASGI's words."""

    path: str
    raw_path: bytes
    query: bytes


def target_of(url: bytes) -> Target | None:
    """A path or a whole URL (RFC 9112, 3.2), with repeated slashes as one; None for no URL."""
    if url == b"*":
        return Target("*", url, b"")
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        return None
    if (parsed.schema or b"http").lower() not in SCHEMES:
        return None
    raw_path = parsed.path or b"/"
    path = raw_path.decode("ascii")
    if "%" in path:
        path = unquote(path)
    if "//" in path:
        path = SLASHES.sub("/", path)
    return Target(path, raw_path, parsed.query or b"")


def head_again(method: bytes, url: bytes, version: str, headers: Headers) -> bytes:
    """A head that was read, without its offer of another protocol."""
    kept = ((name, value) for name, value in headers if name != b"upgrade")
    lines = (b"%b: %b\r\n" % field for field in kept)
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, url, version.encode(), b"".join(lines))


def answer_head(status: int, headers: Headers, *, is_last: bool) -> bytes:
    """`is_last`: the connection ends with it. Raises ValueError for a header with a line end."""
    lines = [b"%b: %b\r\n" % field for field in headers if field[0].lower() != b"connection"]
    if is_last:
        lines.append(b"connection: close\r\n")
    head = STATUS_LINES[status] + b"".join(lines)
    ends = len(lines) + 1
    if head.count(b"\r") != ends or head.count(b"\n") != ends or b"\0" in head:
        raise ValueError("a header of the answer holds a line's end")
    return head + b"\r\n"


def status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


STATUS_LINES: Final = {status: status_line(status) for status in range(100, 600)}

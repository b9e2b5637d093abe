"""From bytes to requests, without input or output: llhttp reads the grammar, strictly."""

from __future__ import annotations

from typing import Protocol

import httptools
from msgspec import Struct

from gateway.server import heads
from gateway.server.bounds import Bounds
from gateway.server.heads import Refusal, Target


class Head(Struct):
    method: str
    version: str
    target: Target
    headers: list[tuple[bytes, bytes]]
    """Names in lower case."""
    keep_alive: bool
    """Whether the client wants to send more on the connection."""
    expects_continue: bool
    """Whether it waits to be asked for the body; HTTP/1.0 knows no such answer."""


class Sink(Protocol):
    """Gets what was read, in the order of the bytes."""

    def head_begun(self) -> None: ...

    def head_read(self, head: Head) -> None: ...

    def body_read(self, body: bytes) -> None: ...

    def request_read(self) -> None:
        """The request is whole."""

    def refused(self, refusal: Refusal) -> None:
        """What came is no request; nothing more is read."""


class RequestReader:
    """Reads requests until one is none, or is the last."""

    __slots__ = (
        "_body_bytes", "_bounds", "_head_bytes", "_headers", "_is_last", "_milestones", "_offer",
        "_parser", "_ruled", "_sink", "_trailer_bytes", "_unread_bytes", "_url", "is_done",
        "is_in_body", "is_in_head",
    )  # fmt: skip

    def __init__(self, sink: Sink, bounds: Bounds) -> None:
        self._sink = sink
        self._bounds = bounds
        self._parser: httptools.HttpRequestParser | None = None
        """Only while a request is read: it takes a kilobyte, and an answer may take minutes."""
        self.is_done = False
        """Nothing that comes is read any more."""
        self.is_in_head = self.is_in_body = False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._ruled: list[tuple[bytes, bytes]] = []
        self._head_bytes = self._body_bytes = self._trailer_bytes = 0
        """What the parser has reported of this request."""
        self._unread_bytes = self._milestones = 0
        """Bytes since a head or body began; an unfinished header is not reported until its end."""
        self._offer: bytes | None = None
        """The head to read again, without its offer of another protocol."""
        self._is_last = False

    def stop(self) -> None:
        self.is_done = True
        self.is_in_head = self.is_in_body = False

    def close(self) -> None:
        """Read nothing more, and drop the parser and the connection, which hold this object."""
        self.stop()
        self._parser = None
        del self._sink

    def feed(self, data: bytes) -> None:
        """Read one packet."""
        milestones, size = self._milestones, len(data)
        while data and not self.is_done:
            self._parser = self._parser or httptools.HttpRequestParser(self)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = (self._offer or b"") + data[offer.args[0] :]
                self._offer = self._parser = None
            except httptools.HttpParserCallbackError:
                raise  # a defect of ours, not of the request
            except httptools.HttpParserError:
                self._refuse(heads.MALFORMED)
            else:
                break
        if not (self.is_in_head or self.is_in_body):
            self._parser = None
        if milestones == self._milestones:  # all of it belongs to one head, or to one body
            self._unread_bytes += size
            self._hold_bounds()

    def _hold_bounds(self) -> None:
        if self.is_in_head and self._unread_bytes > self._bounds.head_bytes:
            self._refuse(heads.TOO_LARGE)
        elif self.is_in_body:
            framing = self._unread_bytes - self._body_bytes
            if framing > self._bounds.framing_bytes + 16 * self._body_bytes:
                self._refuse(heads.PADDED)

    def _refuse(self, refusal: Refusal) -> None:
        if not self.is_done:
            self.stop()
            self._sink.refused(refusal)

    # What the parser calls.

    def on_message_begin(self) -> None:
        if not self.is_done:
            self.is_in_head = True
            self._url, self._headers, self._ruled = b"", [], []
            self._head_bytes = self._unread_bytes = 0
            self._sink.head_begun()

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_in_head:
            field = (name.lower(), value)
            self._headers.append(field)
            if field[0] in heads.RULED:
                self._ruled.append(field)
            self._count_head(len(name) + len(value))
        else:  # a trailer: none of the headers that are read may be one
            self._trailer_bytes += len(name) + len(value)
            if self._trailer_bytes > self._bounds.framing_bytes:
                self._refuse(heads.PADDED)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        is_long = self._head_bytes > self._bounds.head_bytes
        if is_long or len(self._headers) > self._bounds.headers:
            self._refuse(heads.TOO_LARGE)

    def on_headers_complete(self) -> None:
        parser = self._parser
        if self.is_done or parser is None:
            return
        method, version = parser.get_method(), parser.get_http_version()
        if parser.should_upgrade() and method != b"CONNECT":
            # RFC 9110, 7.8: an offer may be ignored. The parser would take what follows for the
            # other protocol, so another one reads the request as it would be without the offer.
            self._offer = heads.head_again(method, self._url, version, self._headers)
            return
        self._pass_milestone()
        self.is_in_head = False
        self._body_bytes = self._trailer_bytes = 0
        target = heads.target_of(self._url)
        refusal = heads.fault_of(method, version, self._ruled)
        if refusal is not None or target is None:
            self._refuse(refusal or heads.TARGET)
            return
        self.is_in_body = True
        headers, self._headers = self._headers, []
        self._is_last = version != "1.1" or not parser.should_keep_alive()
        expects = version == "1.1" and any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in self._ruled
        )
        self._sink.head_read(
            Head(method.decode(), version, target, headers, not self._is_last, expects)
        )

    def on_body(self, body: bytes) -> None:
        if self.is_in_body:
            self._body_bytes += len(body)
            self._sink.body_read(body)

    def on_message_complete(self) -> None:
        if self.is_in_body:
            self._pass_milestone()
            self.is_in_body = False
            self.is_done = self._is_last
            self._sink.request_read()

    def _pass_milestone(self) -> None:
        self._milestones += 1
        self._unread_bytes = 0

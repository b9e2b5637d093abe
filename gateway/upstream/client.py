"""One DashScope call over HTTP, without httpx's client (0003), and what its outcome means."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Callable
from email.utils import parsedate_to_datetime
from time import time

import aiohttp
import httpx
import msgspec

from gateway.config import Account, Upstream
from gateway.domain import errors, foreign
from gateway.domain.errors import GatewayError
from gateway.domain.pictures import NO_INPUTS, Inputs
from gateway.protocol.dashscope import GenerationReply, GenerationRequest
from gateway.translate.failure import UNREACHABLE, Answer, Remedy, UpstreamFailure, to_failure
from gateway.translate.response import image_urls, with_texts_cut
from gateway.upstream import call_body
from gateway.upstream.transport import SENT, RoutedTransport, Transport, WhetherSent

PATH = "/services/aigc/multimodal-generation/generation"
MAX_REPLY_BYTES = 1024 * 1024
MAX_RETRY_AFTER_S = 3600.0
OK = 200
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PROXY_S_HEADERS = ("proxy-authenticate", "proxy-status", "x-squid-error")
UPSTREAM_LIMIT_S = 298.0
"""How long the upstream itself works at a synchronous call; its `x-dashscope-timeout` says so."""

NEVER_SENT = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
)
"""What aiohttp raises before a connection is established."""

OWN = (Transport, RoutedTransport)
"""Those that report when a call is sent."""


class Prepared:
    """What all calls of an account have in common."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.url = httpx.URL(account.base_url.rstrip("/") + PATH)
        self.headers = httpx.Headers(
            {
                "authorization": f"Bearer {account.api_key.reveal()}",
                "content-type": "application/json",
                "accept": "application/json",
                "accept-encoding": "identity",
                "user-agent": "dashscope-image-gateway",
            }
        )


class Streamed(httpx.AsyncByteStream):
    """A body with pictures, which are read while it is sent."""

    def __init__(self, pieces: list[call_body.Piece]) -> None:
        self._pieces = pieces
        self.length = call_body.length(pieces)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return call_body.stream(self._pieces)


class DashScope:
    def __init__(self, upstream: Upstream, transport: httpx.AsyncBaseTransport) -> None:
        self._connect_timeout_s = upstream.connect_timeout_s
        self._timeout = {"connect": self._connect_timeout_s, "read": None, "pool": None}
        self._prepared: dict[str, Prepared] = {}
        self._transport = transport
        self._connecting: dict[str, asyncio.Task[None]] = {}
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(GenerationReply)

    def connect_soon(self, account: Account) -> None:
        """Have a connection ready for the account's next call, so that it leaves on time."""
        if isinstance(self._transport, OWN) and account.name not in self._connecting:
            task = asyncio.create_task(self._connect(self._transport, account.base_url))
            self._connecting[account.name] = task
            task.add_done_callback(lambda _: self._connecting.pop(account.name, None))

    async def _connect(self, transport: Transport | RoutedTransport, url: str) -> None:
        # Where it cannot be opened, the call itself will meet and tell that.
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            await transport.connect(url, self._connect_timeout_s)

    async def generate(
        self,
        account: Account,
        call: GenerationRequest,
        timeout_s: float,
        sent: Callable[[], None] = lambda: None,
        inputs: Inputs = NO_INPUTS,
    ) -> GenerationReply:
        """Send one call and read its answer, within `timeout_s` seconds.

        `inputs` has its pictures; `sent` is called in the moment the call is written. Raises
        UpstreamFailure, which says whether the call may be sent again.
        """
        wire = WhetherSent(sent)
        request = self._request(account, call, wire, inputs)
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._transport.handle_async_request(request)
                body = await read(response)
        except TimeoutError:
            if self._is_unsent(wire):
                raise unreachable() from None
            # A request may have a deadline of its own; that it passed says nothing of the account.
            raise lost(
                errors.UpstreamTimeout,
                "did not finish in time",
                is_outage=timeout_s >= UPSTREAM_LIMIT_S,
            ) from None
        except (httpx.HTTPError, aiohttp.ClientError, OSError, ValueError) as fault:
            raise (unreachable() if self._is_unsent(wire) else broken(fault)) from fault
        return self._judge(response, body)

    def _is_unsent(self, wire: WhetherSent) -> bool:
        """Whether nothing of a call can have left: a tunnel was refused, or never finished."""
        return isinstance(self._transport, OWN) and not wire.is_sent

    def _request(
        self,
        account: Account,
        call: GenerationRequest,
        sent: Callable[[], None],
        inputs: Inputs,
    ) -> httpx.Request:
        prepared = self._prepared.get(account.name)
        if prepared is None or prepared.account is not account:  # the file may have changed
            prepared = self._prepared[account.name] = Prepared(account)
        body = self._encoder.encode(call)
        streamed = Streamed(call_body.pieces(body, inputs.stored)) if inputs.stored else None
        request = httpx.Request(
            "POST",
            prepared.url,
            headers=prepared.headers,
            stream=streamed or httpx.ByteStream(body),
            extensions={"timeout": self._timeout, SENT: sent},
        )
        if streamed is None:
            request.read()
        else:
            request.headers["content-length"] = str(streamed.length)
        return request

    def _judge(self, response: httpx.Response, body: bytes | None) -> GenerationReply:
        reply = self._decode(body)
        # Images count even beside a code: they were generated, and are billed.
        is_answer = response.status_code == OK and reply is not None and reply.output is not None
        if is_answer and reply and (not reply.code or image_urls(reply)):
            return reply
        raise to_failure(
            Answer(
                status=response.status_code,
                reply=reply,
                page=page_of(body) if reply is None else "",
                is_proxy_s=any(name in response.headers for name in PROXY_S_HEADERS),
                retry_after_s=retry_after(response.headers),
            )
        )

    def _decode(self, body: bytes | None) -> GenerationReply | None:
        if body is None:
            return None
        try:
            return with_texts_cut(self._decoder.decode(body.removeprefix(BYTE_ORDER_MARK)))
        except (msgspec.DecodeError, RecursionError):
            return None

    async def aclose(self) -> None:
        for task in self._connecting.values():
            task.cancel()
        await self._transport.aclose()


async def read(response: httpx.Response) -> bytes | None:
    """The whole body, or None if it is longer than any real answer, or cannot be unpacked."""
    chunks, size = [], 0
    try:
        async for chunk in response.aiter_raw():
            size += len(chunk)
            if size > MAX_REPLY_BYTES:
                return None
            chunks.append(chunk)
    finally:
        await response.aclose()
    return unpacked(b"".join(chunks), response.headers.get("content-encoding", ""))


def unpacked(body: bytes, coding: str) -> bytes | None:
    """None for an unknown coding, damage or too much; an edge may use one unasked."""
    match coding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip" | "deflate":
            packed = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
            try:
                found = packed.decompress(body, MAX_REPLY_BYTES)
            except zlib.error:
                return None
            return found if packed.eof else None
        case _:
            return None


def page_of(body: bytes | None) -> str:
    """The beginning of a body that is not the upstream's."""
    return (body or b"")[: foreign.PAGE].decode(errors="replace")


def broken(fault: Exception) -> UpstreamFailure:
    """A call without an answer: never sent, or lost on the way."""
    if isinstance(fault, NEVER_SENT):
        return unreachable()
    return lost(errors.UpstreamAmbiguous, "closed the connection")


def unreachable() -> UpstreamFailure:
    error = errors.UpstreamUnreachable(UNREACHABLE)
    return UpstreamFailure(error, Remedy.RESEND, label="unreachable")


def lost(error: type[GatewayError], what: str, *, is_outage: bool = True) -> UpstreamFailure:
    """A call that was, or may have been, sent, and whose outcome will never be known."""
    message = f"The image service {what}; the image may have been generated."
    return UpstreamFailure(error(message), Remedy.UNKNOWN, label="lost", is_outage=is_outage)


def retry_after(headers: httpx.Headers) -> float | None:
    """The vendor's Retry-After in seconds, at most an hour; it documents none, but may send one."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S) if seconds == seconds else None  # noqa: PLR0124 - NaN

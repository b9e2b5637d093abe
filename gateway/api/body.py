"""Reading an untrusted JSON body, within bounds of bytes and time."""

from __future__ import annotations

import asyncio
import json
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import AsyncIterator, Container, Iterable, Mapping
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import msgspec
from litestar.types import Receive, ReceiveMessage, Scope

from gateway.api.connection import has_whole_body
from gateway.api.field_faults import to_invalid
from gateway.config import Reading
from gateway.domain.errors import (
    BodyTimeout,
    BodyTooLarge,
    InvalidRequest,
    RateLimited,
    ServiceUnavailable,
    UnknownParameter,
    UnsupportedMediaType,
)
from gateway.protocol.openai import ImageRequest
from gateway.translate.fields import known

R = TypeVar("R", bound=ImageRequest)
LONGEST_PROMPT = 32_000
"""Characters."""
SHOWN = 64
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
NO_CODING = frozenset({b"", b"identity"})
RETRY_AFTER_S = 1.0


async def read_body(scope: Scope, receive: Receive, limit: int, reading: BodyReading) -> bytes:
    """The whole body, at most `limit` bytes, within the time for it.

    Raises UnsupportedMediaType, BodyTooLarge and BodyTimeout, or RateLimited and ServiceUnavailable
    while too much is being read.
    """
    require_json(scope)
    refuse_large(scope, limit)
    if has_whole_body(scope):
        return await collect(receive, limit, reading)
    try:
        async with asyncio.timeout(reading.timeout_s):
            return await collect(receive, limit, reading)
    except TimeoutError:
        message = f"The request body did not arrive within {reading.timeout_s:g} seconds."
        raise BodyTimeout(message) from None


def refuse_large(scope: Scope, limit: int) -> None:
    """Check the declared length, before any of it is read."""
    for name, declared in scope["headers"]:
        if name == b"content-length" and declared.isdigit() and int(declared) > limit:
            raise BodyTooLarge(f"The request body is larger than {limit} bytes.")


def require_json(scope: Scope) -> None:
    """An undeclared body is read as JSON."""
    declared = dict(scope["headers"]).get(b"content-type", b"application/json")
    media = declared.partition(b";")[0].strip().lower()
    if media != b"application/json" and not media.endswith(b"+json"):
        raise UnsupportedMediaType("Send the body as JSON, with Content-Type: application/json.")
    if not NO_CODING.issuperset(codings(scope)):
        raise UnsupportedMediaType("Send the body without Content-Encoding.")


def codings(scope: Scope) -> list[bytes]:
    """In lower case, from all Content-Encoding lines (RFC 9110, section 8.4.1)."""
    lines = (value for name, value in scope["headers"] if name == b"content-encoding")
    return [each.strip().lower() for line in lines for each in line.split(b",")]


async def collect(receive: Receive, limit: int, reading: BodyReading) -> bytes:
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        part, more = part_in(await receive(), size, limit, reading)
        size += len(part)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def parts_of(receive: Receive, limit: int, reading: BodyReading) -> AsyncIterator[bytes]:
    """The body as it comes, at most `limit` bytes."""
    size = 0
    more = True
    while more:
        part, more = part_in(await receive(), size, limit, reading)
        size += len(part)
        yield part


def part_in(
    message: ReceiveMessage, size: int, limit: int, reading: BodyReading
) -> tuple[bytes, bool]:
    """A part of a body, behind `size` bytes of it, and whether more comes."""
    if message["type"] != "http.request":
        raise BodyTimeout("The connection was closed before the body had arrived.")
    part, more = message["body"], message.get("more_body", False)
    if size + len(part) > limit:
        raise BodyTooLarge(f"The request body is larger than {limit} bytes.")
    reading.add(len(part), more=more)
    return part, more


class ReadBudget:
    """Counts the bodies of a worker that are read, or wait to be parsed."""

    def __init__(self, limits: Reading) -> None:
        self._limits = limits
        self._bytes: Counter[str] = Counter()
        self._unfinished: Counter[str] = Counter()
        self._all_bytes = 0
        self.timeout_s = limits.body_timeout_s

    def begin(self, tenant: str) -> BodyReading:
        """A context in which a body of the tenant is read; given back at its end."""
        return BodyReading(self, tenant)

    def wait(self, tenant: str) -> None:
        """Count an incomplete body. Raises RateLimited if the tenant has too many."""
        if self._unfinished[tenant] >= self._limits.tenant_requests:
            message = (
                f"{self._limits.tenant_requests} requests of yours have not sent their whole body. "
                "Finish those before you send more."
            )
            raise RateLimited(message, retry_after_s=RETRY_AFTER_S)
        self._unfinished[tenant] += 1

    def add(self, tenant: str, size: int) -> None:
        """Count more bytes. Raises RateLimited for the tenant, ServiceUnavailable for all."""
        if self._bytes[tenant] + size > self._limits.tenant_bytes:
            message = (
                f"Your requests hold {self._limits.tenant_bytes} bytes here until they are done. "
                "Send fewer at a time."
            )
            raise RateLimited(message, retry_after_s=RETRY_AFTER_S)
        if self._all_bytes + size > self._limits.worker_bytes:
            message = "The gateway is reading as many requests as it can hold. Try again soon."
            raise ServiceUnavailable(message, retry_after_s=RETRY_AFTER_S)
        self._bytes[tenant] += size
        self._all_bytes += size

    def give_back(self, tenant: str, size: int, *, is_unfinished: bool) -> None:
        """A body has been parsed, or is given up."""
        self._all_bytes -= size
        for counted, amount in ((self._bytes, size), (self._unfinished, int(is_unfinished))):
            counted[tenant] -= amount
            if not counted[tenant]:
                del counted[tenant]


class BodyReading:
    __slots__ = ("_budget", "_is_unfinished", "_size", "_tenant")

    def __init__(self, budget: ReadBudget, tenant: str) -> None:
        self._budget = budget
        self._tenant = tenant
        self._size = 0
        self._is_unfinished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def timeout_s(self) -> float:
        """For the whole body."""
        return self._budget.timeout_s

    def add(self, size: int, *, more: bool) -> None:
        """`more`: this part is not the last. Raises RateLimited or ServiceUnavailable."""
        self._budget.add(self._tenant, size)
        self._size += size
        if more and not self._is_unfinished:
            self._budget.wait(self._tenant)
            self._is_unfinished = True

    def finished(self) -> None:
        """It is read, and what it holds is kept."""
        self._give_back(0)

    def close(self) -> None:
        """Give back all of it, once."""
        size, self._size = self._size, 0
        self._give_back(size)

    def _give_back(self, size: int) -> None:
        is_unfinished, self._is_unfinished = self._is_unfinished, False
        self._budget.give_back(self._tenant, size, is_unfinished=is_unfinished)


def refuse_constant(name: str) -> NoReturn:
    """NaN and the infinities, which Python reads and JSON does not have."""
    raise InvalidRequest(
        f"The body is not valid JSON: {name} is not a JSON value.", code="invalid_json"
    )


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """No repeated keys: two readers could take different values of one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidRequest(f"'{shown(twice)}' stands twice in the body.", param=shown(twice))
    return found


PARSER = json.JSONDecoder(object_pairs_hook=unique, parse_constant=refuse_constant)


def parse_json(body: bytes) -> dict[str, Any]:
    """One JSON object, stricter than Python's reader. Raises InvalidRequest."""
    if not body:
        raise InvalidRequest("The request has no body; send a JSON object.", code="invalid_json")
    try:
        # RFC 8259, 8.1: a reader may ignore a byte order mark, which some programs put first.
        text = body.removeprefix(BOM_UTF8).decode()
        value = PARSER.decode(text)
    except UnicodeDecodeError as fault:
        message = f"The body is not UTF-8 text: byte {fault.start}."
        raise InvalidRequest(message, code="invalid_json") from None
    except json.JSONDecodeError as fault:
        message = f"The body is not valid JSON: {fault.msg} at character {fault.pos}."
        raise InvalidRequest(message, code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None
    except ValueError:
        message = "The body holds a number that is too long."
        raise InvalidRequest(message, code="invalid_json") from None
    if SURROGATE.search(body):
        refuse_halves(value)
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    return value


def refuse_halves(value: object) -> None:
    """Half a surrogate pair cannot be written. Raises InvalidRequest with the key if readable."""
    fields = value.items() if isinstance(value, dict) else [(None, value)]
    for name, field in fields:
        if not is_encodable(json.dumps([name, field], ensure_ascii=False)):
            param = None if name is None else shown(name)
            message = "The body holds half of a surrogate pair, which is not text."
            raise InvalidRequest(message, param=param)


def to_request(body: dict[str, Any], kind: type[R], *, strict: bool = True) -> R:
    """Check the form of an image request; a null is the same as an absent key.

    Unless `strict`, text that spells a number or boolean is read as one. Raises InvalidRequest.
    """
    fields = given(body)
    refuse_unknown(fields, known(kind))
    try:
        request = msgspec.convert(fields, kind, strict=strict)
    except msgspec.ValidationError as fault:
        raise to_invalid(fault, kind) from None
    refuse_long("prompt", request.prompt)
    refuse_long("negative_prompt", request.negative_prompt)
    return request


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without nulls. JSON has numbers only: 1.0 is 1."""
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in fields.items()
        if value is not None
    }


def refuse_unknown(fields: Iterable[str], known: Container[str]) -> None:
    """Raises UnknownParameter with the first unknown field."""
    for name in fields:
        if name not in known:
            message = f"Unknown parameter: '{shown(name)}'. Leave it out."
            raise UnknownParameter(message, param=shown(name))


def refuse_long(name: str, text: str | None) -> None:
    """OpenAI's own limit, and OpenAI's words. Raises InvalidRequest."""
    if text is not None and len(text) > LONGEST_PROMPT:
        message = (
            f"Invalid '{name}': string too long. Expected a string with maximum length "
            f"{LONGEST_PROMPT}, but got a string with length {len(text)} instead."
        )
        raise InvalidRequest(message, param=name, code="string_above_max_length")


def is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(name: str) -> str:
    """A caller's own text as it may be echoed: short, and without half characters."""
    return name[:SHOWN].encode(errors="replace").decode()

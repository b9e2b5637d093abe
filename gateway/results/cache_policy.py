"""What may be kept of a result, under which key and for how long. Pure: no store, no clock.

A result lives as long as its signed URLs, which open the images to anybody who has them::

    OSS V1, AWS V2    Expires=1763886400                                       Unix seconds
    OSS V4            x-oss-date=20261128T120000Z & x-oss-expires=3600         since that date
    AWS V4, its kin   X-Amz-Date=20261128T120000Z & X-Amz-Expires=3600
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Struct

from gateway.domain.catalogue import Size
from gateway.domain.errors import InvalidRequest
from gateway.store.generations import MARGIN_MS, Idempotency
from gateway.translate.request import Plan

VERSION = 1
MARGIN_S = MARGIN_MS / 1000
ITEM = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*+(?:"|\\?\Z))++', re.DOTALL)
"""What stands between two commas; one inside quotes, closed or not, separates nothing."""
DIRECTIVE = re.compile(r'([\w-]++)\s*+(?:=\s*+("[^"\\]*+"|[^\s"]*+)\s*+)?')
LONGEST_HEADER = 1024
"""Characters of a Cache-Control header; no client has use for more."""

Mode = Literal["off", "seeded", "always"]


# --- keys ---------------------------------------------------------------------------------


def fingerprint(plan: Plan) -> str:
    """A hash of the exact upstream calls; `response_format` and `user` are not part of them."""
    return digest(VERSION, plan.images, plan.calls)


def is_cacheable(mode: Mode, plan: Plan) -> bool:
    """Pictures given by address make it False: another picture may stand there tomorrow."""
    if any(reference not in plan.inputs.stored for reference in plan.inputs.references):
        return False
    if mode == "seeded":  # without a seed, people expect a new picture
        return plan.calls[0].parameters.seed is not None
    return mode == "always"


def scope_of(tenant: str, group: str | None = None) -> str:
    return f"tenant:{tenant}" if group is None else f"group:{group}"


def retry_hash(tenant: str, key_hash: str, body: bytes) -> str:
    """Where an SDK's retry looks: it repeats the body with the same key. `body`: canonical."""
    return digest("retry", tenant, key_hash, body)


def idempotency(tenant: str, key: str, body: dict[str, Any]) -> Idempotency:
    """A client's idempotency key; the order of the body's own keys makes no difference."""
    canonical = msgspec.json.encode(body, order="deterministic")
    return Idempotency(digest("idempotency", tenant, key), digest("body", canonical))


def digest(*parts: object) -> str:
    """SHA-256 in hex over values of any types."""
    return hashlib.sha256(msgspec.msgpack.encode(parts)).hexdigest()


# --- Cache-Control ------------------------------------------------------------------------


class CacheControl(Struct, frozen=True):
    """What a client asks of the cache (RFC 9111, section 5.2.1)."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age_s: int | None = None

    @property
    def forces(self) -> str:
        """The directive that forbids a kept result; empty for none."""
        if self.no_cache or self.no_store:
            return "no-cache" if self.no_cache else "no-store"
        return "" if self.max_age_s is None else "max-age"

    @classmethod
    def parse(cls, header: str | None) -> Self:
        """Ignore what is unknown or unreadable.

        Raises InvalidRequest if it is too long: ignoring it could pay for what it forbids.
        """
        if header and len(header) > LONGEST_HEADER:
            message = f"Cache-Control has more than {LONGEST_HEADER:,} characters; send fewer."
            raise InvalidRequest(message, code="invalid_cache_control")
        found = list(directives(header or ""))
        names = {name for name, _ in found}
        ages = [int(text[:10]) for name, text in found if name == "max-age" and is_number(text)]
        return cls(
            no_cache="no-cache" in names,
            no_store="no-store" in names,
            only_if_cached="only-if-cached" in names,
            max_age_s=min(ages, default=None),
        )


def directives(header: str) -> Iterator[tuple[str, str]]:
    """Names, in lower case, and values; quoted text is no directive."""
    for item in ITEM.findall(header):
        if found := DIRECTIVE.fullmatch(item.strip()):
            yield found[1].lower(), (found[2] or "").strip('"')


# --- records ------------------------------------------------------------------------------


class Record(Struct, frozen=True, kw_only=True):
    urls: tuple[str, ...]
    """In the order of the request's images."""
    created: int
    expires_at: int
    """When the first URL dies, in Unix seconds, as `created`."""
    model: str
    size: str | None = None
    """As sent to the vendor, `WxH`."""
    v: int = VERSION

    def life_s(self, now: float) -> float:
        """Negative once the first URL is dead."""
        return self.expires_at - now


def record_of(plan: Plan, urls: Sequence[str], now: float) -> Record:
    """Raises ValueError where an image is missing: only complete results are kept."""
    if len(urls) != plan.images:
        raise ValueError(f"{len(urls)} of {plan.images} images")
    return Record(
        urls=tuple(urls),
        created=int(now),
        expires_at=int(expires_at(urls, now)),
        model=plan.model,
        size=None if plan.size is None else str(plan.size),
    )


def encode(record: Record) -> bytes:
    return msgspec.msgpack.encode(record)


DECODER = msgspec.msgpack.Decoder(Record)


def decode(kept: bytes, images: int) -> Record | None:
    """None for anything else: corrupt, foreign, of another version."""
    try:
        record = DECODER.decode(kept)
        if record.size is not None:
            Size.parse(record.size)
    except (msgspec.MsgspecError, ValueError):
        return None
    is_whole = record.v == VERSION and len(record.urls) == images and all(record.urls)
    return record if is_whole else None


# --- the life of URLs ---------------------------------------------------------------------


URL_LIFE_S = 86_400
"""Documented by the vendor, for a URL that does not say."""
LONGEST_URL_LIFE_S = 7 * 86_400
"""The longest seen; a URL that claims more is not believed."""
V4_PART = re.compile(r"x-([a-z]{1,16})-(date|expires)")


def expires_at(urls: Iterable[str], created: float) -> float:
    """When the first URL dies, in Unix seconds: as they say, or as the vendor documents."""
    return min(expiry(url, created) for url in urls)


def expiry(url: str, created: float) -> float:
    """When a signed URL dies; the least of several times, the documented life for none."""
    try:
        query = parse_qsl(urlsplit(url).query)
    except ValueError:
        query = []
    told = [*first_version(query), *fourth_version(query)]
    believed = [time for time in told if time <= created + LONGEST_URL_LIFE_S]
    return min(believed, default=created + URL_LIFE_S)


def first_version(query: list[tuple[str, str]]) -> Iterator[int]:
    """The times of `Expires`."""
    for name, text in query:
        if name == "Expires" and is_number(text):
            yield int(text[:12])


def fourth_version(query: list[tuple[str, str]]) -> Iterator[float]:
    """The sums of a vendor's date and life."""
    signed: dict[str, float] = {}
    lives: list[tuple[str, int]] = []
    for name, text in query:
        part = V4_PART.fullmatch(name.lower())
        if part is None:
            continue
        if part[2] == "expires" and is_number(text):
            lives.append((part[1], int(text[:12])))
        elif part[2] == "date" and (date := read_date(text)) is not None:
            signed[part[1]] = min(date, signed.get(part[1], date))
    for vendor, life_s in lives:
        if vendor in signed:
            yield signed[vendor] + life_s


def read_date(text: str) -> float | None:
    """Unix seconds of `20261128T120000Z`; None for anything else."""
    try:
        return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def is_number(text: str) -> bool:
    """Whether a text is a whole number as HTTP and URLs write it."""
    return text.isascii() and text.isdigit()

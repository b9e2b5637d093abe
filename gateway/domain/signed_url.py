"""How long a signed URL lives; until then it opens the object to anybody who has it.

OSS V1, AWS V2    Expires=1763886400                                       Unix seconds
OSS V4            x-oss-date=20261128T120000Z & x-oss-expires=3600         since that date
AWS V4, its kin   X-Amz-Date=20261128T120000Z & X-Amz-Expires=3600
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlsplit

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

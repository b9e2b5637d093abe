"""Who is calling, and which models they may use."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib
from collections.abc import Iterable, Iterator
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from gateway.config import Key, Tenant
from gateway.domain.catalogue import Catalogue, Choice
from gateway.domain.errors import InvalidKey, ModelForbidden, ModelNotFound
from gateway.protocol.openai import Quality

PREFIX = "sk-gw-"
ALPHABET = string.ascii_letters + string.digits
PUBLIC_ID_LENGTH = 10
SECRET_LENGTH = 32
"""log2(62) × 32 = 190 bits."""
CHECKSUM_LENGTH = 6
LONGEST_KEY = 512
SHOWN_NAME = 100
MODEL_NAME = re.compile(r"[A-Za-z0-9._:/-]{1,200}")
"""It goes into headers, logs and the vendor's request."""


class Caller(Struct, frozen=True):
    """Who asks: a tenant, by one of its keys."""

    tenant: Tenant
    key: Key


def new_key() -> str:
    """A key `sk-gw-<public id>-<secret><checksum>` from the system's random source."""
    public_id = random_text(PUBLIC_ID_LENGTH)
    body = f"{PREFIX}{public_id}-{random_text(SECRET_LENGTH)}"
    return body + checksum(body)


def random_text(length: int) -> str:
    """Letters and digits, 5.95 bits each."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def checksum(body: str) -> str:
    """CRC-32 in base 62: it finds a mistyped key, and tells scanners a real one."""
    number, text = zlib.crc32(body.encode()), ""
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        text += ALPHABET[digit]
    return text


def is_mistyped(key: str) -> bool:
    """Whether a key has this gateway's form but not the checksum of its own text."""
    return key.startswith(PREFIX) and checksum(key[:-CHECKSUM_LENGTH]) != key[-CHECKSUM_LENGTH:]


def hash_key(key: str) -> str:
    """The form in a configuration file: `sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """All keys by their hash.

    Comparing hashes, never keys, tells nothing by its timing. An unknown, an expired and a removed
    key take the same path.
    """

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        self._callers = {key.hash: Caller(tenant, key) for tenant in tenants for key in tenant.keys}

    def find(self, presented: str, now: datetime) -> Caller:
        """Raises InvalidKey if there is none, or the key has expired."""
        caller = self._callers.get(hash_key(presented[:LONGEST_KEY]))
        if caller is None:
            if is_mistyped(presented[:LONGEST_KEY]):
                raise InvalidKey("Incorrect API key provided: it looks mistyped or cut off.")
            raise InvalidKey("Incorrect API key provided.")
        if caller.key.expires_at is not None and caller.key.expires_at <= now:
            raise InvalidKey("The API key provided has expired.")
        return caller


def choose_model(
    catalogue: Catalogue,
    tenant: Tenant,
    name: str | None,
    fallback: str,
    quality: Quality | None = None,
    *,
    is_edit: bool = False,
) -> Choice:
    """Raises ModelNotFound, or ModelForbidden if the tenant's `models` do not cover it."""
    wanted = name or tenant.default_model or fallback
    is_name = MODEL_NAME.fullmatch(wanted)
    choice = catalogue.find(wanted, quality, is_edit=is_edit) if is_name else None
    shown = wanted[:SHOWN_NAME].encode(errors="replace").decode()
    if choice is None:
        raise ModelNotFound(f"The model '{shown}' does not exist.", param="model")
    if not choice.is_covered(tenant.models):
        raise ModelForbidden(f"This key may not use the model '{shown}'.", param="model")
    if choice.response_format is None and tenant.response_format is not None:
        return replace(choice, response_format=tenant.response_format)
    return choice


def usable(catalogue: Catalogue, tenant: Tenant) -> Iterator[Choice]:
    """Every model and alias that a tenant may use, in the catalogue's order."""
    for name in (*catalogue.models, *catalogue.aliases):
        choice = catalogue.find(name)
        if choice is not None and choice.is_covered(tenant.models):
            yield choice

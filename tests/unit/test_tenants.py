"""Keys, who they belong to, and which models they open."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.config import Key, Tenant
from gateway.domain.errors import InvalidKey, ModelForbidden, ModelNotFound
from gateway.tenants.keys import (
    ALPHABET,
    KeyRing,
    checksum,
    choose_model,
    hash_key,
    is_mistyped,
    new_key,
    usable,
)
from tests.running import shipped_catalogue

NOW = datetime(2026, 11, 22, tzinfo=UTC)
FORM = re.compile(r"sk-gw-([A-Za-z0-9]+)-([A-Za-z0-9]+)")
CATALOGUE = shipped_catalogue()
DEFAULT = "qwen-image-2.0-pro"


def tenant(
    name: str, *keys: Key, models: tuple[str, ...] = ("*",), default: str | None = None
) -> Tenant:
    return Tenant(name=name, keys=keys, models=models, default_model=default)


def test_a_key_has_enough_secret() -> None:
    """At least 160 bits of it, the checksum not counted."""
    found = FORM.fullmatch(new_key())

    assert found
    assert (len(found[2]) - 6) * math.log2(len(ALPHABET)) >= 160


def test_no_two_keys_are_alike() -> None:
    keys = [new_key() for _ in range(1000)]

    assert len({key.split("-")[2] for key in keys}) == 1000
    assert len({key.split("-")[3] for key in keys}) == 1000


def test_a_key_ends_in_the_checksum_of_its_text() -> None:
    """The CRC-32 in base 62, lowest digit first: secret scanners can tell a real key."""
    key = new_key()

    assert key[-6:] == checksum(key[:-6])
    assert checksum("") == "aaaaaa"
    assert not is_mistyped(key)


@pytest.mark.parametrize("place", [6, 10, 17, 25, 40, -6, -1])
def test_a_mistyped_key_is_noticed(place: int) -> None:
    key = new_key()
    place %= len(key)
    other = "a" if key[place] != "a" else "b"

    assert is_mistyped(key[:place] + other + key[place + 1 :])
    assert is_mistyped(key[:-1])
    assert not is_mistyped("sk-of-somebody-else")


def test_a_hash_is_sha_256_of_the_whole_key() -> None:
    key = new_key()

    assert hash_key(key) == f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def test_each_key_of_a_tenant_opens() -> None:
    keys = [new_key(), new_key()]
    ring = KeyRing([tenant("acme", *(Key(hash=hash_key(k), label=k[-3:]) for k in keys))])

    for key in keys:
        caller = ring.find(key, NOW)
        assert caller.tenant.name == "acme"
        assert caller.key.label == key[-3:]


def test_a_key_leads_to_its_own_tenant() -> None:
    ours, theirs = new_key(), new_key()
    ring = KeyRing([
        tenant("ours", Key(hash=hash_key(ours))), tenant("theirs", Key(hash=hash_key(theirs)))
    ])  # fmt: skip

    assert ring.find(ours, NOW).tenant.name == "ours"
    assert ring.find(theirs, NOW).tenant.name == "theirs"


def test_a_removed_key_opens_nothing() -> None:
    """Its entry is gone, and with it the right: there is no other list."""
    key = new_key()
    with pytest.raises(InvalidKey):
        KeyRing([tenant("acme")]).find(key, NOW)


@pytest.mark.parametrize(("after_s", "opens"), [(1, True), (0, False), (-1, False)])
def test_a_key_expires_at_its_moment(after_s: int, opens: bool) -> None:
    key = new_key()
    expires_at = NOW + timedelta(seconds=after_s)
    ring = KeyRing([tenant("acme", Key(hash=hash_key(key), expires_at=expires_at))])

    if opens:
        assert ring.find(key, NOW).tenant.name == "acme"
    else:
        with pytest.raises(InvalidKey, match="expired"):
            ring.find(key, NOW)


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        str.lower,
        lambda key: key[:-1],
        lambda key: key + "a",
        lambda key: " " + key,
        lambda key: key.replace("sk-gw-", ""),
    ],
)
def test_nothing_but_the_key_itself_opens(change: Callable[[str], str]) -> None:
    key = new_key()
    ring = KeyRing([tenant("acme", Key(hash=hash_key(key)))])

    with pytest.raises(InvalidKey):
        ring.find(change(key), NOW)


def test_the_hash_is_no_key() -> None:
    """Who reads the configuration cannot call."""
    key = new_key()
    ring = KeyRing([tenant("acme", Key(hash=hash_key(key)))])
    for presented in (hash_key(key), hash_key(key).removeprefix("sha256:")):
        with pytest.raises(InvalidKey):
            ring.find(presented, NOW)


def test_a_refusal_does_not_repeat_the_key() -> None:
    key = new_key()
    for presented in (key, key[:-1], "sk-secret", "x" * 100_000):
        with pytest.raises(InvalidKey) as caught:
            KeyRing([]).find(presented, NOW)
        assert presented not in caught.value.message
        assert len(caught.value.message) < 200


def test_a_mistyped_key_is_said_to_be_one() -> None:
    with pytest.raises(InvalidKey, match="mistyped"):
        KeyRing([]).find(new_key()[:-2], NOW)
    with pytest.raises(InvalidKey, match=r"Incorrect API key provided\.$"):
        KeyRing([]).find(new_key(), NOW)


@pytest.mark.parametrize(
    ("asked", "default", "leads_to"),
    [
        (None, None, DEFAULT),
        (None, "qwen-image-plus", "qwen-image-plus"),
        (None, "dall-e-3", DEFAULT),
        ("", "qwen-image-plus", "qwen-image-plus"),
        ("qwen-image", "qwen-image-plus", "qwen-image"),
        ("gpt-image-1", None, DEFAULT),
        ("qwen-image-2.0-2026-03-03", None, "qwen-image-2.0-2026-03-03"),
    ],
)
def test_the_model_of_a_request(asked: str | None, default: str | None, leads_to: str) -> None:
    choice = choose_model(CATALOGUE, tenant("acme", default=default), asked, DEFAULT)

    assert choice.upstream_name == leads_to


@pytest.mark.parametrize(
    "name", ["gpt-4o", "qwen-image-9", "*", "qwen-image-2.0-pro-", "x" * 10_000]
)
def test_an_unknown_model_is_not_found(name: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        choose_model(CATALOGUE, tenant("acme"), name, DEFAULT)

    assert caught.value.param == "model"
    assert name[:100] in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("globs", "name", "allowed"),
    [
        (("qwen-image-plus",), "qwen-image-plus", True),
        (("qwen-image-plus",), "qwen-image-max", False),
        (("qwen-image-plus",), "qwen-image-plus-2026-01-09", False),
        (("qwen-image-plus*",), "qwen-image-plus-2026-01-09", True),
        (("dall-e-*",), "dall-e-3", True),
        (("dall-e-*",), "qwen-image-2.0-pro", False),
        (("qwen-image-2.0-pro",), "gpt-image-1", True),
        ((), "qwen-image-plus", False),
    ],
)
def test_a_tenant_s_globs_cover_names_and_what_they_lead_to(
    globs: tuple[str, ...], name: str, allowed: bool
) -> None:
    """An alias alone opens its model under that name; a model opens all its aliases."""
    if allowed:
        choose_model(CATALOGUE, tenant("acme", models=globs), name, DEFAULT)
    else:
        with pytest.raises(ModelForbidden) as caught:
            choose_model(CATALOGUE, tenant("acme", models=globs), name, DEFAULT)
        assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("name", "of_tenant", "given"),
    [("qwen-image", None, None), ("qwen-image", "b64_json", "b64_json"),
     ("gpt-image-1", "url", "b64_json"), ("dall-e-3", "b64_json", "url")],
)  # fmt: skip
def test_a_tenant_s_format_holds_where_no_alias_says(
    name: str, of_tenant: Any, given: str | None
) -> None:
    caller = replace(tenant("acme"), response_format=of_tenant)

    assert choose_model(CATALOGUE, caller, name, DEFAULT).response_format == given


def test_the_default_is_bound_by_the_globs_too() -> None:
    with pytest.raises(ModelForbidden):
        choose_model(CATALOGUE, tenant("acme", models=("qwen-image-plus",)), None, DEFAULT)


def test_a_tenant_sees_what_it_may_use() -> None:
    everything = [choice.requested for choice in usable(CATALOGUE, tenant("acme"))]
    little = [
        c.requested for c in usable(CATALOGUE, tenant("x", models=("qwen-image-plus", "dall-e-2")))
    ]

    assert everything == [*CATALOGUE.models, *CATALOGUE.aliases]
    assert little == ["qwen-image-plus", "dall-e-2"]
    assert list(usable(CATALOGUE, tenant("none", models=()))) == []

"""What may be kept of a result, under which key and for how long."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.config import Config, with_catalogue
from gateway.domain.errors import InvalidRequest
from gateway.protocol.openai import ImageRequest
from gateway.results.cache_policy import (
    LONGEST_HEADER,
    CacheControl,
    Record,
    decode,
    encode,
    fingerprint,
    idempotency,
    is_cacheable,
    record_of,
    retry_hash,
    scope_of,
)
from gateway.translate.request import Plan, to_dashscope

NOON = 1_763_812_800
CATALOGUE = with_catalogue(Config(accounts=(), tenants=())).catalogue


def plan(model: str = "qwen-image-2.0-pro", **fields: Any) -> Plan:
    choice = CATALOGUE.find(model)
    assert choice is not None
    request = msgspec.convert({"prompt": "a fox", **fields}, ImageRequest)
    return to_dashscope(request, choice, "nearest")


# --- keys


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": "b64_json"},
        {"user": "someone"},
        {"n": 1},
        {"size": "auto"},
        {"prompt_extend": True},
        {"watermark": False},
        {"quality": "high"},
    ],
    ids=str,
)
def test_what_does_not_change_the_result_does_not_change_its_key(fields: dict[str, Any]) -> None:
    """Defaults are the same, said or unsaid."""
    assert fingerprint(plan(**fields)) == fingerprint(plan())


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "qwen-image-2.0"},
        {"prompt": "a  fox"},
        {"prompt": "a fox "},
        {"prompt": "A fox"},
        {"n": 2},
        {"size": "512x512"},
        {"negative_prompt": "owls"},
        {"negative_prompt": ""},
        {"prompt_extend": False},
        {"watermark": True},
        {"seed": 0},
        {"seed": 7},
    ],
    ids=str,
)
def test_what_changes_the_result_changes_its_key(fields: dict[str, Any]) -> None:
    assert fingerprint(plan(**fields)) != fingerprint(plan())


def test_sizes_that_are_sent_as_the_same_have_the_same_key() -> None:
    assert fingerprint(plan(size="16x16")) == fingerprint(plan(size="32x32"))


def test_how_images_are_spread_over_calls_is_part_of_the_key() -> None:
    """Their seeds depend on it."""
    whole = plan(n=4, seed=7)
    halves = replace(whole, calls=(whole.calls[0], whole.calls[0]))
    assert fingerprint(whole) != fingerprint(halves)


@pytest.mark.parametrize(
    ("mode", "seed", "shared"),
    [
        ("off", None, False),
        ("off", 7, False),
        ("seeded", None, False),
        ("seeded", 0, True),
        ("always", None, True),
        ("always", 7, True),
    ],
)
def test_modes(mode: Any, seed: int | None, shared: bool) -> None:
    fields: dict[str, Any] = {} if seed is None else {"seed": seed}
    assert is_cacheable(mode, plan(**fields)) is shared


def test_a_tenant_and_a_group_of_the_same_name_share_nothing() -> None:
    assert len({scope_of("art"), scope_of("acme", "art"), scope_of("acme")}) == 3
    assert scope_of("acme", "art") == scope_of("other", "art")


def test_a_retry_is_recognised_by_tenant_key_and_body() -> None:
    mine = ("acme", "sha256:1", b'{"prompt": "a fox"}')
    assert retry_hash(*mine) == retry_hash(*mine)
    others = [("other", *mine[1:]), ("acme", "sha256:2", mine[2]), (*mine[:2], b"{}")]
    assert len({retry_hash(*one) for one in (mine, *others)}) == 4


def test_the_order_of_a_body_s_keys_makes_no_conflict() -> None:
    one = idempotency("acme", "k", {"prompt": "a fox", "n": 2})
    assert one == idempotency("acme", "k", {"n": 2, "prompt": "a fox"})
    assert one.body != idempotency("acme", "k", {"n": 2, "prompt": "an owl"}).body
    assert one.key != idempotency("other", "k", {}).key
    assert one.key != idempotency("acme", "l", {}).key


# --- Cache-Control


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        (None, CacheControl()),
        ("", CacheControl()),
        ("no-cache", CacheControl(no_cache=True)),
        ("No-Store, MAX-AGE=60", CacheControl(no_store=True, max_age_s=60)),
        ("only-if-cached,max-stale=5", CacheControl(only_if_cached=True)),
        ('max-age="60"', CacheControl(max_age_s=60)),
        (" max-age = 5 ,, no-cache ", CacheControl(no_cache=True, max_age_s=5)),
        ("max-age=10, max-age=3", CacheControl(max_age_s=3)),
        ("max-age=0", CacheControl(max_age_s=0)),
        ("max-age=99999999999999999999", CacheControl(max_age_s=9_999_999_999)),
        ('no-cache="set-cookie"', CacheControl(no_cache=True)),
        ("private, no-transform", CacheControl()),
    ],
)
def test_cache_control_is_read(header: str | None, asked: CacheControl) -> None:
    assert CacheControl.parse(header) == asked


@pytest.mark.parametrize(
    "header",
    [
        "max-age",
        "max-age=",
        "max-age=-1",
        "max-age=1.5",
        "max-age=1e9",
        "max-age=٣",
        "max-age=60s",
        "no-cachex",
        "no-cache no-store",
        '"no-cache"',
        'extension="no-cache, no-store"',
        'extension="no-cache',
        'extension="a\\", no-store"',
        ",,,;=",
        "\0no-cache",
        "no–cache",
    ],
)
def test_what_is_no_directive_is_passed_over(header: str) -> None:
    assert CacheControl.parse(header) == CacheControl()


@pytest.mark.slow
@given(st.text(alphabet='abno-cahestrm=x0123", \\\t;é'))
def test_any_header_can_be_read(header: str) -> None:
    CacheControl.parse(header)


@pytest.mark.parametrize("piece", ['"', 'a"b\\', "\\", ",", "no-cache,"])
def test_a_header_that_is_too_long_is_refused(piece: str) -> None:
    """To pass it over could pay for what it forbids."""
    header = piece * (LONGEST_HEADER + 1)
    CacheControl.parse(header[:LONGEST_HEADER])

    with pytest.raises(InvalidRequest, match="Cache-Control has more than 1,024 characters"):
        CacheControl.parse(header[: LONGEST_HEADER + 1])


# --- records


def record(**changes: Any) -> Record:
    base = Record(
        urls=("https://host/a.png",),
        created=NOON,
        expires_at=NOON + 60,
        model="qwen-image",
        size="1024x1024",
    )
    return replace(base, **changes)


def test_a_record_survives_its_keeping() -> None:
    for each in (record(), record(size=None)):
        assert decode(encode(each), 1) == each
    assert record().life_s(NOON + 70) == -10


def test_a_result_is_recorded_whole() -> None:
    made = record_of(plan(n=2), [f"https://host/{n}.png?Expires={NOON + 9}" for n in "ab"], NOON)
    assert (len(made.urls), made.expires_at, made.created) == (2, NOON + 9, NOON)
    assert made.model == "qwen-image-2.0-pro"
    assert decode(encode(made), 2) == made


def test_a_part_is_not_recorded() -> None:
    with pytest.raises(ValueError, match="1 of 2 images"):
        record_of(plan(n=2), ["https://host/a.png"], NOON)


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"garbage",
        b"\xff" * 100,
        encode(record())[:-1],
        encode(record()) + b"\0",
        encode(record(v=2)),
        encode(record(urls=())),
        encode(record(urls=("",))),
        encode(record(urls=("a", "b"))),
        encode(record(size="large")),
        msgspec.msgpack.encode({"v": 1}),
        msgspec.msgpack.encode([1, 2, 3]),
        msgspec.msgpack.encode({**msgspec.to_builtins(record()), "urls": [1]}),
        msgspec.msgpack.encode({**msgspec.to_builtins(record()), "expires_at": "soon"}),
        msgspec.json.encode(record()),
    ],
)
def test_what_is_no_record_is_a_miss(kept: bytes) -> None:
    assert decode(kept, 1) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_a_miss(kept: bytes) -> None:
    decode(kept, 1)


@given(st.integers(0, 120), st.binary(min_size=1, max_size=3))
def test_a_record_with_a_fault_in_it_is_never_an_error(at: int, fault: bytes) -> None:
    whole = encode(record())
    decode(whole[:at] + fault + whole[at + len(fault) :], 1)

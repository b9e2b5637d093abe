"""Bodies that nobody vouches for: each is read, or refused by the name of what is wrong."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from gateway.api.body import ReadBudget, codings, parse_json, read_body, to_request
from gateway.config import Reading
from gateway.domain.errors import (
    BodyTimeout,
    BodyTooLarge,
    GatewayError,
    InvalidRequest,
    UnsupportedMediaType,
)
from gateway.protocol.openai import ImageRequest


def read_request(content: bytes) -> ImageRequest:
    return to_request(parse_json(content), ImageRequest)


def refusal(content: bytes | str | dict[str, Any]) -> InvalidRequest:
    text = json.dumps(content) if isinstance(content, dict) else content
    with pytest.raises(InvalidRequest) as caught:
        read_request(text.encode() if isinstance(text, str) else text)
    return caught.value


NESTED = "[" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        b"", b" ", b"null", b"[]", b'"prompt"', b"1", b"true", b"{", b'{"prompt"',
        b'{"prompt": "a"',
        b"{'prompt': 'a'}", b'{"prompt": "a",}', b'{"prompt": "a"} {}', b"prompt=a",
        b"\xff\xfe",
        b"\xef\xbb\xbf", b'\xef\xbb\xbf\xef\xbb\xbf{"prompt": "a"}', b'{\xef\xbb\xbf"prompt": "a"}',
        '{"prompt": "a"}'.encode("utf-16"), b'{"prompt": "\xff"}',
        b'{"prompt": NaN}', b'{"prompt": "a", "seed": Infinity}',
        b'{"prompt": "a", "n": -Infinity}',
        NESTED.encode(), b'{"prompt": ' + NESTED.encode(), b'{"a":' * 100_000,
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", b'{"prompt": "a\nb"}',
        b'{"prompt": "\0"}',
        b"<xml/>", b"--boundary\r\n",
    ],
    ids=lambda content: repr(content[:24]),
)  # fmt: skip
def test_what_is_no_json_object_is_refused(content: bytes) -> None:
    """In words for the caller, never with the reader's own trace."""
    found = refusal(content)

    assert (found.code, found.param) == ("invalid_json", None)
    assert len(found.message) < 200


def test_a_repeated_key_is_refused() -> None:
    """Two readers could take different ones: what is checked would not be what is sent."""
    found = refusal('{"prompt": "harmless", "prompt": "other"}')

    assert found.param == "prompt"


def test_a_repeated_key_among_many_is_found_at_once() -> None:
    """A megabyte of keys is one request's right; to stop all others meanwhile is not."""
    many = ", ".join(f'"{number}": 0' for number in range(90_000))
    started = time.process_time()

    refusal(f'{{{many}, "89999": 0}}')

    assert time.process_time() - started < 1


def test_a_repeated_key_deep_inside_is_refused() -> None:
    assert refusal('{"prompt": "a", "svg": {"model": 1, "model": 2}}').param == "model"


BAD: list[tuple[str, Any, str]] = [
    ("prompt", 7, "invalid_type"),
    ("prompt", ["a"], "invalid_type"),
    ("prompt", True, "invalid_type"),
    ("n", 0, "invalid_value"),
    ("n", -1, "invalid_value"),
    ("n", 11, "invalid_value"),
    ("n", 1.5, "invalid_type"),
    ("n", 2.5, "invalid_type"),
    ("n", "3", "invalid_type"),
    ("n", True, "invalid_type"),
    ("n", [1], "invalid_type"),
    ("n", 10**30, "invalid_value"),
    ("n", 1e400, "invalid_json"),
    ("size", 1024, "invalid_type"),
    ("size", ["1024x1024"], "invalid_type"),
    ("size", {"width": 1024}, "invalid_type"),
    ("model", 3, "invalid_type"),
    ("quality", "ultra", "invalid_value"),
    ("quality", 1, "invalid_type"),
    ("response_format", "png", "invalid_value"),
    ("response_format", "URL", "invalid_value"),
    ("seed", -1, "invalid_value"),
    ("seed", 2**31, "invalid_value"),
    ("seed", 1.5, "invalid_type"),
    ("seed", "7", "invalid_type"),
    ("seed", False, "invalid_type"),
    ("watermark", "true", "invalid_type"),
    ("watermark", 1, "invalid_type"),
    ("prompt_extend", 0, "invalid_type"),
    ("negative_prompt", [], "invalid_type"),
    ("stream", "false", "invalid_type"),
    ("output_compression", 101, "invalid_value"),
    ("partial_images", 4, "invalid_value"),
    ("style", "bold", "invalid_value"),
    ("moderation", "high", "invalid_value"),
    ("background", "green", "invalid_value"),
    ("output_format", "bmp", "invalid_value"),
    ("svg", "x", "invalid_type"),
    ("user", 5, "invalid_type"),
    ("frame_count", "4", "invalid_type"),
]


def test_a_whole_number_may_be_written_with_a_point() -> None:
    """JSON has one kind of number, and its schemas call 2.0 an integer."""
    request = to_request({"prompt": "a fox", "n": 2.0, "seed": 7.0}, ImageRequest)

    assert (request.n, request.seed) == (2, 7)


@pytest.mark.parametrize(("name", "value", "code"), BAD, ids=str)
def test_a_field_of_the_wrong_kind_is_named(name: str, value: Any, code: str) -> None:
    """Types as JSON has them: nothing is read as something else."""
    if code == "invalid_json":
        assert refusal({"prompt": "a fox", name: value}).code == code
        return
    found = refusal({"prompt": "a fox", name: value})

    assert (found.param, found.code) == (name, code)
    assert name in found.message


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("n", "1", "'n' must be a whole number from 1 to 10, not text."),
        ("n", 11, "'n' must be a whole number from 1 to 10."),
        ("stream", "yes", "'stream' must be true or false, not text."),
        ("svg", [], "'svg' must be an object, not a list."),
        ("size", 1024, "'size' must be text, not a whole number."),
        ("style", "bold", "'style' must be one of natural, vivid."),
    ],
)
def test_a_fault_is_told_in_plain_words(name: str, value: Any, sentence: str) -> None:
    """End users read it, who know neither the gateway nor its types."""
    assert refusal({"prompt": "a fox", name: value}).message == sentence


def test_a_missing_prompt_is_named() -> None:
    for content in ({}, {"prompt": None}, {"n": 1}):
        found = refusal(content)
        assert (found.param, found.code) == ("prompt", "missing_required_parameter")


@pytest.mark.parametrize("name", ["prompt", "user", "negative_prompt", "model", "size"])
@pytest.mark.parametrize("half", ["\\ud800", "x\\udfffx", "\\udc00\\ud800"])
def test_half_a_surrogate_pair_is_refused(name: str, half: str) -> None:
    """It is no text: nobody could send it on."""
    other = '"prompt": "a", ' if name != "prompt" else ""
    found = refusal(f'{{{other}"{name}": "{half}"}}')

    assert found.param == name


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert read_request(b'{"prompt": "\\ud83e\\udd8a"}').prompt == "🦊"


@pytest.mark.parametrize(
    "name", ["steps", "Prompt", "prompt ", "", "extra_body", "__class__", "size\0"]
)
def test_an_unknown_field_is_named(name: str) -> None:
    found = refusal({"prompt": "a", name: 1})

    assert (found.code, found.param) == ("unknown_parameter", name)


@pytest.mark.parametrize("name", ["x" * 5000, "\ud800" * 100, "\r\n" * 100])
def test_a_long_or_odd_name_is_shown_short(name: str) -> None:
    found = refusal({"prompt": "a", name: 1})

    assert found.param is not None
    assert len(found.param) <= 64
    assert len(found.message) < 150
    found.message.encode()


def test_an_unknown_field_that_is_null_is_absent() -> None:
    """As any null is."""
    assert read_request(b'{"prompt": "a", "steps": null}').prompt == "a"


def read(
    *parts: bytes | str,
    limit: int = 100,
    headers: dict[str, str] | None = None,
    open_end: bool = False,
    timeout_s: float = 30.0,
) -> bytes:
    """Parts as they arrive; a text is another event of the server's."""
    events: list[dict[str, Any]] = [
        {"type": part} if isinstance(part, str)
        else {"type": "http.request", "body": part, "more_body": open_end or part is not parts[-1]}
        for part in parts
    ]  # fmt: skip
    scope: Any = {"headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()]}

    async def receive() -> Any:
        if events:
            return events.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    budget = ReadBudget(Reading(body_timeout_s=timeout_s))
    with budget.begin("acme") as reading:
        return asyncio.run(read_body(scope, receive, limit, reading))


def error_of(*parts: bytes | str, **more: Any) -> type[GatewayError]:
    with pytest.raises(GatewayError) as caught:
        read(*parts, **more)
    return type(caught.value)


def test_a_body_is_put_together() -> None:
    assert read(b"one") == b"one"
    assert read(b"one", b"", b"two") == b"onetwo"
    assert read(b"") == b""


def test_a_body_may_be_as_long_as_the_limit() -> None:
    assert len(read(b"x" * 50, b"x" * 50)) == 100
    assert error_of(b"x" * 50, b"x" * 51) is BodyTooLarge
    assert error_of(b"x" * 101) is BodyTooLarge


def test_a_body_that_declares_too_much_is_not_read() -> None:
    assert error_of(headers={"content-length": "101"}) is BodyTooLarge
    assert read(b"x" * 100, headers={"content-length": "100"})


@pytest.mark.parametrize("declared", ["abc", "-1", "1e9", "", "²"])
def test_an_odd_length_is_the_server_s_business(declared: str) -> None:
    assert read(b"x", headers={"content-length": declared}) == b"x"


def test_a_body_that_never_ends_is_given_up() -> None:
    assert error_of(b"x", open_end=True, timeout_s=0.01) is BodyTimeout


def test_a_client_that_hangs_up_is_noticed() -> None:
    assert error_of(b"x", "http.disconnect", open_end=True).status in {408, 499}


@pytest.mark.parametrize(
    "media",
    ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/json;",
     "application/vnd.api+json", " application/json "],
)  # fmt: skip
def test_json_may_be_declared_so(media: str) -> None:
    assert read(b"{}", headers={"content-type": media}) == b"{}"


def test_undeclared_is_read_as_json() -> None:
    assert read(b"{}") == b"{}"


@pytest.mark.parametrize(
    "media",
    ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "",
     "application/jsonx", "json", "text/json", "application/json, text/html", "*/*"],
)  # fmt: skip
def test_anything_else_is_refused(media: str) -> None:
    assert error_of(b"{}", headers={"content-type": media}) is UnsupportedMediaType


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "GZIP", "gzip, identity", "x"])
def test_an_encoded_body_is_refused(encoding: str) -> None:
    """A small one could become a large one."""
    headers = {"content-type": "application/json", "content-encoding": encoding}

    assert error_of(b"{}", headers=headers) is UnsupportedMediaType


@pytest.mark.parametrize(
    "encoding", ["", "identity", "Identity", " IDENTITY ", "identity,identity"]
)
def test_an_encoding_that_is_none_is_read(encoding: str) -> None:
    assert read(b"{}", headers={"content-encoding": encoding}) == b"{}"


def test_a_second_line_of_encodings_counts_too() -> None:
    lines = [(b"content-encoding", b"gzip"), (b"content-encoding", b"identity")]
    scope: Any = {"headers": lines}

    assert codings(scope) == [b"gzip", b"identity"]


def test_a_byte_order_mark_is_read_over() -> None:
    """PowerShell and .NET write one."""
    assert read_request(b'\xef\xbb\xbf{"prompt": "a fox"}').prompt == "a fox"


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_prompt_has_a_bound(name: str) -> None:
    """OpenAI's own, in its words; by characters, so that a script of long ones loses nothing."""
    fields = {"prompt": "a fox", name: "狐" * 32_000}
    assert getattr(to_request(fields, ImageRequest), name) == fields[name]

    found = refusal({"prompt": "a fox", name: "a" * 32_001})

    assert (found.param, found.code) == (name, "string_above_max_length")
    assert "32000" in found.message

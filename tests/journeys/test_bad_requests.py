"""Five thousand bad requests: each is refused in the published form, and nothing is paid."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.openai_shapes import KEYS_OF_AN_ERROR, by_specification
from tests.running import (
    ACME,
    REQUEST_ID,
    HeldClock,
    RunningGateway,
    account,
    captured_logs,
    config_for,
)
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

EXAMPLES: Final = 1250
fuzz = settings(
    max_examples=EXAMPLES,
    suppress_health_check=list(HealthCheck),
)

PATH: Final = "/v1/images/generations"
PATHS: Final = (PATH, "/images/generations")
JSON: Final = {"content-type": "application/json"}
KEY: Final = {"authorization": f"Bearer {ACME}"}
INFINITIES: Final = ("NaN", "Infinity", "-Infinity")

Json = dict[str, Any]


class Wire:
    """One connection to a gateway, opened again when it was closed."""

    def __init__(self, gateway: RunningGateway, simulator: SimulatedDashScope) -> None:
        self.simulator = simulator
        self._connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)

    def refused(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Json:
        """Send a request that must be refused; the error object of the answer."""
        self._connection.request(method, path, body=body, headers=headers)
        response = self._connection.getresponse()
        content = response.read()
        assert 400 <= response.status < 500, (response.status, content)
        assert REQUEST_ID.fullmatch(response.headers["x-request-id"])
        if method == "HEAD":
            return {}
        answer = json.loads(content)
        assert set(answer["error"]) == KEYS_OF_AN_ERROR
        by_specification("ErrorResponse").validate(answer)
        error: Json = answer["error"]
        return error

    def refused_body(self, body: bytes, path: str = PATH, **headers: str) -> Json:
        """Send a bad body with a good key."""
        return self.refused("POST", path, {**KEY, **JSON, **headers}, body)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def gateway() -> Iterator[RunningGateway]:
    gateway = RunningGateway()
    with captured_logs():
        yield gateway
    gateway.close()


@pytest.fixture
def wire(gateway: RunningGateway, simulator: SimulatedDashScope) -> Iterator[Wire]:
    """Refuses to end where the vendor was called even once."""
    gateway.use(config_for(account(simulator.base_url)), HeldClock().clock())
    wire = Wire(gateway, simulator)
    yield wire
    wire.close()
    assert simulator.state()["log"] == []


def dumps(value: object) -> bytes:
    return json.dumps(value).encode()


any_character = st.characters()
"""Halves of surrogate pairs included, which JSON can spell and UTF-8 cannot."""
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(any_character, max_size=30)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(any_character, max_size=10), inner, max_size=3)
    ),
    max_leaves=6,
)
no_text = values.filter(
    lambda value: value is not None and not isinstance(value, str)
) | st.sampled_from(["\ud800", "a\udfff"])
no_integer = values.filter(
    lambda value: (
        value is not None
        and (isinstance(value, bool) or not isinstance(value, int))
        and not (isinstance(value, float) and value.is_integer())  # to JSON 1.0 is one
    )
)
no_boolean = values.filter(lambda value: value is not None and not isinstance(value, bool))
no_size = st.one_of(
    no_text,
    st.text(max_size=20).filter(lambda text: text != "auto" and not re.fullmatch(r"\d+x\d+", text)),
    st.sampled_from(
        [
            "",
            "x",
            "0x0",
            "-1x5",
            "1e3x2",
            "99999999x1",
            "1x99999",
            "01x1",
            "1X1",
            "１x１",
            "1024*1024",
        ]
    ),
)


def outside(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(max_value=low - 1) | st.integers(min_value=high + 1)


def no_choice(*choices: str) -> st.SearchStrategy[Any]:
    return values.filter(lambda value: value is not None and value not in choices)


KNOWN: Final[dict[str, st.SearchStrategy[Any]]] = {
    "prompt": no_text | st.sampled_from(["", " ", "\n\t", "a\0b"]),
    "model": no_text,
    "n": no_integer | outside(1, 10) | st.sampled_from([1.5, "3", True, 1e300]),
    "size": no_size,
    "quality": no_choice("auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"),
    "response_format": no_choice("url", "b64_json"),
    "output_format": no_choice("png", "jpeg", "webp"),
    "output_compression": no_integer | outside(0, 100) | st.integers(0, 99),
    "background": no_choice("auto", "opaque"),
    "moderation": no_choice("low", "auto"),
    "style": no_choice("vivid", "natural"),
    "stream": no_boolean,
    "partial_images": no_integer | outside(0, 3),
    "user": no_text,
    "safety_identifier": no_text,
    "complexity": no_choice("low", "medium", "high"),
    "frame_count": values.filter(lambda value: value is not None),
    "frame_duration_ms": values.filter(lambda value: value is not None),
    "svg": values.filter(lambda value: value is not None),
    "negative_prompt": no_text | st.just("a\0b"),
    "prompt_extend": no_boolean,
    "prompt_extend_mode": no_choice("direct", "agent") | st.just("agent"),
    "enable_thinking": no_boolean | st.just(value=True),
    "watermark": no_boolean,
    "seed": no_integer | outside(0, 2147483647),
}
bad_fields = st.sampled_from(sorted(KNOWN)).flatmap(
    lambda name: st.tuples(st.just(name), KNOWN[name])
)
unknown_fields = st.tuples(
    st.text(any_character, max_size=80).filter(lambda name: name not in KNOWN),
    values.filter(lambda value: value is not None),
)


@fuzz
@given(bad=bad_fields | unknown_fields, path=st.sampled_from(PATHS))
def test_one_bad_field(wire: Wire, bad: tuple[str, Any], path: str) -> None:
    """The refusal names the field, so that the caller finds it."""
    name, value = bad
    body = {"prompt": "a fox", "model": "qwen-image-2.0", "n": 1, name: value}

    error = wire.refused_body(dumps(body), path)

    shown = name.encode(errors="replace").decode()
    assert error["param"] == shown[:64]
    assert error["type"] == "invalid_request_error"


valid_text = st.just(dumps({"prompt": "a fox", "model": "qwen-image-2.0", "n": 1, "seed": 7}))
bad_bytes = st.one_of(
    st.binary(max_size=200).filter(lambda body: not body.lstrip().startswith(b"{")),
    valid_text.flatmap(lambda text: st.integers(0, len(text) - 1).map(lambda end: text[:end])),
    st.tuples(valid_text, st.binary(min_size=1, max_size=8).filter(bytes.strip)).map(b"".join),
    values.filter(lambda value: not isinstance(value, dict)).map(dumps),
    st.sampled_from(INFINITIES).map(lambda name: f'{{"prompt": "a", "seed": {name}}}'.encode()),
    st.integers(1, 400_000).map(lambda depth: b'{"prompt": ' + b"[" * depth),
    st.integers(100, 200_000).map(
        lambda depth: b'{"prompt": "a", "svg": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
    ),
    st.sampled_from(["\\ud800", "a\\udfff", "\\udc00\\ud800"]).map(
        lambda half: f'{{"prompt": "{half}"}}'.encode()
    ),
    st.sampled_from(sorted(KNOWN)).map(
        lambda name: f'{{"prompt": "a", "{name}": null, "{name}": null}}'.encode()
    ),
    st.sampled_from(["utf-16", "utf-32", "latin-1"]).map('{"prompt": "é"}'.encode),
    st.integers(4301, 9000).map(lambda digits: b'{"prompt":"a","seed":' + b"9" * digits + b"}"),
    st.dictionaries(st.text(max_size=5), values, max_size=4)
    .filter(lambda body: not isinstance(body.get("prompt"), str))
    .map(dumps),
    st.binary(max_size=20).map(lambda inside: b'{"prompt": "\xff' + inside + b'"}'),
)


@fuzz
@given(body=bad_bytes)
def test_a_body_that_is_no_request(wire: Wire, body: bytes) -> None:
    assert wire.refused_body(body)["type"] == "invalid_request_error"


token = st.text(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_!#$%&'*+.^`|~0189", min_size=1
)
header_text = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60).filter(
    lambda text: "\x7f" not in text
)
own_headers = {
    "authorization", "api-key", "content-type", "content-length", "content-encoding", "connection",
    "transfer-encoding", "host", "expect", "upgrade", "te", "trailer", "keep-alive",
}  # fmt: skip
odd_headers = st.dictionaries(
    token.filter(lambda name: name.lower() not in own_headers), header_text, max_size=5
)
bad_auth = st.one_of(
    st.just({}),
    header_text.map(lambda text: {"authorization": text}),
    header_text.map(lambda text: {"authorization": f"Bearer {text}"}),
    header_text.map(lambda text: {"api-key": text}),
    st.integers(0, len(ACME) - 1).map(lambda end: {"authorization": f"Bearer {ACME[:end]}"}),
    st.just({"authorization": f"Basic {ACME}"}),
    st.just({**KEY, "api-key": "sk-another"}),
    st.just({"authorization": f"Bearer {ACME} {ACME}"}),
    st.just({"authorization": f"Bearer {ACME.swapcase()}"}),
)
bad_type = st.one_of(
    header_text.filter(lambda text: "json" not in text.lower()).map(
        lambda text: {**KEY, "content-type": text}
    ),
    st.sampled_from(["multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]).map(
        lambda text: {**KEY, "content-type": text}
    ),
    st.sampled_from(["gzip", "br", "deflate", "zstd", "x"]).map(
        lambda text: {**KEY, **JSON, "content-encoding": text}
    ),
)


@fuzz
@given(bad=bad_auth | bad_type, more=odd_headers, path=st.sampled_from(PATHS))
def test_bad_headers(wire: Wire, bad: dict[str, str], more: dict[str, str], path: str) -> None:
    body = dumps({"prompt": "a fox", "model": "qwen-image-2.0"})
    headers = {name: text.encode("latin-1") for name, text in (more | bad).items()}

    error = wire.refused("POST", path, headers, body)  # type: ignore[arg-type]

    assert error["code"] in {"invalid_api_key", "unsupported_media_type"}


path_text = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60)
odd_paths = st.one_of(
    path_text.map(lambda text: "/" + text),
    path_text.map(lambda text: "/v1/models/" + text),
    st.lists(
        st.sampled_from(["v1", "images", "generations", "models", "..", ".", "", "%2e%2e", "%2F",
                         "%00", "%", "%zz", ";a", "?", "%ff", "%0d%0a", "edits", "//"]),
        max_size=6,
    ).map(lambda parts: "/" + "/".join(parts)),
    st.text(max_size=20).map(
        lambda text: "/" + "".join(f"%{byte:02x}" for byte in text.encode(errors="replace"))
    ),
)  # fmt: skip
SERVED: Final = {"/models", "/v1/models", "/healthz", "/readyz", "/metrics"}


def plain(path: str) -> str:
    """As it is looked up: slashes are merged, and escapes read."""
    return re.sub("/+", "/", unquote(re.split("[?#]", path, maxsplit=1)[0]))


def is_served(path: str) -> bool:
    """Whether a GET of it succeeds."""
    return plain(path).rstrip("/") in SERVED


@fuzz
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "PROPFIND", "LOCK"]),
    path=odd_paths,
    body=st.none() | st.binary(max_size=50),
)
def test_odd_paths_and_methods(wire: Wire, method: str, path: str, body: bytes | None) -> None:
    """With a body that is no request, so that no path leads to a generation."""
    assume(method not in {"GET", "HEAD"} or not is_served(path))
    assume(not plain(path).startswith("/api/v1"))  # there errors have the vendor's form
    wire.refused(method, path, {**KEY, **JSON}, body)


@pytest.mark.parametrize("path", PATHS)
def test_the_requests_here_are_bad_for_the_reason_given(
    gateway: RunningGateway, simulator: SimulatedDashScope, path: str
) -> None:
    """The body that the tests above spoil is a good one, and would be paid."""
    gateway.use(config_for(account(simulator.base_url)), HeldClock().clock())
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    connection.request("POST", path, b'{"prompt": "a fox", "n": 1}', {**KEY, **JSON})

    assert connection.getresponse().status == 200
    connection.close()
    assert len(simulator.state()["log"]) == 1

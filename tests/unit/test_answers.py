"""Keys from headers, failures as answers, and what the middleware adds to both."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from litestar.exceptions import HTTPException

from gateway.api.auth import presented_key
from gateway.api.errors import BY_STATUS, UNEXPECTED, error_response, on_framework_error
from gateway.api.middleware import Readiness, RequestMiddleware, log_answer
from gateway.domain import errors
from gateway.domain.errors import GatewayError, InvalidKey
from gateway.observability.context import open_context


def scope(*headers: tuple[str, str]) -> Any:
    found = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return {"type": "http", "method": "GET", "path": "/x", "headers": found}


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer k1")],
        [("authorization", "bearer k1")],
        [("authorization", "BEARER   k1  ")],
        [("api-key", "k1")],
        [("api-key", " k1 ")],
        [("authorization", "Bearer k1"), ("api-key", "k1")],
        [("authorization", "Basic eDp5"), ("api-key", "k1")],
        [("authorization", "Bearer k1"), ("api-key", "")],
        [("x", "y"), ("authorization", "Bearer k1")],
    ],
)
def test_the_key_of_a_request(headers: list[tuple[str, str]]) -> None:
    """OpenAI's header, or Azure's."""
    assert presented_key(scope(*headers)) == "k1"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "Basic eDp5")],
        [("authorization", "k1")],
        [("api-key", "  ")],
        [("x-api-key", "k1")],
        [("cookie", "k1")],
    ],
)
def test_a_request_without_a_key(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidKey, match="didn't provide"):
        presented_key(scope(*headers))


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer k1"), ("api-key", "k2")],
        [("authorization", "Bearer k1"), ("authorization", "Bearer k2")],
        [("api-key", "k1"), ("api-key", "k2")],
    ],
)
def test_two_keys_are_one_too_many(headers: list[tuple[str, str]]) -> None:
    """A proxy in between may have added its own, and nobody knows whose bill it is."""
    with pytest.raises(InvalidKey, match="more than one"):
        presented_key(scope(*headers))


def classes(of: type[GatewayError] = GatewayError) -> list[type[GatewayError]]:
    return [of, *(found for sub in of.__subclasses__() for found in classes(sub))]


@pytest.mark.parametrize("kind", classes()[1:], ids=lambda kind: kind.__name__)
def test_each_class_has_its_facts(kind: type[GatewayError]) -> None:
    """A status, OpenAI's type, a code, and a sentence on what it is for."""
    answer = error_response(kind("It failed."))
    told = msgspec.to_builtins(answer.content)["error"]

    assert answer.status_code == kind.status
    assert 400 <= kind.status < 600
    assert told == {"message": "It failed.", "type": kind.type, "param": None, "code": kind.code}
    assert kind.__doc__


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"── (\w+) +(\d{3})", errors.__doc__ or "")

    assert sorted(drawn) == sorted(
        (kind.__name__, str(kind.status))
        for kind in classes()[1:]
        if kind.__module__ == errors.__name__
    )


@pytest.mark.parametrize("kind", classes()[1:], ids=lambda kind: kind.__name__)
def test_only_what_is_not_paid_may_be_retried(kind: type[GatewayError]) -> None:
    """SDKs repeat 408, 409, 429 and every 5xx by themselves, three times in all."""
    is_mistake = kind.status < 429 and kind.status != 408
    if is_mistake or issubclass(kind, errors.UpstreamAmbiguous):
        assert kind.should_retry is False
    assert kind.should_retry is not True


@pytest.mark.parametrize(
    ("wait_s", "whole", "exact"),
    [(0.0, "0", "0"), (0.0001, "1", "1"), (1.0, "1", "1000"), (1.5, "2", "1500"),
     (60, "60", "60000"), (0.25, "1", "250")],
)  # fmt: skip
def test_a_wait_is_told_in_both_forms(wait_s: float, whole: str, exact: str) -> None:
    """Never shorter than it is; the SDKs prefer the milliseconds."""
    headers = error_response(errors.RateLimited("wait", retry_after_s=wait_s)).headers

    assert (headers["retry-after"], headers["retry-after-ms"]) == (whole, exact)
    assert "x-should-retry" not in headers


def test_what_is_not_to_be_retried_names_no_wait() -> None:
    headers = error_response(errors.UpstreamBilling("no", retry_after_s=5)).headers

    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers


def test_a_failure_that_must_not_be_repeated_says_so_whatever_its_class() -> None:
    """Such as a throttled call beside others that were paid for."""
    failure = errors.RateLimited("wait", retry_after_s=5)
    failure.should_retry = False

    headers = error_response(failure).headers

    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers


@pytest.mark.parametrize("status", [*BY_STATUS, 404, 405, 401, 403, 406, 409, 418, 500, 503])
def test_the_framework_s_refusals_are_put_in_words_of_ours(status: int) -> None:
    """Its own may repeat what the caller sent, or tell how the gateway is built."""
    detail = "Method Litestar.handler at /secret/path.py"
    headers = {"Allow": "POST", "x-inner": "yes"}

    request = SimpleNamespace(scope=scope())
    open_context(request.scope, "req_1")

    answer = on_framework_error(
        request,  # type: ignore[arg-type]
        HTTPException(detail, status_code=status, headers=headers),
    )

    kind, _ = BY_STATUS.get(status, UNEXPECTED)
    assert answer.status_code == (status if status in {404, 405} else kind.status)
    assert detail not in answer.content.error.message
    assert answer.headers["allow"] == "POST"
    assert "x-inner" not in answer.headers


async def answered(app: Any, kind: str = "http") -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    request: Any = {"type": kind, "path": "/x", "headers": []}
    await RequestMiddleware(app, Readiness(), [log_answer])(request, receive, send)
    return sent


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def test_each_answer_has_an_id_of_its_own(logs: Any) -> None:
    first, second = [dict((await answered(app))[0]["headers"]) for _ in range(2)]

    assert re.fullmatch(rb"req_[0-9a-f]{32}", first[b"x-request-id"])
    assert first[b"x-request-id"] != second[b"x-request-id"]
    assert first[b"a"] == b"b"
    assert first[b"x-content-type-options"] == b"nosniff"
    lines = logs.named("answered")
    assert [line["status"] for line in lines] == [204, 204]
    assert lines[0]["request_id"].encode() == first[b"x-request-id"]


async def test_what_is_no_request_passes_through() -> None:
    async def lifespan(scope: Any, receive: Any, send: Any) -> None:
        await send(scope["type"])

    assert await answered(lifespan, "lifespan") == ["lifespan"]

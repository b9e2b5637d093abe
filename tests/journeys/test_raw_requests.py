"""Requests that no HTTP library would send, over a bare socket."""

from __future__ import annotations

import json
import re
import socket
from typing import Any, Final, NamedTuple

import pytest

from gateway.server.bounds import Bounds
from tests.openai_shapes import by_specification
from tests.running import ACME, REQUEST_ID, Client, RunningGateway
from tests.simulated import SimulatedDashScope

PATH: Final = "/v1/images/generations"
BODY: Final = b'{"prompt": "a fox", "model": "qwen-image-2.0"}'
AUTH: Final = b"authorization: Bearer " + ACME.encode() + b"\r\n"
HEAD: Final = b"host: gateway\r\ncontent-type: application/json\r\n" + AUTH
CLOSE: Final = b"connection: close\r\n"


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes


def send(gateway: Client, data: bytes, *, hang_up: bool = False) -> list[Answer]:
    """Every answer until the server closes."""
    return parse(wire_bytes(gateway, data, hang_up=hang_up))


def wire_bytes(gateway: Client, data: bytes, *, hang_up: bool = False) -> bytes:
    """Everything that comes back."""
    port = int(gateway.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as wire:
        wire.sendall(data)
        if hang_up:
            wire.shutdown(socket.SHUT_WR)
        received = b""
        while part := wire.recv(65536):
            received += part
    return received


def parse(received: bytes) -> list[Answer]:
    answers = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        names = [line.split(": ", 1)[0] for line in lines[1:]]
        assert len(names) == len(set(names)), f"a header stands twice: {names}"
        headers = dict(line.split(": ", 1) for line in lines[1:])
        length = int(headers.get("content-length", len(rest)))
        answers.append(Answer(int(lines[0].split(" ")[1]), headers, rest[:length]))
        received = rest[length:]
    return answers


def request(path: str | bytes = PATH, body: bytes = BODY, head: bytes = HEAD) -> bytes:
    target = path.encode() if isinstance(path, str) else path
    length = b"content-length: %d\r\n" % len(body)
    return b"POST " + target + b" HTTP/1.1\r\n" + head + length + b"\r\n" + body


def calls(simulator: SimulatedDashScope) -> list[Any]:
    log: list[Any] = simulator.state()["log"]
    return log


def refused(answer: Answer) -> str:
    """The code of a refusal that has the published form."""
    assert 400 <= answer.status < 500, answer
    assert REQUEST_ID.fullmatch(answer.headers["x-request-id"])
    body = json.loads(answer.body)
    by_specification("ErrorResponse").validate(body)
    code: str = body["error"]["code"]
    return code


def test_the_request_that_the_others_spoil(gateway: Client) -> None:
    [answer] = send(gateway, request(head=HEAD + CLOSE))

    assert answer.status == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/healthz", 200),
        ("/readyz", 200),
        ("/metrics", 200),
        ("/v1/models", 200),
        ("/models/qwen-image-2.0", 200),
        ("/v1/models/none", 404),
        (PATH, 405),
    ],
)
def test_head_is_answered_as_get_without_the_body(path: str, status: int, gateway: Client) -> None:
    """As load balancers ask; the next answer on the connection is where the body would be."""

    def ask(method: str) -> bytes:
        return f"{method} {path} HTTP/1.1\r\n".encode() + AUTH + b"host: gateway\r\n"

    last = b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n" + CLOSE + b"\r\n"
    [got, _] = send(gateway, ask("GET") + b"\r\n" + last)
    received = wire_bytes(gateway, ask("HEAD") + b"\r\n" + last)
    head, _, rest = received.partition(b"\r\n\r\n")

    [told] = parse(head + b"\r\n\r\n")
    assert (told.status, got.status) == (status, status)
    assert told.headers.keys() == got.headers.keys()
    assert told.headers["content-type"] == got.headers["content-type"]
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")
    assert parse(rest)[0].body == b'{"status":"ok"}'


def test_other_methods_are_told_which_to_use(gateway: Client) -> None:
    head = b"DELETE /healthz HTTP/1.1\r\nhost: gateway\r\n" + CLOSE + b"\r\n"
    [answer] = send(gateway, head)

    assert refused(answer) == "method_not_allowed"
    assert {"GET", "HEAD"} <= set(answer.headers["allow"].split(", "))


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(HEAD + b"content-length: 5\r\n", id="two lengths"),
        pytest.param(HEAD + b"transfer-encoding: chunked\r\n", id="length and chunks"),
        pytest.param(HEAD + b"transfer-encoding: chunked, identity\r\n", id="odd encodings"),
        pytest.param(HEAD + b"transfer-encoding: xchunked\r\n", id="unknown encoding"),
        pytest.param(HEAD + b"transfer-encoding : chunked\r\n", id="space before the colon"),
        pytest.param(HEAD + b"x: a\rb\r\n", id="bare CR"),
        pytest.param(HEAD + b"x\0y: a\r\n", id="NUL in a header's name"),
        pytest.param(HEAD + b"x: a\0b\r\n", id="NUL in a header"),
        pytest.param(HEAD + b"no colon\r\n", id="a line without a colon"),
    ],
)
def test_a_request_of_two_minds_is_refused(
    head: bytes, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """What two servers could read differently is how requests are smuggled."""
    hidden = b"GET /v1/models HTTP/1.1\r\n" + HEAD + b"\r\n"
    smuggled = b"0\r\n\r\n" + hidden

    [answer] = send(gateway, request(head=head, body=smuggled))

    assert refused(answer) == "invalid_http"
    assert calls(simulator) == []


@pytest.mark.parametrize("host", [b"", b"host: a\r\nhost: b\r\n"], ids=["none", "two"])
def test_a_request_names_one_host(
    host: bytes, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """Or whoever stands before the gateway may read another than it does: RFC 9112, 3.2."""
    head = HEAD.replace(b"host: gateway\r\n", host) + b"content-length: %d\r\n\r\n" % len(BODY)
    (answer,) = send(gateway, b"POST " + PATH.encode() + b" HTTP/1.1\r\n" + head + BODY)
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["code"] == "invalid_http"
    assert simulator.state()["paid"] == {}


def test_a_trailer_is_no_header(gateway: Client, simulator: SimulatedDashScope) -> None:
    """Not even a key: what checks the headers in front of the gateway has not seen it."""
    head = HEAD.replace(AUTH, b"transfer-encoding: chunked\r\n" + CLOSE) + b"\r\n"
    chunks = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(BODY), BODY, AUTH)
    (answer,) = send(gateway, b"POST " + PATH.encode() + b" HTTP/1.1\r\n" + head + chunks)
    assert answer.status == 401
    assert simulator.state()["paid"] == {}


def test_a_request_behind_another_is_answered_in_turn(gateway: Client) -> None:
    """Pipelined, each with an id of its own."""
    asked = b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n"

    answers = send(gateway, (asked + b"\r\n") * 2 + asked + CLOSE + b"\r\n")

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3


def test_a_huge_header_is_refused(gateway: Client, simulator: SimulatedDashScope) -> None:
    head = HEAD + b"x-huge: " + b"a" * 200_000 + b"\r\n" + CLOSE

    [answer] = send(gateway, request(head=head))

    assert refused(answer)
    assert answer.status == 431
    assert calls(simulator) == []


def test_many_headers_are_refused(gateway: Client) -> None:
    """Together they are as large as one."""
    head = HEAD + b"".join(b"x-%d: %s\r\n" % (number, b"y" * 50) for number in range(2000))

    [answer] = send(gateway, request(head=head + CLOSE))

    assert refused(answer)
    assert answer.status == 431


def test_a_head_that_never_ends_is_given_up(
    gateway: Client, running_gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a header, and then silence: ten thousand such clients would hold as many connections."""
    monkeypatch.setattr(running_gateway, "bounds", Bounds(head_s=0.1))

    [answer] = send(gateway, b"POST " + PATH.encode() + b" HTTP/1.1\r\nhost: gate")

    assert refused(answer) == "invalid_http"
    assert answer.status == 408


def test_a_dozen_more_headers_do_not_hurt(gateway: Client) -> None:
    head = HEAD + b"".join(b"x-%d: y\r\n" % number for number in range(100))
    head += CLOSE

    [answer] = send(gateway, request(head=head, body=b"{}"))

    assert answer.status < 500


@pytest.mark.parametrize(
    "path",
    [
        "/v1/images/generations%00",
        "/v1/images/generations%2e",
        "/v1/../v1/images/generations",
        "/v1/%2e%2e/v1/images/generations",
        "/v1/images/../../v1/images/generations",
        "/V1/images/generations",
        "/v1/images/generations;x=1",
        "/v1%2Fimages%2Fgenerations%2F..",
        "/%ff%fe",
        "/v1/images/generations\\",
        "http://elsewhere/v1/images/edit",
        "*",
    ],
)
def test_a_path_is_taken_literally(
    path: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """No dots are resolved and no case is folded, which a proxy with rules by path may not do."""
    [answer] = send(gateway, request(path, head=HEAD + CLOSE))

    assert refused(answer) in {"not_found", "method_not_allowed"}
    assert calls(simulator) == []


@pytest.mark.parametrize(
    "path", ["//v1//images//generations", "/v1/images/generations/", "/v1/images/generations%2F"]
)
def test_another_spelling_of_a_path_needs_a_key_all_the_same(
    path: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """A base URL that ends in a slash works; a key is needed whatever the spelling."""
    head = HEAD.replace(AUTH, b"") + CLOSE

    [answer] = send(gateway, request(path, head=head))

    assert refused(answer) == "invalid_api_key"
    assert calls(simulator) == []


@pytest.mark.parametrize("path", [b"/v1/\0", b"/v1/\xff", b"/v1 /x", b"/\r\nx: y"])
def test_a_path_that_is_no_path_is_refused(
    path: bytes, gateway: Client, simulator: SimulatedDashScope
) -> None:
    [answer, *_] = send(gateway, request(path, head=HEAD + CLOSE))

    assert refused(answer)
    assert calls(simulator) == []


@pytest.mark.parametrize(
    "name",
    [
        "%0d%0aset-cookie:%20a=b",
        "%0d%0a%0d%0aHTTP/1.1%20200%20OK",
        "%E2%80%A8x",
        "<script>",
        "%22%5C",
        "x" * 3000,
        "%f0%9f%a6%8a",
        "%ed%a0%80",
    ],
)
def test_an_id_cannot_write_headers(name: str, gateway: Client) -> None:
    asked = f"GET /v1/models/{name} HTTP/1.1\r\n".encode() + HEAD + CLOSE + b"\r\n"

    [answer] = send(gateway, asked)

    assert refused(answer) in {"model_not_found", "not_found"}
    assert "set-cookie" not in answer.headers
    assert len(answer.body) < 1000


@pytest.mark.parametrize("field", ["model", "size", "user", "x\r\ny: z", "response_format"])
def test_a_field_cannot_write_headers(field: str, gateway: Client) -> None:
    """The answer's own headers name models, sizes and fields."""
    body = json.dumps({"prompt": "a fox", field: "a\r\nset-cookie: a=b"}).encode()

    [answer] = send(gateway, request(body=body, head=HEAD + CLOSE))

    assert "set-cookie" not in answer.headers
    assert not re.search(r"[\r\n]", "".join(answer.headers.values()))


def test_ten_megabytes_of_prompt_are_refused(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """By the declared length, before they are read."""
    body = b'{"prompt": "' + b"x" * 10_000_000 + b'"}'
    head = (
        b"POST %b HTTP/1.1\r\n" % PATH.encode() + HEAD + b"content-length: %d\r\n\r\n" % len(body)
    )

    answers = send(gateway, head + body[:1000], hang_up=True)

    assert refused(answers[0]) == "request_too_large"
    assert calls(simulator) == []


def test_ten_megabytes_of_undeclared_prompt_are_refused(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    def parts() -> Any:
        for _ in range(160):
            yield b"x" * 65536

    answer = gateway.ask(
        "POST", PATH, content=parts(), headers={"content-type": "application/json"}
    )

    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert calls(simulator) == []


def test_a_body_that_stops_half_way_is_not_acted_on(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    """Even where what came is a whole request."""
    head = HEAD + b"content-length: 1000\r\n"
    data = b"POST " + PATH.encode() + b" HTTP/1.1\r\n" + head + b"\r\n" + BODY

    send(gateway, data, hang_up=True)

    assert calls(simulator) == []
    assert gateway.generate().status_code == 200


def test_http_1_0_is_served(gateway: Client) -> None:
    data = b"POST " + PATH.encode() + b" HTTP/1.0\r\n" + HEAD
    data += b"content-length: %d\r\n\r\n" % len(BODY) + BODY

    [answer] = send(gateway, data)

    assert answer.status == 200


def test_a_websocket_is_not_an_error_of_the_gateway(gateway: Client) -> None:
    head = (
        HEAD + b"connection: close, Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    )
    data = b"GET /v1/models HTTP/1.1\r\n" + head + b"sec-websocket-key: eA==\r\n\r\n"

    [answer] = send(gateway, data)

    assert answer.status < 500


def test_garbage_is_refused(gateway: Client) -> None:
    for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0" * 100, b"GET\r\n\r\n"):
        answers = send(gateway, data, hang_up=True)
        assert [answer.status for answer in answers] in ([400], [])

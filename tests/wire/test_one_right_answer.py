"""Each sequence of bytes has one right answer, however it is cut into packets; and then the
connection may be used again, or it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import pytest

from tests.simulated import SimulatedDashScope
from tests.wire.talking import AUTH, BODY, NEXT, Line, by_bytes, chunked, post, sized

HOST: Final = b"host: gateway\r\n"
CLOSE: Final = b"connection: close\r\n"
HIDDEN: Final = NEXT + sized() + NEXT
"""Whole requests, to stand where a body is."""
OFFERS: Final = {
    "h2c, as Java offers it": b"connection: Upgrade, HTTP2-Settings\r\n"
    b"http2-settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\nupgrade: h2c\r\n",
    "websocket": b"connection: keep-alive, Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "TLS": b"upgrade: TLS/1.2, TLS/1.0\r\nconnection: upgrade\r\n",
    "anything, in two lines": b"Upgrade: foo/2\r\nUPGRADE: bar\r\nConnection: Upgrade\r\n",
    "one that is not for this hop": b"upgrade: h2c\r\n",
    "none, though it says so": b"connection: upgrade\r\n",
}

Case = tuple[bytes, list[int], bool]
"""What is sent, the status of each answer, and whether the connection goes on."""


def get(fields: bytes = HOST, *, path: bytes = b"/healthz", version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET %b %b\r\n%b\r\n" % (path, version, fields)


def cases() -> Iterable[tuple[str, Case]]:
    """The name of each says what is odd."""
    yield "nothing odd", (sized(), [200], True)
    yield "chunks", (chunked(), [200], True)
    yield "a body of nothing", (sized(body=b""), [400], True)
    yield "no body", (post(body=b""), [400], True)
    for name, offer in OFFERS.items():
        yield f"offers {name}", (sized(offer), [200], True)
        yield f"offers {name}, chunked", (chunked(offer), [200], True)
        yield f"offers {name}, with nothing", (get(HOST + offer), [200], True)
        yield f"offers {name}, requests in its body", (sized(offer, HIDDEN), [400], True)
        yield f"offers {name}, requests in its chunk", (chunked(offer, HIDDEN), [400], True)
        yield f"offers {name}, twice", (sized(offer) + sized(offer), [200, 200], True)
        yield f"offers {name}, and ends", (sized(offer + CLOSE) + NEXT, [200], False)
    yield from heads()
    yield from lengths()
    yield from chunks()
    yield from pipelines()


def heads() -> Iterable[tuple[str, Case]]:
    refused: tuple[list[int], bool] = ([400], False)
    for name, data in {
        "a folded header": get(HOST + b"x: a\r\n b\r\n"),
        "a folded length": post(b"content-length:\r\n 5\r\n", b"hello"),
        "bare line feeds": get().replace(b"\r\n", b"\n"),
        "one bare line feed": get(HOST + b"x: a\n"),
        "a bare carriage return": get(HOST + b"x: a\rb\r\n"),
        "two carriage returns": get().replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\r\n"),
        "NUL in a value": get(HOST + b"x: a\0b\r\n"),
        "NUL in a name": get(HOST + b"x\0: a\r\n"),
        "NUL in the target": get(path=b"/v1\0"),
        "a control in a value": get(HOST + b"x: a\x01b\r\n"),
        "DEL in a value": get(HOST + b"x: a\x7fb\r\n"),
        "a space in a name": get(HOST + b"x y: a\r\n"),
        "a space before the colon": get(HOST + b"x : a\r\n"),
        "a tab before the colon": get(HOST + b"x\t: a\r\n"),
        "a space before the first name": get(b" x: a\r\n" + HOST),
        "no name": get(HOST + b": a\r\n"),
        "no colon": get(HOST + b"x\r\n"),
        "no host": get(b""),
        "two hosts": get(HOST * 2),
        "a host that is none": get(b"host: a b\r\n"),
        "a host with a path": get(b"host: a/b\r\n"),
        "a target with a space": get(path=b"/health z"),
        "a target without a slash": get(path=b"healthz"),
        "a target that is not ASCII": get(path=b"/\xe9"),
        "a target of another scheme": get(path=b"ftp://gateway/healthz"),
        "a lower-case version": get(version=b"http/1.1"),
        "no version": b"GET /healthz\r\n\r\n",
        "HTTP/0.9": get(version=b"HTTP/0.9"),
        "a space behind the version": get(version=b"HTTP/1.1 "),
        "a lower-case method": b"get /healthz HTTP/1.1\r\nhost: a\r\n\r\n",
        "a tab behind the method": b"GET\t/healthz HTTP/1.1\r\nhost: a\r\n\r\n",
        "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9,
        "HTTP/2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "a request of RTSP": b"DESCRIBE /healthz RTSP/3.0\r\nhost: a\r\n\r\n",
    }.items():
        yield name, (data, *refused)
    yield "HTTP/2.0", (get(version=b"HTTP/2.0"), [505], False)
    yield "a tunnel", (b"CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n" + NEXT, [501], False)
    yield "a line of 40 KB", (get(HOST + b"x: " + b"a" * 40_000 + b"\r\n"), [431], False)
    yield "a target of 40 KB", (get(path=b"/" + b"a" * 40_000), [431], False)
    yield "2,000 headers", (get(HOST + b"x: a\r\n" * 2000), [431], False)
    yield "a head of 30 KB", (get(HOST + b"x: " + b"a" * 30_000 + b"\r\n"), [200], True)
    yield "empty lines before", (b"\r\n\r\n" + get(), [200], True)
    yield "a header of nothing", (get(HOST + b"x:\r\n"), [200], True)
    yield "a header that is not ASCII", (get(HOST + b"x: \xe9\r\n"), [200], True)
    yield "a whole URL", (get(path=b"http://elsewhere/healthz"), [200], True)
    yield "a whole URL without a path", (get(path=b"http://gateway"), [404], True)
    yield "a question to all", (b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", [404], True)
    yield "HTTP/1.0", (get(b"", version=b"HTTP/1.0"), [200], False)
    yield "HTTP/1.0 that would go on", (
        get(b"connection: keep-alive\r\n", version=b"HTTP/1.0"), [200], False,
    )  # fmt: skip
    yield "HTTP/1.0 with a body", (sized(version=b"HTTP/1.0"), [200], False)
    yield "the last of its connection", (get(HOST + CLOSE) + NEXT, [200], False)
    yield "going on and closing at once", (
        get(HOST + b"connection: keep-alive, close\r\n") + NEXT, [200], False,
    )  # fmt: skip


def lengths() -> Iterable[tuple[str, Case]]:
    refused: tuple[list[int], bool] = ([400], False)
    length, chunks = b"content-length: %d\r\n" % len(BODY), b"transfer-encoding: chunked\r\n"
    smuggled = b"0\r\n\r\n" + NEXT
    for name, fields in {
        "a length and chunks": length + chunks,
        "chunks and a length": chunks + length,
        "two lengths that agree": length * 2,
        "two lengths that differ": length + b"content-length: 5\r\n",
        "two lengths in one line": b"content-length: 5, 5\r\n",
        "a signed length": b"content-length: +5\r\n",
        "a negative length": b"content-length: -5\r\n",
        "a length in hex": b"content-length: 0x5\r\n",
        "a length with a fraction": b"content-length: 5.0\r\n",
        "a length of nothing": b"content-length:\r\n",
        "a length beyond 64 bits": b"content-length: 99999999999999999999999\r\n",
        "chunked twice": b"transfer-encoding: chunked, chunked\r\n",
        "chunked in two lines": chunks * 2,
        "chunked not last": b"transfer-encoding: chunked, gzip\r\n",
        "identity": b"transfer-encoding: identity\r\n",
        "identity and a length": b"transfer-encoding: identity\r\n" + length,
        "a coding of nothing": b"transfer-encoding:\r\n",
        "a coding with a parameter": b"transfer-encoding: chunked;q=1\r\n",
        "a coding with a vertical tab": b"transfer-encoding: \x0bchunked\r\n",
        "a quoted coding": b'transfer-encoding: "chunked"\r\n',
        "a space before the coding's colon": b"transfer-encoding : chunked\r\n",
        "an unknown coding alone": b"transfer-encoding: xchunked\r\n",
    }.items():
        yield name, (post(fields, smuggled), *refused)
    yield "gzip and chunked", (post(b"transfer-encoding: gzip, chunked\r\n", b""), [501], False)
    yield "chunked in capitals", (
        chunked().replace(b"encoding: chunked", b"Encoding: CHUNKED"), [200], True,
    )  # fmt: skip
    yield "chunks in HTTP/1.0", (
        post(chunks, smuggled, version=b"HTTP/1.0"), *refused,
    )  # fmt: skip
    yield "an underscore", (sized(b"transfer_encoding: chunked\r\n"), [200], True)


def chunks() -> Iterable[tuple[str, Case]]:
    refused: tuple[list[int], bool] = ([400], False)
    whole = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)

    def sent(data: bytes) -> bytes:
        return post(b"transfer-encoding: chunked\r\n", data)

    for name, data in {
        "a chunk without a size": b"\r\n" + whole,
        "a size with a sign": b"+" + whole,
        "a size with 0x": b"0x" + whole,
        "a size with a space": whole.replace(b"\r\n", b" \r\n", 1),
        "a size beyond 64 bits": b"f" * 17 + b"\r\n" + BODY,
        "bare line feeds in chunks": whole.replace(b"\r\n", b"\n"),
        "a bare line feed behind an extension": whole.replace(b"\r\n", b";a\n", 1),
        "more than the size": b"5\r\nhello, world\r\n0\r\n\r\n",
        "a length among the trailers": whole[:-2] + b"content-length: 5\r\n\r\n",
    }.items():
        yield name, (sent(data), *refused)
    yield "40 KB of trailers", (
        sent(whole[:-2] + b"x: " + b"a" * 40_000 + b"\r\n\r\n"), [400], False,
    )  # fmt: skip
    yield "an extension", (sent(whole.replace(b"\r\n", b';a="b;c"\r\n', 1)), [200], True)
    yield "an extension of the last", (sent(whole[:-4] + b";x\r\n\r\n"), [200], True)
    yield "zeros before a size", (sent(b"000" + whole), [200], True)
    yield "a trailer", (sent(whole[:-2] + b"x: a\r\n\r\n"), [200], True)
    one_by_one = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    yield "chunks of one byte", (sent(one_by_one), [200], True)


def pipelines() -> Iterable[tuple[str, Case]]:
    yield "four at once", (get() + sized() + chunked() + get(), [200] * 4, True)
    yield "a bad one behind a good one", (get() + b"nonsense\r\n\r\n", [200, 400], False)
    yield "a good one behind a bad one", (get(b"") + NEXT, [400], False)
    yield "a bad one behind one that waits", (sized() + get(b""), [200, 400], False)
    yield "a key in a trailer, for the next", (
        chunked(end=b"0\r\n" + AUTH + b"\r\n") + get(HOST, path=b"/v1/models"), [200, 401], True,
    )  # fmt: skip


CASES: Final = dict(cases())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cut", [lambda data: (data,), by_bytes], ids=["whole", "by bytes"])
def test_each_has_one_right_answer(
    name: str, cut: Callable[[bytes], Iterable[bytes]], line: Line, simulator: SimulatedDashScope
) -> None:
    data, statuses, goes_on = CASES[name]

    line.send(*cut(data))

    answers = line.answers(len(statuses))
    assert [answer.status for answer in answers] == statuses
    assert answers[-1].is_last is not goes_on
    assert not any(answer.is_last for answer in answers[:-1])
    assert line.goes_on() if goes_on else line.has_ended()
    paid: dict[str, Any] = simulator.state()["paid"]
    made = sum(answer.status == 200 and b'"url"' in answer.body for answer in answers)
    assert sum(paid.values()) == made


@pytest.mark.slow
def test_every_one_of_them_is_ours_to_say(line: Line) -> None:
    """The error is OpenAI's, also where no application has seen the request."""
    line.send(get(b""))

    answer = line.answer()

    assert answer.code == "invalid_http"
    assert answer.headers["content-type"] == "application/json"
    assert "date" in answer.headers

"""An answer before the end of the body: it is the connection's last, and the client can read it."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any, Final

import pytest

from gateway.config import Reading
from tests.running import ACME, STRICT, RunningGateway, account, config_for, until
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope
from tests.wire.talking import BODY, FIELDS, NEXT, Dial, Line, chunked, post, sized

HIDDEN: Final = NEXT + sized()
"""Whole requests, to stand where a body is."""
WRONG: Final = FIELDS.replace(ACME.encode(), b"wrong")
JSON: Final = b"content-type: application/json"
LONG: Final = b"content-length: 5000\r\n"
REFUSED: Final = {
    "a wrong key": (post(LONG, HIDDEN, common=WRONG), 401),
    "no key": (post(LONG, HIDDEN, common=b"host: a\r\n"), 401),
    "a path that is none": (post(LONG, HIDDEN, path=b"/v1/images/none"), 404),
    "a method that is none": (post(LONG, HIDDEN).replace(b"POST", b"PUT", 1), 405),
    "a body that is too long": (post(b"content-length: 5000000\r\n", HIDDEN), 413),
    "no JSON": (post(LONG, HIDDEN, common=FIELDS.replace(JSON, b"content-type: text/html")), 415),
    "an encoding": (post(LONG + b"content-encoding: gzip\r\n", HIDDEN), 415),
    "a GET with a body": (post(LONG, HIDDEN, path=b"/healthz").replace(b"POST", b"GET", 1), 200),
    "a wrong key, in chunks": (
        post(b"transfer-encoding: chunked\r\n", b"5000\r\n" + HIDDEN, common=WRONG),
        401,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("expect", [b"", b"expect: 100-continue\r\n"], ids=["", "expecting"])
def test_it_is_the_last_of_its_connection(
    name: str, expect: bytes, line: Line, simulator: SimulatedDashScope
) -> None:
    """What stands in the body is never taken for a request."""
    data, status = REFUSED[name]
    head, end, body = data.partition(b"\r\n\r\n")

    line.send(head + b"\r\n" + expect + end[2:])
    answer = line.answer()
    line.send(body)

    assert (answer.status, answer.is_last) == (status, True)
    assert line.has_ended()
    assert simulator.state()["paid"] == {}


@pytest.mark.parametrize("cut", [10, -1])
def test_one_whose_body_came_with_it_lets_the_connection_go_on(cut: int, line: Line) -> None:
    """A wrong key does not cost a connection where the whole request is there."""
    data = sized(common=WRONG)

    line.send(data[:cut], data[cut:])

    answer = line.answer()
    assert answer.status == 401
    assert line.has_ended() if answer.is_last else line.goes_on()


def test_a_whole_body_that_was_not_read_costs_nothing(line: Line) -> None:
    """What is refused by its head, with all of the body in the same packet."""
    line.send(sized(b"", HIDDEN, common=WRONG) * 2)

    assert [answer.status for answer in line.answers(2)] == [401, 401]
    assert line.goes_on()


def test_a_long_whole_body_that_was_not_read_stops_nothing(
    line: Line, running_gateway: RunningGateway
) -> None:
    """It is over what is kept of a body before reading pauses, and all of it came at once."""
    with running_gateway.busy():
        line.send(sized(b"", b"x" * 90_000, common=WRONG))

    assert (line.answer().status, line.goes_on()) == (401, True)


def test_who_still_sends_can_read_why(line: Line) -> None:
    """Twenty megabytes, of which nothing is read as JSON: closing at once would reset it."""
    line.send(post(b"content-length: 20000000\r\n", b""), *[b"x" * 1_000_000] * 20)

    answer = line.answer()

    assert (answer.status, answer.code) == (413, "request_too_large")
    assert line.rest() == b""


def test_who_never_stops_sending_is_cut_off(dial: Dial, bounds: Any) -> None:
    """At full speed, or at any other."""
    bounds(linger_bytes=1_000_000)
    line = dial()
    line.send(post(b"transfer-encoding: chunked\r\n", b"ffffffff\r\n", common=WRONG))
    assert line.answer().status == 401

    for _ in range(1000):
        if not line.takes(b"x" * 100_000):
            break
    else:
        pytest.fail("a hundred megabytes were taken")


@pytest.mark.slow
def test_an_upload_may_take_its_time(dial: Dial, bounds: Any) -> None:
    """Many clients read nothing before they have sent all of it."""
    bounds(linger_s=0.4)
    line = dial()
    line.send(post(b"content-length: 8000000\r\n", b"", common=WRONG))

    for _ in range(8):
        assert line.takes(b"x" * 1_000_000)
        time.sleep(0.1)

    assert line.answer().status == 401


def test_who_trickles_is_cut_off(dial: Dial, bounds: Any) -> None:
    bounds(linger_s=0.3)
    line = dial()
    line.send(post(b"transfer-encoding: chunked\r\n", b"ffff\r\n", common=WRONG))
    assert line.answer().status == 401

    assert line.takes_no_more_after(3, every_s=0.05)


def test_framing_without_a_body_is_no_body(line: Line) -> None:
    """An extension of a chunk that never ends."""
    line.send(post(b"transfer-encoding: chunked\r\n", b"5;a"), *[b"a" * 8192] * 64)

    answer = line.answer()

    assert (answer.status, answer.is_last) == (400, True)
    assert line.has_ended()


# -- Expect: 100-continue

EXPECT: Final = b"expect: 100-continue\r\n"


def test_who_expects_to_be_asked_is_asked(line: Line) -> None:
    line.send(sized(EXPECT, BODY)[: -len(BODY)])

    assert line.head().status == 100
    line.send(BODY)
    assert line.answer().status == 200
    assert line.goes_on()


@pytest.mark.parametrize("data", [sized(EXPECT), chunked(EXPECT)], ids=["length", "chunks"])
def test_who_does_not_wait_is_not_asked(data: bytes, line: Line) -> None:
    """RFC 9110, 10.1.1: what has come needs no invitation."""
    line.send(data)

    assert line.answer().status == 200
    assert line.goes_on()


def test_nobody_is_asked_for_nothing(line: Line) -> None:
    line.send(sized(EXPECT, b""))

    assert line.answer().status == 400
    assert line.goes_on()


def test_http_1_0_is_asked_nothing(line: Line) -> None:
    """It knows no 100: it would take it for the answer."""
    data = sized(EXPECT, version=b"HTTP/1.0")
    line.send(data[: -len(BODY)])
    assert line.is_silent(0.3)

    line.send(BODY)

    assert line.answer().status == 200
    assert line.has_ended()


def test_another_expectation_is_ignored(line: Line) -> None:
    line.send(sized(b"expect: 200-ok\r\n"))

    assert line.answer().status == 200
    assert line.goes_on()


# -- what nobody has admitted yet


def test_bodies_of_a_tenant_have_a_bound(start: Start, simulator: SimulatedDashScope) -> None:
    """One that sends too many at once is asked to wait; the others do not notice."""
    reading = Reading(tenant_bytes=100_000)
    gateway = start(config_for(account(simulator.base_url), reading=reading))
    with ExitStack() as stack:
        lines = [stack.enter_context(Line(gateway.url)) for _ in range(10)]
        for each in lines:
            each.send(post(b"content-length: 50000\r\n", b"x" * 40_000))
        refused = [each.answer() for each in lines[2:]]
        assert gateway.generate(key=STRICT, size="1024x1024").status_code == 200

    assert {(answer.status, answer.code) for answer in refused} == {(429, "rate_limit_exceeded")}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert all(answer.is_last for answer in refused)


def test_a_body_that_trickles_ends_with_its_time(
    start: Start, simulator: SimulatedDashScope
) -> None:
    """However steadily it comes."""
    reading = Reading(body_timeout_s=0.4)
    gateway = start(config_for(account(simulator.base_url), reading=reading))
    with Line(gateway.url) as line:
        line.send(post(b"content-length: 50000\r\n", b"x"))
        for _ in range(12):
            line.send(b"x")
            time.sleep(0.05)

        answer = line.answer()
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert answer.is_last


def test_heads_have_a_bound_over_all_connections(
    dial: Dial, bounds: Any, running_gateway: RunningGateway
) -> None:
    """Those that come whole are served meanwhile; and the room comes back."""
    bounds(unread_bytes=100_000)
    half = b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 20_000
    lines = [dial() for _ in range(8)]
    for each in lines:
        each.send(half)
    refused = lines[-1].answer()
    assert (refused.status, refused.code) == (503, "service_unavailable")
    assert (refused.headers["retry-after"], refused.is_last) == ("1", True)
    assert dial().goes_on()

    for each in lines:
        each.close()
    until(lambda: running_gateway.unread.size == 0)
    again = dial()
    again.send(half, b"\r\n\r\n")
    assert again.answer().status == 404


@pytest.mark.slow
def test_connections_have_a_bound(dial: Dial, bounds: Any) -> None:
    """Who is there is served on; who comes beyond is told when to come again."""
    first = dial()
    assert first.goes_on()
    bounds(connections=1)
    second = dial()
    second.send(NEXT)

    answer = second.answer()
    assert (answer.status, answer.code) == (503, "service_unavailable")
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("1", "true")
    assert second.has_ended()
    assert first.goes_on()
    assert dial().rest() == b""

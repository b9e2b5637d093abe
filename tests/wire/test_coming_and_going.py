"""Connections that say nothing, say it slowly, send ahead, stop half way or vanish."""

from __future__ import annotations

import json
import time
from typing import Any, Final

import pytest

from gateway.config import Redis
from gateway.config.decode import Secret
from gateway.domain.catalogue import Rate
from tests.running import Client, Logs, account, config_for, until
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope
from tests.wire.talking import BODY, NEXT, PATH, Dial, Line, post, sized

GET: Final = b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n"


@pytest.fixture
def paced(start: Start, simulator: SimulatedDashScope, redis_url: str) -> Client:
    """A gateway that makes one image, and then none for five seconds."""
    one = account(simulator.base_url, rates={"*": Rate(0.2)})
    return start(config_for(one, redis=Redis(url=Secret(redis_url))))


def test_a_connection_that_says_nothing_is_closed_without_a_word(dial: Dial, bounds: Any) -> None:
    """A browser or a pool opens ahead; an answer to nothing would be taken for its next one's."""
    bounds(head_s=0.2)

    assert dial().rest() == b""


@pytest.mark.parametrize("begun", [b"P", b"POST / HTTP/1.1\r\nhost: a\r\n", NEXT[:-1]])
def test_a_head_that_is_begun_must_come_to_its_end(begun: bytes, dial: Dial, bounds: Any) -> None:
    bounds(head_s=0.2)
    line = dial()

    line.send(begun)

    answer = line.answer()
    assert (answer.status, answer.code, answer.is_last) == (408, "invalid_http", True)
    assert line.has_ended()


def test_empty_lines_are_no_beginning(dial: Dial, bounds: Any) -> None:
    """RFC 9112, 2.2: they are skipped; and they buy no time."""
    bounds(head_s=0.3)
    line = dial()

    assert line.takes_no_more_after(3, every_s=0.05, data=b"\r\n")
    assert line.rest() == b""


def test_a_head_that_trickles_has_no_more_time(dial: Dial, bounds: Any) -> None:
    bounds(head_s=0.3, linger_s=0.1)
    line = dial()
    line.send(b"GET / HTTP/1.1\r\nx: ")

    assert line.takes_no_more_after(3, every_s=0.05)


def test_a_kept_connection_is_closed_without_a_word(dial: Dial, bounds: Any) -> None:
    bounds(idle_s=0.2)
    line = dial()
    line.send(GET)
    assert line.answer().status == 200

    assert line.rest() == b""


def test_a_kept_connection_is_kept_so_long(dial: Dial, bounds: Any) -> None:
    """The time for a new connection's first head is not that of a kept one."""
    bounds(head_s=0.1, idle_s=5)
    line = dial()
    line.send(GET)
    assert line.answer().status == 200
    time.sleep(0.4)

    assert line.goes_on()


def test_a_slow_head_behind_an_answer_is_refused_after_it(
    dial: Dial, bounds: Any, simulator: SimulatedDashScope
) -> None:
    """Never before: it would be taken for the answer to the request in front."""
    bounds(head_s=0.1)
    simulator.configure(latency_s=0.5)
    line = dial()

    line.send(sized() + b"GET /hea")

    assert [answer.status for answer in line.answers(2)] == [200, 408]
    assert line.has_ended()


# -- sending ahead


def test_what_is_sent_ahead_is_answered_in_turn(line: Line) -> None:
    line.send(GET * 16)

    assert [answer.status for answer in line.answers(16)] == [200] * 16
    assert line.goes_on()


def test_no_more_is_kept_than_a_client_may_sensibly_send_ahead(
    line: Line, simulator: SimulatedDashScope
) -> None:
    """The rest is not answered, and the last answer says that the connection ends."""
    simulator.configure(latency_s=0.3)

    line.send(sized() + GET * 1000)

    answers = line.answers(17)
    assert {answer.status for answer in answers} == {200}
    assert [answer.is_last for answer in answers] == [False] * 16 + [True]
    assert line.has_ended()


def test_no_body_is_kept_ahead_beyond_a_bound(line: Line, simulator: SimulatedDashScope) -> None:
    """Megabytes behind an image that waits: unread, and not taken for anything."""
    simulator.configure(latency_s=0.5)

    line.send(sized(), post(b"content-length: 5000000\r\n", b""), *[b"x" * 65_536] * 40)

    answer = line.answer()
    assert (answer.status, answer.is_last) == (200, True)
    assert line.has_ended()


def test_what_is_refused_early_ends_what_was_sent_ahead(line: Line) -> None:
    line.send(post(b"content-length: 5000\r\n", BODY, path=b"/none") + GET)

    assert (line.answer().status, line.has_ended()) == (404, True)


# -- leaving


def test_a_half_closed_peer_is_answered(line: Line) -> None:
    """As `printf … | nc -N` asks; and then the connection ends."""
    line.send(GET + NEXT)
    line.half_close()

    assert [answer.status for answer in line.answers(2)] == [200, 200]
    assert line.rest() == b""


def test_a_half_closed_peer_is_not_waited_for(paced: Client, simulator: SimulatedDashScope) -> None:
    """Nobody can tell it from one that has left, for which no picture is paid."""
    assert paced.generate("an owl", model="qwen-image-2.0").status_code == 200
    with Line(paced.url) as line:
        line.send(sized())
        line.half_close()

        assert line.answer().status == 499
        assert line.rest() == b""
    assert sum(simulator.state()["paid"].values()) == 1


@pytest.mark.slow
def test_who_leaves_before_the_first_image_is_told_nothing(
    line: Line, simulator: SimulatedDashScope, logs: Logs
) -> None:
    """What is given up then is no failure, and no line says that it was one."""
    simulator.fault("image_hang")
    line.send(sized(body=BODY[:-1] + b', "response_format": "b64_json"}'))
    until(lambda: simulator.state()["downloads"])
    line.half_close()

    assert line.rest() == b""
    assert [each["outcome"] for each in logs.named("answered")] == ["client_gone"]
    assert logs.named("refused") == []


def test_half_a_body_and_then_the_end_is_no_request(
    line: Line, simulator: SimulatedDashScope
) -> None:
    line.send(post(b"content-length: 5000\r\n"))
    line.half_close()

    answer = line.answer()
    assert (answer.status, answer.is_last) == (408, True)
    assert line.rest() == b""
    assert simulator.state()["paid"] == {}


def test_half_a_head_and_then_the_end_is_nothing(line: Line) -> None:
    line.send(NEXT[:-2])
    line.half_close()

    assert line.rest() == b""


def test_who_vanishes_behind_a_streamed_answer_is_noticed(
    paced: Client, simulator: SimulatedDashScope, logs: Logs
) -> None:
    """What watched over the first request must not end the watch over the second."""
    wanted = json.loads(BODY) | {"response_format": "b64_json"}
    with Line(paced.url) as line:
        line.send(sized(b"", json.dumps(wanted).encode()) + sized())
        assert line.answer().status == 200
        line.reset()

        until(lambda: "client_gone" in {each["outcome"] for each in logs.named("answered")})
    assert sum(simulator.state()["paid"].values()) == 1


@pytest.mark.slow
def test_who_takes_nothing_is_cut_off(dial: Dial, bounds: Any) -> None:
    """Answers that nobody reads hold memory, and cost no key."""
    bounds(stalled_s=0.3)
    line = dial()
    asked = b"GET /metrics HTTP/1.1\r\nhost: gateway\r\n\r\n"

    for _ in range(3000):
        if not line.takes(asked * 10):
            return
        time.sleep(0.005)
    pytest.fail("it was never cut off")


# -- paths


@pytest.mark.parametrize("path", [b"//v1/images/generations", b"/v1//images///generations", PATH])
def test_slashes_too_many_make_no_other_path(path: bytes, gateway: Client, line: Line) -> None:
    """Base URLs end in one: the same request, in the same counts."""
    line.send(sized(path=path))
    assert line.answer().status == 200

    text = gateway.ask("GET", "/metrics").text
    (counted,) = [each for each in text.splitlines() if each.startswith("gateway_requests_total{")]
    assert 'tenant="acme"' in counted
    assert counted.endswith(" 1.0")

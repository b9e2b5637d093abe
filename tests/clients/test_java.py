"""Java's own HTTP client, on which LangChain4j and Spring AI stand: its bytes, and a real one."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.running import ACME, Client
from tests.simulated import SimulatedDashScope
from tests.wire.talking import Line

PROGRAM: Final = Path(__file__).parent / "java" / "Generate.java"
BODY: Final = b'{"model": "dall-e-3", "prompt": "a fox", "n": 1}'
HEAD: Final = (
    b"POST /v1/images/generations HTTP/1.1\r\n"
    b"Connection: Upgrade, HTTP2-Settings\r\n"
    b"Host: 127.0.0.1:8080\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\n"
    b"Upgrade: h2c\r\n"
    b"User-Agent: Java-http-client/17.0.15\r\n"
    b"Authorization: Bearer " + ACME.encode() + b"\r\n"
    b"Content-Type: application/json\r\n"
)
"""As JDK 17 sends it, but for the lengths."""
RECORDED: Final = {
    "LangChain4j, of a known length": HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
    "Spring's RestClient, in chunks": (
        HEAD + b"Transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    ),
}


def paid(simulator: SimulatedDashScope) -> int:
    return sum(simulator.state(log=0)["paid"].values())


@pytest.mark.parametrize("name", RECORDED)
def test_its_bytes_are_one_request_each(
    name: str, gateway: Client, simulator: SimulatedDashScope
) -> None:
    """The offer of HTTP/2 is not taken, the body is read, and the connection goes on."""
    with Line(gateway.url) as line:
        for count in (1, 2):
            line.send(RECORDED[name])
            answer = line.answer()

            assert answer.status == 200
            assert json.loads(answer.body)["data"][0]["url"]
            assert paid(simulator) == count
        assert line.goes_on()


@pytest.mark.slow
def test_a_real_one_gets_its_pictures_and_its_errors(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    if not shutil.which("java"):
        pytest.skip("java was not found: install default-jdk-headless")
    ran = subprocess.run(
        ["java", PROGRAM, f"{gateway.url}/v1", ACME, "a fox", "[simulate:html_502]"],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    made, in_chunks, lost, again = (line.split(" ", 2) for line in ran.stdout.splitlines())

    for version, status, body in (made, in_chunks):
        assert (version, status) == ("HTTP_1_1", "200")
        assert json.loads(body)["data"][0]["url"]
    for _, status, body in (lost, again):
        assert status == "502"
        assert json.loads(body)["error"]["code"] == "upstream_outcome_unknown"
    assert paid(simulator) == 2
    assert sum(simulator.state(log=0)["calls"].values()) == 3  # the repeat was not sent

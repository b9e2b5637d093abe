"""The runners against a stub: what they report is what was sent."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from tests.peers.run import PEERS, run_peer

pytestmark = pytest.mark.peers

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 640, 480) + b"rest"
PNG_SHA256 = hashlib.sha256(PNG).hexdigest()


class Stub(BaseHTTPRequestHandler):
    """Answers by the prompt it is asked for."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[dict[str, Any]]]
    together: ClassVar[threading.Barrier]

    def do_GET(self) -> None:
        if self.path == "/picture.png":
            self._reply(200, PNG if "authorization" not in self.headers else b"a key was sent")
        elif self.path == "/v1/models":
            models = [
                {"id": name, "object": "model", "created": 1, "owned_by": "x"} for name in "ab"
            ]
            self._reply(200, {"object": "list", "data": models})
        else:
            name = self.path.rpartition("/")[2]
            self._reply(200, {"id": name, "object": "model", "created": 1, "owned_by": "x"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append({**body, "x-extra": self.headers["x-extra"]})
        match body["prompt"]:
            case "refused":
                error = {"message": "no", "type": "t", "param": "size", "code": "c"}
                self._reply(400, {"error": error})
            case "throttled":
                error = {"message": "wait", "type": "t", "param": "", "code": "slow"}
                self._reply(429, {"error": error})
            case "together":
                self.together.wait(20)
                self._reply(200, {"created": 7, "data": []})
            case _:
                data = [
                    {"url": f"http://{self.headers['host']}/picture.png"},
                    {"b64_json": base64.b64encode(PNG).decode()},
                ]
                self._reply(200, {"created": 7, "data": data})

    def _reply(self, status: int, body: bytes | dict[str, Any]) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.send_header("x-request-id", "req-1")
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[str]:
    Stub.seen = []
    Stub.together = threading.Barrier(3)
    with ThreadingHTTPServer(("127.0.0.1", 0), Stub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def generate(prompt: str, **args: Any) -> dict[str, Any]:
    return {"method": "images.generate", "args": {"model": "m", "prompt": prompt, **args}}


@pytest.mark.parametrize("peer", PEERS)
def test_success(peer: str, stub: str) -> None:
    call = generate("a fox", extra_body={"seed": 7}, extra_headers={"x-extra": "yes"})
    [reply] = run_peer(peer, scenario(stub, [{**call, "fetch": True}]))

    assert Stub.seen == [{"model": "m", "prompt": "a fox", "seed": 7, "x-extra": "yes"}]
    assert reply["ok"]
    assert reply["request_id"] == "req-1"
    assert reply["created"] == 7
    assert reply["type_of_created"] in {"int", "number"}
    assert reply["attempts"] == 1
    assert reply["headers"]["x-request-id"] == "req-1"
    by_url, inline = reply["data"]
    assert by_url["fetched"]["sha256"] == PNG_SHA256
    assert by_url["fetched"]["png_size"] == [640, 480]
    assert inline["b64_sha256"] == PNG_SHA256
    assert inline["png_size"] == [640, 480]
    assert inline["url"] is None


@pytest.mark.parametrize("peer", PEERS)
def test_failure_and_retries(peer: str, stub: str) -> None:
    calls = [generate("refused"), generate("throttled")]
    refused, throttled = run_peer(peer, scenario(stub, calls, max_retries=2))

    assert refused["class"] == "BadRequestError"
    assert refused["status"] == 400
    assert (refused["code"], refused["type"], refused["param"]) == ("c", "t", "size")
    assert "no" in refused["message"]
    assert refused["request_id"] == "req-1"
    assert refused["attempts"] == 1
    assert throttled["class"] == "RateLimitError"
    assert throttled["attempts"] == 3


@pytest.mark.parametrize("peer", PEERS)
def test_models(peer: str, stub: str) -> None:
    calls = [{"method": "models.list"}, {"method": "models.retrieve", "id": "b"}]
    listed, one = run_peer(peer, scenario(stub, calls))

    assert listed["ids"] == ["a", "b"]
    assert one["id"] == "b"


@pytest.mark.parametrize("peer", PEERS)
def test_calls_run_together_when_asked(peer: str, stub: str) -> None:
    """The stub answers none of the three before all have arrived."""
    replies = run_peer(peer, scenario(stub, [generate("together")] * 3, concurrency=3))

    assert [reply["ok"] for reply in replies] == [True, True, True]


@pytest.mark.parametrize("peer", PEERS)
def test_a_refused_connection_is_a_reply(peer: str) -> None:
    [reply] = run_peer(peer, scenario("http://127.0.0.1:9/v1", [generate("a fox")]))

    assert reply["class"] == "APIConnectionError"
    assert reply["status"] is None


def scenario(base_url: str, calls: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"base_url": base_url, "api_key": "k", "timeout": 20, "calls": calls, **more}

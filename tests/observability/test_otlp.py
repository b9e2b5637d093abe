"""Spans as a collector gets them: from real workers, over HTTP, decoded by OpenTelemetry's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from gateway.app import installed_version
from tests.operations.site import document, write
from tests.reliability.fleet import PATIENT
from tests.running import ACME, SECRETS, GatewayProcess
from tests.security.secrets_search import Search
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

TRACE_ID: Final = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID: Final = "b7ad6b7169203331"
PROMPT: Final = "a very private fox"
PARTS: Final = ["download", "queue", "store", "store", "upstream"]
"""What a request waits for: limits as it begins and ends, a slot, the vendor, its image."""
SLACK_NS: Final = 20_000_000
"""What reading two clocks may differ by."""


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP as the specification has it: protobuf, by POST, at /v1/traces."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self.server_port}/v1/traces"
        self.bodies: list[bytes] = []

    def spans(self) -> list[Span]:
        """All that came, after a look at what they are said to come from."""
        found: list[Span] = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = {one.key: one.value.string_value for one in resource.resource.attributes}
                assert about["service.name"] == "image-gateway"
                assert about["service.version"] == installed_version()
                for scope in resource.scope_spans:
                    found += scope.spans
        return found


class Receiver(BaseHTTPRequestHandler):
    """One connection to the collector."""

    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        is_otlp = self.headers["content-type"] == "application/x-protobuf"
        if is_otlp and self.path == "/v1/traces":
            self.server.bodies.append(body)
        self.send_response(200 if is_otlp else 415)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_collector_gets_every_span_of_every_worker(
    collector: Collector, tmp_path: Path, simulator: SimulatedDashScope, redis_url: str
) -> None:
    """The request below its caller's span, what it waited for below the request, and no secret."""
    content = document(
        simulator.base_url,
        redis={"url": redis_url, **PATIENT},
        otlp_endpoint=collector.url,
        lame_duck_s=0.0,
    )
    path = write(tmp_path / "gateway.yaml", content)
    with GatewayProcess.serving(
        path, "--workers", "2", environment={"NO_PROXY": "127.0.0.1"}
    ) as gateway:
        answers = [ask(gateway.url, number) for number in range(8)]  # each on a new connection
        gateway.stop()
        assert gateway.ended() == 0

    spans = collector.spans()
    wholes = {
        attributes(span)["request_id"]: span for span in spans if span.name == "image request"
    }
    assert len(spans) == len(answers) * (1 + len(PARTS))
    for number, answer in enumerate(answers):
        whole = wholes[answer.headers["x-request-id"]]
        parts = [span for span in spans if span.parent_span_id == whole.span_id]
        assert whole.trace_id.hex() == trace_id(number)
        assert whole.parent_span_id.hex() == SPAN_ID
        assert whole.kind == Span.SPAN_KIND_SERVER
        assert attributes(whole) == {
            "tenant": "acme",
            "model": "qwen-image-2.0",
            "outcome": "ok",
            "request_id": answer.headers["x-request-id"],
            "http.response.status_code": 200,
        }
        assert sorted(span.name for span in parts) == PARTS
        for part in parts:
            assert part.trace_id == whole.trace_id
            assert whole.start_time_unix_nano - SLACK_NS <= part.start_time_unix_nano
            assert part.start_time_unix_nano <= part.end_time_unix_nano
            assert part.end_time_unix_nano <= whole.end_time_unix_nano + SLACK_NS
    search = Search(SECRETS | {"the prompt": PROMPT})
    for body in collector.bodies:
        search.add("what the collector got", body)
    assert search.found() == []


def ask(url: str, number: int) -> httpx.Response:
    answer = httpx.post(
        f"{url}/v1/images/generations",
        headers={
            "authorization": f"Bearer {ACME}",
            "traceparent": f"00-{trace_id(number)}-{SPAN_ID}-01",
        },
        json={
            "model": "qwen-image-2.0",
            "prompt": PROMPT,
            "size": "512x512",
            "response_format": "b64_json",
        },
        trust_env=False,
        timeout=20,
    )
    assert answer.status_code == 200
    return answer


def trace_id(number: int) -> str:
    return TRACE_ID[:-1] + format(number, "x")


def attributes(span: Span) -> dict[str, object]:
    return {
        one.key: getattr(one.value, one.value.WhichOneof("value") or "") for one in span.attributes
    }

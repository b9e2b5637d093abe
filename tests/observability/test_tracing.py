"""Spans, where they are asked for, and nothing of OpenTelemetry where they are not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.config import checks
from gateway.observability.tracing import Tracer
from tests.running import Client, account, config_for, until
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(
    spans: InMemorySpanExporter,
    start: Start,
    simulator: SimulatedDashScope,
    monkeypatch: pytest.MonkeyPatch,
) -> Client:
    """A gateway whose spans stay in memory."""

    def open_tracer(endpoint: str, version: str) -> Tracer:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(spans))
        return Tracer(provider)

    monkeypatch.setattr("gateway.app.open_tracer", open_tracer)
    monkeypatch.setattr(checks, "has_tracing", lambda: True)
    config = config_for(account(simulator.base_url), otlp_endpoint="http://collector/v1/traces")
    return start(config)


def finished(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    until(lambda: "image request" in [span.name for span in spans.get_finished_spans()])
    return {span.name: span for span in spans.get_finished_spans()}


def test_a_request_is_a_span_below_the_caller_s(
    traced: Client, spans: InMemorySpanExporter
) -> None:
    answer = traced.generate(
        model="qwen-image-2.0",
        response_format="b64_json",
        headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"},
    )

    found = finished(spans)
    whole = found.pop("image request")
    assert whole.context is not None
    assert whole.parent is not None
    assert format(whole.context.trace_id, "032x") == TRACE_ID
    assert format(whole.parent.span_id, "016x") == SPAN_ID
    assert (whole.attributes or {})["request_id"] == answer.headers["x-request-id"]
    assert found.keys() == {"store", "queue", "upstream", "download"}
    for part in found.values():
        assert part.parent is not None
        assert part.parent.span_id == whole.context.span_id
        assert within(part, whole)


def within(part: ReadableSpan, whole: ReadableSpan) -> bool:
    """Whether a span lies in another, but for what reading two clocks may differ by."""
    times = (whole.start_time, part.start_time, part.end_time, whole.end_time)
    known = [time for time in times if time is not None]
    slack = 20_000_000
    return len(known) == len(times) and all(a <= b + slack for a, b in pairwise(known))


def test_a_caller_that_does_not_sample_gets_no_spans(
    traced: Client, spans: InMemorySpanExporter
) -> None:
    traced.generate(headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"}, model="none")
    traced.generate(model="none")

    assert len(finished(spans)) == 1
    assert [span.parent for span in spans.get_finished_spans()] == [None]


def test_nothing_is_needed_where_traces_are_off() -> None:
    """A gateway starts where OpenTelemetry cannot be imported."""
    code = """
import sys
sys.modules["opentelemetry"] = None
from gateway.app import create_app
from tests.running import account, config_for
create_app(config_for(account("http://127.0.0.1:9/api/v1")))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_endpoint_without_the_extra_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Callable[[str], Any] = lambda _: None  # noqa: E731 - as short as it is
    monkeypatch.setattr(checks, "find_spec", missing)
    config = config_for(account("https://vendor/api/v1"), otlp_endpoint="http://collector")

    [fault] = [one for one in checks.faults_of_meaning(config) if one.path == "otlp_endpoint"]

    assert "otel" in fault.message

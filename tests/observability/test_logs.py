"""One line for each request, in one form whoever writes it, and without secrets."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import structlog

from gateway.config import Tenant, with_catalogue
from gateway.observability.log_writer import log_writer
from gateway.observability.logs import configure_logs, masker
from tests.observability.scraping import configuration
from tests.redis_server import RedisServer
from tests.running import (
    ACME,
    REQUEST_ID,
    UPSTREAM_KEY,
    Client,
    GatewayProcess,
    Logs,
    account,
    config_for,
    key_of,
    tenants,
)
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

Written = Callable[[], str]
TRACEPARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRETS: Final = ("hunter2-redis", "vendor/key+with=signs", "p@ss\"word'")


@pytest.fixture
def written(capfd: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """What came out on standard error; the logging is put back afterwards."""
    root = logging.getLogger()
    handlers, level, shown = root.handlers[:], root.level, warnings.showwarning

    def read() -> str:
        log_writer.flush()
        return capfd.readouterr().err

    yield read
    logging.captureWarnings(capture=False)
    warnings.showwarning = shown
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    masker.forget()


def answered(logs: Logs) -> dict[str, Any]:
    [line] = logs.named("answered")
    return line


def test_a_request_s_line_says_what_it_did(gateway: Client, logs: Logs) -> None:
    answer = gateway.generate("a fox", model="qwen-image-2.0", n=2, size="512x512")

    line = answered(logs)
    assert answer.status_code == 200
    assert line["request_id"] == answer.headers["x-request-id"]
    assert [*map(bool, line["upstream_request_ids"])] == [True]
    assert (line["tenant"], line["key"]) == ("acme", "test")
    assert (line["model"], line["outcome"], line["status"]) == ("qwen-image-2.0", "ok", 200)
    assert (line["n"], line["images"], line["size"]) == (2, 2, "512x512")
    assert (line["cost"], line["cache"]) == ("0.4", "bypass")
    assert line["prompt_length"] == 5
    assert "prompt" not in line
    timings = [line[f"{name}_ms"] for name in ("store", "queue", "upstream", "overhead")]
    assert min(timings) >= 0
    assert max(timings) <= line["ms"]


def test_a_download_is_timed_and_is_not_the_gateway_s_own_time(
    gateway: Client, logs: Logs, simulator: SimulatedDashScope
) -> None:
    simulator.configure(image_bytes=400_000)
    simulator.fault("image_slow", bytes_per_s=1_000_000)

    gateway.generate(model="qwen-image-2.0", response_format="b64_json")

    line = answered(logs)
    assert line["download_ms"] >= 200
    assert line["overhead_ms"] <= line["ms"] - line["download_ms"] + 1


def test_a_failure_s_line(gateway: Client, logs: Logs) -> None:
    gateway.generate("a fox [simulate:DataInspectionFailed]", model="qwen-image-2.0")

    line = answered(logs)
    assert line["outcome"] == "moderation_blocked"
    assert (line["images"], line["cost"]) == (0, "0")
    assert len(line["upstream_request_ids"]) == 1


def test_a_tenant_may_have_its_prompts_logged(
    start: Start, simulator: SimulatedDashScope, logs: Logs
) -> None:
    [acme, *_] = tenants()
    open_minded = Tenant(name=acme.name, keys=acme.keys, log_prompts=True)
    config = config_for(account(simulator.base_url), tenants=(open_minded,))

    start(with_catalogue(config)).generate("a fox", model="qwen-image-2.0")

    assert answered(logs)["prompt"] == "a fox"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (TRACEPARENT, True),
        ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", True),
        (TRACEPARENT + "-more", False),
        ("ff" + TRACEPARENT[2:], False),
        (TRACEPARENT.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32), False),
        (TRACEPARENT.replace("b7ad6b7169203331", "0" * 16), False),
        (TRACEPARENT.upper(), False),
        ("evil", False),
    ],
)
def test_the_caller_s_trace_is_in_the_log(
    sent: str, kept: bool, gateway: Client, logs: Logs
) -> None:
    gateway.generate(model="none", headers={"traceparent": sent})

    expected = "0af7651916cd43dd8448eb211c80319c" if kept else None
    assert answered(logs).get("trace_id") == expected


@pytest.mark.parametrize(
    "name", ["gateway.tenants.local_limits", "gateway.pacing", "uvicorn.error", "redis"]
)
def test_libraries_write_the_same_form(name: str, written: Written) -> None:
    configure_logs(json_lines=True)

    logging.getLogger(name).warning("limits are enforced\nwithout %s", "the store")

    [line] = written().splitlines()
    told = json.loads(line)
    assert told["event"] == "limits are enforced\nwithout the store"
    assert (told["logger"], told["level"]) == (name, "warning")
    assert told["timestamp"].endswith("Z")


def test_tracebacks_and_warnings_of_libraries_are_one_line(written: Written) -> None:
    configure_logs(json_lines=True)
    try:
        raise ValueError("inside")  # noqa: TRY301 - it is the traceback that is wanted
    except ValueError:
        logging.getLogger("asyncio").exception("Task exception was never retrieved")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    lines = [json.loads(line) for line in written().splitlines()]
    assert "ValueError: inside" in lines[0]["exception"]
    assert "old" in lines[1]["event"]


@pytest.mark.parametrize("json_lines", [True, False])
def test_secrets_cannot_be_printed(json_lines: bool, written: Written) -> None:
    """By nobody, in no field, in no traceback, in either form."""
    configure_logs(json_lines=json_lines, secrets=SECRETS)
    shapes = (
        ACME,
        UPSTREAM_KEY,
        "Bearer abcdef0123456789",
        "redis://:swordfish1@host/0",
        "https://h/x.png?Expires=1&Signature=abc%2Bdef%3D&b=c",
    )
    log = structlog.get_logger()
    for secret in (*SECRETS, *shapes):
        log.warning("leak", text=f"it is {secret}!", deep={"a": [secret]})
        logging.getLogger("redis").error("cannot log in with %s", secret)
        try:
            raise ValueError(secret)  # noqa: TRY301 - it is the traceback that is wanted
        except ValueError:
            log.exception("fault")

    output = written()
    assert "leak" in output
    hidden = (*SECRETS, ACME, UPSTREAM_KEY, "abcdef0123456789", "swordfish1", "abc%2Bdef")
    for secret in hidden:
        assert secret not in output
        assert json.dumps(secret)[1:-1] not in output
    assert "https://h/x.png?Expires=1" in output


def test_a_configuration_names_its_secrets() -> None:
    config = config_for(account("https://vendor/api/v1"))

    assert list(config.secrets()) == [UPSTREAM_KEY]


@pytest.mark.slow
def test_a_process_writes_nothing_but_lines_of_json(
    own_redis_server: RedisServer, simulator: SimulatedDashScope, tmp_path: Path
) -> None:
    """Not even while Redis goes away under it; and no secret in any of them."""
    file = tmp_path / "gateway.yaml"
    file.write_text(configuration(simulator.base_url, own_redis_server.url))
    body = {"prompt": "a fox", "model": "qwen-image-2.0"}
    key = key_of("small")
    with GatewayProcess.serving(file, "--port", "0", "--workers", "2") as gateway:
        for _ in range(4):
            answer = httpx.post(
                f"{gateway.url}/v1/images/generations",
                json=body,
                headers={"authorization": f"Bearer {key}"},
                trust_env=False,
                timeout=20,
            )
            assert REQUEST_ID.fullmatch(answer.headers["x-request-id"])
            own_redis_server.close()
        gateway.stop()
        gateway.ended()
        output = gateway.output

    greeting = ("gateway: listening", "  ")
    lines = [line for line in output.splitlines() if not line.startswith(greeting)]
    told = [json.loads(line) for line in lines]
    assert sum(line["event"] == "answered" for line in told) == 4
    assert any(line["event"] == "store_lost" for line in told)
    assert key not in output
    assert UPSTREAM_KEY not in output
    assert not re.search(r"Signature=\w", output)

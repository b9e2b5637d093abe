"""The `gateway` command as its operator meets it: what it prints, how it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from gateway.cli import main
from gateway.tenants.keys import hash_key, new_key
from tests.running import ROOT, UPSTREAM_KEY, GatewayProcess, until
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

KEY: Final = new_key()
FAULTS: Final = ROOT / "tests" / "config_faults"


def write_config(folder: Path, base_url: str, entry: str, more: str = "") -> Path:
    path = folder / "gateway.yaml"
    path.write_text(f"""
listen: {{host: 127.0.0.1, port: 0}}
accounts:
  - {{name: one, base_url: "{base_url}", api_key: "${{UPSTREAM}}", rates: {{"*": unlimited}}}}
images: {{allowed_hosts: [127.0.0.1], allow_http: true}}
tenants:
  - name: acme
    keys:
      {entry}
{more}
""")
    return path


def entry_for(key: str) -> str:
    return f'- {{hash: "{hash_key(key)}", label: ci}}'


@pytest.fixture
def config(tmp_path: Path, simulator: SimulatedDashScope) -> Path:
    return write_config(tmp_path, simulator.base_url, entry_for(KEY))


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM", UPSTREAM_KEY)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The command inside this process: its status, output and errors."""
    status = 0
    try:
        main(list(arguments))
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    out, err = capsys.readouterr()
    return status, out, err


def generate(url: str, key: str = KEY, **fields: Any) -> httpx.Response:
    return httpx.post(
        f"{url}/v1/images/generations",
        json={"prompt": "a fox", "model": "qwen-image-2.0", "size": "512x512", **fields},
        headers={"authorization": f"Bearer {key}"},
        timeout=20,
        trust_env=False,
    )


def test_a_good_file_passes(
    capsys: pytest.CaptureFixture[str], config: Path, upstream: None
) -> None:
    status, out, err = run(capsys, "check-config", str(config))

    assert (status, err) == (0, "")
    assert "no faults. 1 accounts, 1 tenants" in out
    assert UPSTREAM_KEY not in out


def test_every_fault_is_shown_and_the_status_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    file = FAULTS / "many_faults_at_once.yaml"
    expected = [line[2:] for line in file.read_text().splitlines() if line.startswith("# ")]

    status, out, err = run(capsys, "check-config", str(file))

    assert (status, out) == (1, "")
    assert err.splitlines()[0] == f"{file}: {len(expected)} faults"
    assert [line.strip() for line in err.splitlines()[1:]] == expected


def test_a_file_that_is_not_there_is_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, _, err = run(capsys, "check-config", str(tmp_path / "none.yaml"))

    assert status == 1
    assert "No such file or directory" in err
    assert "Traceback" not in err


def test_serve_refuses_a_faulty_file_in_the_same_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = str(FAULTS / "key_in_clear.yaml")
    checked = run(capsys, "check-config", file)

    assert run(capsys, "serve", "--config", file) == checked


def test_a_new_key_s_first_line_is_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    """And only its hash is printed to be kept."""
    status, out, _ = run(capsys, "new-key", "acme")

    key, *rest = out.splitlines()
    assert status == 0
    assert re.fullmatch(r"sk-gw-[A-Za-z0-9]+-[A-Za-z0-9]{30,}", key)
    assert hash_key(key) in "\n".join(rest)
    assert key not in "\n".join(rest)


@pytest.mark.parametrize("workers", ["0", "-1", "2"])
def test_several_workers_need_redis(
    workers: str, capsys: pytest.CaptureFixture[str], config: Path, upstream: None
) -> None:
    status, _, err = run(capsys, "serve", "--config", str(config), "--workers", workers)

    assert status == 1
    assert "--workers" in err
    assert len(err.splitlines()) == 1


def test_a_port_in_use_is_a_sentence(
    capsys: pytest.CaptureFixture[str], config: Path, upstream: None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = run(capsys, "serve", "--config", str(config), "--port", str(port))

    assert status == 1
    assert f"cannot listen on 127.0.0.1:{port}" in err
    assert len(err.splitlines()) == 1


def test_an_address_that_is_not_ours_is_a_sentence(
    capsys: pytest.CaptureFixture[str], config: Path, upstream: None
) -> None:
    status, _, err = run(capsys, "serve", "--config", str(config), "--host", "192.0.2.1")

    assert status == 1
    assert "cannot listen on 192.0.2.1:0" in err


def test_help_lists_the_commands() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "gateway", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )

    for command in ("serve", "check-config", "new-key", "simulate", "demo"):
        assert command in told.stdout


@pytest.mark.parametrize(
    "command", ["", "serve", "demo", "simulate", "usage", "cache", "cache stats", "cache purge"]
)
def test_each_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Of every option, too, which says more than its name."""
    status, out, _ = run(capsys, *command.split(), "--help")

    assert status == 0
    assert out.startswith(f"usage: gateway {command}".rstrip())
    for option in re.findall(r"^  (?:-h, )?(--[a-z]+)(.*)$", out, re.MULTILINE):
        assert re.search(r"\S  +\S", " ".join(option)), option


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("frob", "invalid choice: 'frob'"),
        ("serve", "the following arguments are required: --config"),
        ("serve --conf gateway.yaml", "the following arguments are required: --config"),
        ("demo --port many", "argument --port: invalid int value: 'many'"),
        ("usage --config c --since soon", "'soon' is no UTC time such as 2026-11-01"),
        ("new-key", "the following arguments are required: TENANT"),
    ],
)
def test_a_wrong_argument_is_a_sentence_and_status_2(
    command: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, *command.split())

    assert (status, out) == (2, "")
    assert sentence in err


def test_a_new_key_pasted_into_the_file_opens_the_gateway(
    tmp_path: Path, simulator: SimulatedDashScope
) -> None:
    """The whole way of an operator: make a key, paste its entry, serve, call."""
    made = subprocess.run(
        [sys.executable, "-m", "gateway", "new-key", "acme"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    key, *_, entry = made.stdout.splitlines()
    config = write_config(tmp_path, simulator.base_url, entry)

    with GatewayProcess.serving(config, environment={"UPSTREAM": UPSTREAM_KEY}) as gateway:
        assert generate(gateway.url, key).status_code == 200
        assert generate(gateway.url, KEY).status_code == 401
        gateway.stop()
        assert gateway.ended() == 0
    assert key not in gateway.output
    assert UPSTREAM_KEY not in gateway.output


def test_a_signal_lets_what_is_under_way_finish(
    config: Path, simulator: SimulatedDashScope
) -> None:
    """A generation that was paid for reaches its client; new ones find the door closed."""
    simulator.configure(latency_s=0.8)
    environment = {"UPSTREAM": UPSTREAM_KEY}
    with (
        GatewayProcess.serving(config, environment=environment) as gateway,
        ThreadPoolExecutor() as threads,
    ):
        under_way = threads.submit(generate, gateway.url, response_format="b64_json")
        until(lambda: simulator.state(log=0)["in_flight"] == 1)
        gateway.stop(signal.SIGTERM)

        assert under_way.result().status_code == 200
        assert gateway.ended() == 0
        with pytest.raises(httpx.ConnectError):
            generate(gateway.url)


def test_the_log_has_a_line_per_answer_and_no_secret(
    config: Path, simulator: SimulatedDashScope
) -> None:
    """JSON lines where nobody watches; neither keys nor prompts in any of them."""
    with GatewayProcess.serving(config, environment={"UPSTREAM": UPSTREAM_KEY}) as gateway:
        generate(gateway.url, prompt="a very private fox")
        generate(gateway.url, key="sk-wrong-key")
        simulator.fault("InvalidApiKey", message=f"no: Bearer {UPSTREAM_KEY[:6]}")
        generate(gateway.url)
        gateway.wait_for(r'"status": ?502')
        gateway.stop()
        gateway.ended()

    lines = [json.loads(line) for line in gateway.output.splitlines() if line.startswith("{")]
    answers = [line for line in lines if line["event"] == "answered"]
    assert [line["status"] for line in answers] == [200, 401, 502]
    assert all(line["request_id"].startswith("req_") for line in answers)
    assert [line["upstream_request_id"] for line in lines if line["event"] == "upstream_answered"]
    for secret in (KEY, UPSTREAM_KEY, "sk-wrong-key", "private fox"):
        assert secret not in gateway.output


def test_the_demo_s_printed_line_works_as_pasted() -> None:
    """No file, no account: one command, and the line that it prints returns an image."""
    with GatewayProcess("demo", "--port", "0", environment={"DASHSCOPE_API_KEY": ""}) as gateway:
        printed = gateway.wait_for(r"(?s)tenant key +(sk-gw-\S+).*?\n(curl (?:.*\\\n)*.*)\n")
        image = json.loads(paste(printed[2]))["data"][0]
        assert httpx.get(image["url"], trust_env=False).content.startswith(b"\x89PNG")
        assert "simulator" in gateway.output
        gateway.stop()
        assert gateway.ended() == 0
    simulator = int(re.search(r"simulator on port (\d+)", gateway.output)[1])  # type: ignore[index]
    until(lambda: not is_open(simulator))


def test_a_demo_that_is_killed_takes_its_simulator_along() -> None:
    """It has no chance to end anything: the simulator notices by itself."""
    with GatewayProcess("demo", "--port", "0", environment={"DASHSCOPE_API_KEY": ""}) as gateway:
        simulator = int(gateway.wait_for(r"simulator on port (\d+)")[1])
        assert is_open(simulator)
        gateway.stop(signal.SIGKILL)
        until(lambda: not is_open(simulator))


def paste(line: str) -> str:
    """What a shell answers to a curl line, or what curl would where there is none."""
    if shutil.which("curl"):
        run = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
        assert run.returncode == 0, line
        return run.stdout
    words = shlex.split(line.replace("\\\n", " "))
    headers = dict(words[i + 1].split(": ", 1) for i, word in enumerate(words) if word == "-H")
    content = words[words.index("-d") + 1]
    [url] = [word for word in words if word.startswith("http://")]
    return httpx.post(url, content=content, headers=headers, trust_env=False, timeout=20).text


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_simulator_runs_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with GatewayProcess("simulate", "--port", str(port)) as simulator:
        until(lambda: is_open(port))
        answer = httpx.post(
            f"http://127.0.0.1:{port}/api/v1/services/aigc/multimodal-generation/generation",
            json={}, trust_env=False,
        )  # fmt: skip
        simulator.stop()
        simulator.ended()

    assert answer.status_code == 401
    assert answer.json()["code"] == "InvalidApiKey"


def test_it_is_ready_quickly(config: Path) -> None:
    """A restart must not be felt: a few seconds, on a busy machine too."""
    started = time.monotonic()
    with GatewayProcess.serving(config, environment={"UPSTREAM": UPSTREAM_KEY}) as gateway:
        assert httpx.get(f"{gateway.url}/healthz", trust_env=False).json() == {"status": "ok"}
        assert httpx.get(f"{gateway.url}/readyz", trust_env=False).status_code == 200
        assert time.monotonic() - started < 10
        gateway.stop(signal.SIGINT)
        gateway.ended()


@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [
        ("usage --config {config}", ""),
        ("usage acme --json --config {config}", "1"),
        ("usage --by model --config {config}", "1"),
        ("cache stats --config {config}", ""),
        ("cache stats --json --config {config}", "1"),
        ("cache purge --config {config}", ""),
        ("check-config {config}", ""),
        ("new-key acme", ""),
        ("simulate --port 0", ""),
    ],
)
def test_a_reader_that_had_enough_is_no_error(
    command: str, unbuffered: str, tmp_path: Path, redis_url: str, simulator: SimulatedDashScope
) -> None:
    """As in `gateway usage | head -1`: it dies of SIGPIPE, 141 in a shell, without a word."""
    log = tmp_path / "usage.jsonl"
    log.touch()
    more = f"redis: {{url: '{redis_url}'}}\nusage_log: {log}"
    config = write_config(tmp_path, simulator.base_url, entry_for(KEY), more)

    with unread_pipe() as unread:
        ended = subprocess.run(
            [sys.executable, "-m", "gateway", *command.format(config=config).split()],
            stdout=unread,
            stderr=subprocess.PIPE,
            timeout=20,
            check=False,
            cwd=ROOT,
            env={**os.environ, "UPSTREAM": UPSTREAM_KEY, "PYTHONUNBUFFERED": unbuffered},
        )

    assert (ended.returncode, ended.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_whose_words_nobody_reads_serves_and_ends_as_any(
    workers: int, tmp_path: Path, redis_url: str, simulator: SimulatedDashScope
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    more = f"redis: {{url: '{redis_url}'}}"
    config = write_config(tmp_path, simulator.base_url, entry_for(KEY), more)
    options = ("--config", str(config), "--port", str(port), "--workers", str(workers))

    with (
        unread_pipe() as unread,
        subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", *options],
            stdout=unread,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "UPSTREAM": UPSTREAM_KEY},
        ) as server,
    ):
        try:
            until(lambda: is_open(port), 30)
            status = generate(f"http://127.0.0.1:{port}").status_code
            server.terminate()
            _, err = server.communicate(timeout=20)
        finally:
            server.kill()

    assert (status, server.returncode) == (200, 0)
    assert b"Traceback" not in err


@contextmanager
def unread_pipe() -> Iterator[int]:
    """The end to write to of a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)

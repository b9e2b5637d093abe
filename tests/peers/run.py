"""Calls the gateway with the SDKs that its users have: four versions, each in its own environment.

    replies = run_peer("openai-2", {
        "base_url": "http://127.0.0.1:8080/v1",
        "api_key": "gw-…",
        "max_retries": 0,
        "timeout": 5,
        "calls": [
            {
                "method": "images.generate",
                "args": {"model": "…", "prompt": "…", "extra_body": {}, "extra_headers": {}},
                "fetch": True,
            },
            {
                "method": "images.edit",
                "args": {"model": "…", "prompt": "…"},
                "pictures": [{"as": "path", "path": "…"}, {"as": "BytesIO", "path": "…"}],
            },
            {"method": "models.list"},
            {"method": "models.retrieve", "id": "qwen-image"},
        ],
        "concurrency": 8,
    })

A picture is given as `path`, `file`, `bytes`, `BytesIO` or `tuple`, in Node by the nearest that it
has; a single one is given by itself, or in a list where the call says `"list": true`.

With `"azure": "2025-04-01-preview"` the SDK's client for Azure makes them; its `base_url` is the
host, or ends in `/v1`.

There is one reply per call, in the order of the calls. All have `ok`, `attempts`, `elapsed_s` and
the `headers` of the last answer. An image has `request_id`, `created`, `type_of_created`,
`raw_keys` and `data` (each with `url`, `b64_sha256`, `b64_len`, `png_size`, `revised_prompt`,
`raw_keys` and, where `fetch` was asked, `fetched`); a list of models has `ids`, one model `id`;
a failure has `class`, `status`, `code`, `type`, `param`, `message` and `request_id`. A call with
`stream` has `events`, and where a failure ended them both.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
HERE: Final = Path(__file__).parent
PEERS: Final = ["openai-1", "openai-2", "openai-3", "openai-node"]


def run_peer(peer: str, scenario: dict[str, Any], *, timeout_s: float = 90) -> list[dict[str, Any]]:
    """Blocks until every call is done: from a coroutine, use `asyncio.to_thread`."""
    run = subprocess.run(
        _command(peer),
        input=json.dumps(scenario),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        # Nothing of OPENAI_*, of proxies, or of coverage, which the peers do not have.
        env={name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
    )
    if run.returncode != 0:
        message = f"{peer} ended with {run.returncode}:\n{run.stderr}"
        raise RuntimeError(message)
    return [json.loads(line) for line in run.stdout.splitlines()]


def _command(peer: str) -> list[str]:
    if peer == "openai-node":
        if not (HERE / "node" / "node_modules" / "openai").is_dir() or not shutil.which("node"):
            pytest.skip("no Node SDK: install node >= 20 and npm; `make test` does the rest")
        return ["node", str(HERE / "node" / "openai_calls.mjs")]
    return [_python_of(peer), str(HERE / "openai_calls.py")]


def run_script(peer: str, script: str, *arguments: str) -> Any:
    """What a script prints as JSON in the environment of a Python SDK, where a warning ends it."""
    run = subprocess.run(
        [_python_of(peer), "-W", "error", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def _python_of(peer: str) -> str:
    python = ROOT / Path(os.environ.get("PEERS", ".peers"), peer, "bin", "python")
    if not python.exists():
        pytest.skip(f"the {peer} SDK is not installed: `make test` does that")
    return str(python)

"""Calls the gateway by libraries that stand on OpenAI's API, each set in an environment of its own.

    replies = run_libraries("libraries", {
        "url": "http://127.0.0.1:8080",
        "api_key": "sk-gw-…",
        "calls": [{"library": "Haystack", "prompt": "a fox"}],
    })

With a `picture`, in base64, it is an edit. There is one reply per call, in the order of the calls.
All have `ok`; an image has its `sha256`; a failure has `class`, `message` and `status` (None where
the library hides it). `make clients` installs the libraries.
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
LIBRARIES: Final = {
    "libraries": (
        *("LangChain", "LlamaIndex", "LiteLLM", "LiteLLM on Azure's paths", "Haystack", "Agno"),
    ),
    "semantic-kernel": ("Semantic Kernel",),
    "ai-sdk": (
        *("@ai-sdk/openai", "@ai-sdk/openai, any name", "@ai-sdk/openai-compatible"),
        "@ai-sdk/azure",
    ),
}
"""By environment."""
EDITORS: Final = {
    "libraries": ("LiteLLM",),
    "semantic-kernel": ("Semantic Kernel",),
    "ai-sdk": LIBRARIES["ai-sdk"],
}
"""Those of them that edit."""
SILENT: Final = {
    "ANONYMIZED_TELEMETRY": "False",
    "AGNO_TELEMETRY": "false",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
"""Nothing that they would ask of, or tell, anybody else."""


def run_libraries(environment: str, scenario: dict[str, Any]) -> list[dict[str, Any]]:
    """Blocks until every call is done."""
    run = subprocess.run(
        command(environment),
        input=json.dumps(scenario),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | SILENT,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"ok"')]


def command(environment: str) -> list[str]:
    """Or a skip, where it is not installed."""
    if environment == "ai-sdk":
        if not (HERE / "node" / "node_modules" / "ai").is_dir() or not shutil.which("node"):
            pytest.skip("no AI SDK: install node >= 20 and npm, then run `make clients`")
        return ["node", str(HERE / "node" / "ai_sdk_calls.mjs")]
    python = ROOT / os.environ.get("PEERS", ".peers") / environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"the {environment} are not installed: run `make clients`")
    return [str(python), str(HERE / "library_calls.py")]

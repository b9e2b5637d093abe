"""What Litestar asks for and requirements.lock leaves out is nothing that the gateway needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

ROOT: Final = Path(__file__).parents[2]
LEFT_OUT: Final = set(
    re.findall(r"^[a-z].*$", (ROOT / "requirements-left-out.txt").read_text(), re.MULTILINE)
)
LOCKED: Final = set(
    re.findall(r"^([a-z0-9.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
)
EVERY_MODULE: Final = """
import importlib, pkgutil, gateway
for module in pkgutil.walk_packages(gateway.__path__, "gateway."):
    if module.name != "gateway.__main__":
        importlib.import_module(module.name)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with the packages of requirements.lock, and nothing else."""
    folder = tmp_path_factory.mktemp("locked")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for package in filter(is_installed, LOCKED):
        files = distribution(package).files or []
        for name in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            (site_packages / name).symlink_to(str(distribution(package).locate_file(name)))
    return folder / "bin" / "python"


def test_what_is_missing_in_the_lock_is_what_is_left_out() -> None:
    """No more, so that nothing is missing unseen; no less, so that the list stays true."""
    asked_for = {name for locked in filter(is_installed, LOCKED) for name in required(locked)}

    assert asked_for - LOCKED == LEFT_OUT


def test_every_module_is_imported(python: Path) -> None:
    subprocess.run([python, "-c", EVERY_MODULE], check=True, cwd=ROOT)


def test_the_gateway_serves(python: Path) -> None:
    """From the command line to an image, the simulator included."""
    with subprocess.Popen(
        [python, "-m", "gateway", "demo", "--port", "0"],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "DASHSCOPE_API_KEY": ""},
        text=True,
    ) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("curl"):
                break
        url, key = re.findall(r"listening on (\S+)|tenant key +(\S+)", said)
        made = httpx.post(
            f"{url[0]}/v1/images/generations",
            json={"model": "qwen-image-2.0", "prompt": "a fox", "response_format": "b64_json"},
            headers={"authorization": f"Bearer {key[1]}"},
            timeout=30,
            trust_env=False,
        )
        others = [
            httpx.get(f"{url[0]}{path}", trust_env=False).status_code
            for path in ("/metrics", "/openapi.json", "/readyz")
        ]
        process.terminate()

    assert made.status_code == 200, made.text
    assert 500 not in others


def is_installed(package: str) -> bool:
    """What is for another platform or another Python is not."""
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def required(package: str) -> Iterator[str]:
    """What it asks for on this machine, without extras."""
    for one in map(Requirement, distribution(package).requires or []):
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            yield canonicalize_name(one.name)

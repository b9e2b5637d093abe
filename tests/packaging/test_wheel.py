"""A wheel installed where there is no checkout has all it needs."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.slow

ROOT: Final = Path(__file__).parents[2]
CONFIG_FILE: Final = """
accounts:
  - {name: intl, base_url: "https://dashscope-intl.aliyuncs.com/api/v1", api_key: sk-1}
tenants:
  - {name: acme, keys: [{hash: "sha256:%s"}], models: ["*"]}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, so that one must be complete too."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, and after it the dependencies of the running environment; not the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-index", wheel)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_the_wheel_holds_every_file_of_the_package_and_the_default_configuration(
    wheel: Path,
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("gateway/")}

    package = {name for name in files_below("gateway") if "__pycache__" not in name}
    defaults = {name.replace("config/", "gateway/_config/", 1) for name in files_below("config")}
    assert packed == package | defaults


def test_the_command_runs_without_the_checkout(environment: Path, tmp_path: Path) -> None:
    assert "serve" in run(environment / "bin" / "gateway", "--help", cwd=tmp_path)

    where = "import gateway; print(gateway.__file__)"
    imported = Path(run(environment / "bin" / "python", "-c", where, cwd=tmp_path).strip())
    assert imported.is_relative_to(environment)


def test_a_configuration_is_checked_against_the_shipped_catalogue(
    environment: Path, tmp_path: Path
) -> None:
    (tmp_path / "gateway.yaml").write_text(CONFIG_FILE % ("0" * 64))

    run(environment / "bin" / "gateway", "check-config", "gateway.yaml", cwd=tmp_path)


def test_the_simulator_is_in_the_wheel(environment: Path, tmp_path: Path) -> None:
    assert "port" in run(environment / "bin" / "gateway", "simulate", "--help", cwd=tmp_path)


def files_below(folder: str) -> set[str]:
    paths = (ROOT / folder).rglob("*")
    return {path.relative_to(ROOT).as_posix() for path in paths if path.is_file()}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

"""What is installed follows from the lock alone, whatever the index offers."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Final

import pytest

pytestmark = pytest.mark.slow

ROOT: Final = Path(__file__).parents[2]
INSTALL: Final = ROOT / "scripts" / "install-locked"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Index:
    """A small package index on loopback: a folder of wheels, listed as pip reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        handler = partial(QuietHandler, directory=str(folder))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def offer(self, name: str, version: str, *, needs: str = "", extras: str = "") -> str:
        """A line of a lock that pins this wheel."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        wheel = folder / f"{name}-{version}-py3-none-any.whl"
        build(wheel, name, version, needs, extras)
        return f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"

    @property
    def environment(self) -> dict[str, str]:
        """What makes pip ask this index, and no other."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        url = f"http://127.0.0.1:{self.server.server_address[1]}"
        return {**own, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": url}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    (tmp_path / "index").mkdir()
    index = Index(tmp_path / "index")
    yield index
    index.close()


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder


def test_a_newer_release_of_what_is_named_with_an_extra_changes_nothing(
    index: Index, environment: Path, tmp_path: Path
) -> None:
    """The pip of Python 3.11 would resolve the extra to it, and refuse the lock."""
    lock = tmp_path / "some.lock"
    lock.write_text(
        index.offer("cov", "1.0", extras="toml")
        + index.offer("plugin", "1.0", needs="cov[toml]>=1.0")
    )
    index.offer("cov", "2.0", extras="toml")
    index.offer("plugin", "1.1", needs="cov[toml]>=2.0")

    install(index, environment, lock)

    assert installed(environment) == {"cov": "1.0", "plugin": "1.0"}


def test_a_lock_that_lacks_something_is_refused_by_name(
    index: Index, environment: Path, tmp_path: Path
) -> None:
    lock = tmp_path / "some.lock"
    index.offer("cov", "1.0")
    lock.write_text(index.offer("plugin", "1.0", needs="cov>=1.0"))

    with pytest.raises(subprocess.CalledProcessError) as refused:
        install(index, environment, lock)

    assert "plugin 1.0 requires cov, which is not installed" in refused.value.stderr


def test_a_file_that_is_not_what_was_locked_is_refused(
    index: Index, environment: Path, tmp_path: Path
) -> None:
    lock = tmp_path / "some.lock"
    lock.write_text(index.offer("cov", "1.0"))
    index.offer("cov", "1.0", needs="something-else")

    with pytest.raises(subprocess.CalledProcessError) as refused:
        install(index, environment, lock)

    assert "DO NOT MATCH THE HASHES" in refused.value.stderr
    assert installed(environment) == {}


def install(index: Index, environment: Path, lock: Path) -> None:
    subprocess.run(
        [INSTALL, environment, lock],
        cwd=ROOT,
        env=index.environment,
        capture_output=True,
        text=True,
        check=True,
    )


def installed(environment: Path) -> dict[str, str]:
    names = [path.name for path in environment.glob("lib/python*/site-packages/*.dist-info")]
    return dict(name.removesuffix(".dist-info").split("-") for name in names)


def build(wheel: Path, name: str, version: str, needs: str, extras: str) -> None:
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if extras:
        metadata += f"Provides-Extra: {extras}\n"
    if needs:
        metadata += f"Requires-Dist: {needs}\n"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)

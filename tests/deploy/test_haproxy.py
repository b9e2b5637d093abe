"""The lines that docs/deployment.md has for HAProxy, in a real one before a real gateway."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy.rendering import ROOT
from tests.operations.site import document, write
from tests.running import GatewayProcess, until

pytestmark = pytest.mark.slow

OTHERS = """
backend old
    option httpchk GET /readyz
    timeout server 330s
    server gateway 127.0.0.1:{port} check inter 200ms fall 2

backend mistaken
    option httpchk
    timeout server 330s
    server gateway 127.0.0.1:{port} check inter 200ms fall 2
"""


def documented() -> str:
    """The lines, asked oftener, so that the test need not wait."""
    [lines] = [
        block
        for block in (ROOT / "docs" / "deployment.md").read_text().split("```")
        if "http-check send" in block
    ]
    return lines.replace("inter 2s", "inter 200ms")


@contextmanager
def haproxy(folder: Path, port: int, own_port: int) -> Iterator[Path]:
    """The socket by which it tells of its servers."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        pytest.skip("haproxy was not found: install haproxy")
    told, config = folder / "told", folder / "haproxy.cfg"
    config.write_text(
        f"global\n    stats socket {told} mode 600 level admin\n"
        "defaults\n    mode http\n    timeout connect 2s\n    timeout client 330s\n"
        f"backend documented\n{documented()}"
        f"    server gateway 127.0.0.1:{port}\n"
        f"    server apart 127.0.0.1:{port} check port {own_port}\n{OTHERS.format(port=port)}"
    )
    subprocess.run([program, "-c", "-f", config], check=True, capture_output=True)
    with subprocess.Popen([program, "-f", config], stderr=subprocess.DEVNULL) as running:
        try:
            until(told.exists)
            yield told
        finally:
            running.kill()


def states(told: Path) -> dict[str, str]:
    """Of each server, by its backend and name: its state, and what its last check brought."""
    with socket.socket(socket.AF_UNIX) as talk:
        talk.connect(str(told))
        talk.sendall(b"show stat\n")
        lines = talk.makefile().read().splitlines()
    names = lines[0].removeprefix("# ").split(",")
    rows = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:] if line]
    return {
        f"{row['pxname']}/{row['svname']}": f"{row['status']} {row['check_code']}"
        for row in rows
        if row["svname"] in {"gateway", "apart"}
    }


def test_it_finds_a_gateway_ready_and_leaves_out_one_that_drains(tmp_path: Path) -> None:
    content = document("http://127.0.0.1:1/api/v1", metrics={"listen": {"port": 0}}, lame_duck_s=20)
    config = write(tmp_path / "gateway.yaml", content)
    with GatewayProcess.serving(config) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        own_port = int(gateway.wait_for(r"metrics +http://\S+:(\d+)/metrics")[1])
        with haproxy(tmp_path, port, own_port) as told:
            good = {"documented/gateway", "documented/apart", "old/gateway"}
            ready = dict.fromkeys(good, "UP 200") | {"mistaken/gateway": "DOWN 404"}
            until(lambda: states(told) == ready)

            gateway.stop()

            drains = dict.fromkeys(good, "DOWN 503")
            until(lambda: states(told).items() >= drains.items())

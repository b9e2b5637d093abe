"""Who is compared: this gateway, the floor of its stack, and other gateways."""
# ruff: noqa: INP001, S310, T201 - a program that prints what it leaves out

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from processes import OPENER, OTHERS, ROOT, SERVED, Process, free_port, require, started

sys.path.insert(0, str(ROOT))

from gateway.tenants.keys import hash_key, new_key

HERE = Path(__file__).parent
PEERS = ROOT / "bench" / "peers"
LITELLM = ROOT / ".venvs" / "litellm"
PORTKEY = ROOT / ".venvs" / "portkey"
PORTKEY_SERVER = PORTKEY / "node_modules/@portkey-ai/gateway/build/start-server.js"
SAME = '{"model":"qwen-image-2.0","prompt":"a fox in the snow","seed":7}'
ANOTHER = '{"model":"qwen-image-2.0","prompt":"a fox in the snow","seed":SEED}'
PATH = "/v1/images/generations"
SETUP_S = 600
MANY = 1_000_000_000
LIMITS = {
    "requests_per_minute": MANY,
    "images_per_minute": MANY,
    "concurrent_requests": 1_000_000,
    "images_per_day": MANY,
    "spend_per_month": "1000000000",
}
KEY, REFUSED_KEY = new_key(), new_key()
"""The second one's tenant may send one request a minute."""


class Contender:
    """A process, and how it is asked."""

    def __init__(
        self, process: Process, path: str = PATH, headers: dict[str, str] | None = None
    ) -> None:
        self.process = process
        self.url = process.url + path
        self.headers = headers or {}

    def greet(self) -> None:
        """The first request, which may take seconds. Raises SystemExit: it is not answered well."""
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(
            self.url, SAME.encode(), headers | self.headers, method="POST"
        )
        try:
            OPENER.open(request, timeout=60).read()
        except urllib.error.HTTPError as fault:
            told = fault.read(400).decode(errors="replace")
            raise SystemExit(f"answers {fault.code}: {told}") from None
        except OSError as fault:
            raise SystemExit(str(fault)) from None


def gateway_config(upstream: str, redis: str | None, tenants: int = 1) -> dict[str, Any]:
    """Everything on: keys, every limit, the cache, the usage record of Redis, metrics, logs."""
    others = [
        {"name": f"tenant-{number}", "keys": [{"hash": hash_key(f"sk-{number}")}], "limits": LIMITS}
        for number in range(1, tenants)
    ]
    bench = {"name": "bench", "keys": [{"hash": hash_key(KEY)}], "limits": LIMITS}
    refused = {
        "name": "refused",
        "keys": [{"hash": hash_key(REFUSED_KEY)}],
        "limits": LIMITS | {"requests_per_minute": 1},
    }
    return {
        **({"redis": {"url": redis, "command_timeout_ms": 1000}} if redis else {}),
        "listen": {"host": "127.0.0.1", "port": 0},
        "accounts": [
            {
                "name": "one",
                "base_url": f"{upstream}/api/v1",
                "api_key": "sk-none",
                "rates": {"*": "unlimited"},
            }
        ],
        "tenants": [bench, refused, *others],
    }


@contextmanager
def gateway(
    folder: Path,
    upstream: str,
    redis: str | None,
    *,
    tenants: int = 1,
    workers: int = 1,
    python: str = sys.executable,
) -> Iterator[Contender]:
    """This one."""
    file = folder / f"gateway-{free_port()}.yaml"
    file.write_text(json.dumps(gateway_config(upstream, redis, tenants)))
    program = [python, "-m", "gateway", "serve", "--config", str(file)]
    with started(
        [*program, "--workers", str(workers)], core=SERVED, ready_path="/readyz"
    ) as process:
        yield Contender(process)


@contextmanager
def floor(path: str, upstream: str, redis: str) -> Iterator[Contender]:
    program = [sys.executable, str(HERE / "floor.py"), "--redis", redis, "--upstream", upstream]
    with started(program, core=SERVED) as process:
        yield Contender(process, path)


@contextmanager
def upstream(delay_s: float = 0.0) -> Iterator[Process]:
    program = [sys.executable, str(HERE / "upstream.py"), "--delay", str(delay_s)]
    with started(program, core=OTHERS, ready_path="/none") as process:
        yield process


@contextmanager
def nginx(folder: Path, upstream: str) -> Iterator[Contender]:
    """A proxy that only passes on, with a log line each."""
    require({"nginx": "nginx-light"})
    port = free_port()
    file = folder / "nginx.conf"
    file.write_text(f"""\
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log;
events {{ worker_connections 4096; }}
http {{
  access_log {folder}/nginx.log;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  upstream vendor {{
    server {upstream.removeprefix("http://")};
    keepalive 64;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://vendor;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
}}
""")
    program = ["nginx", "-c", str(file), "-p", str(folder), "-e", f"{folder}/nginx-error.log"]
    with started(program, core=SERVED, url=f"http://127.0.0.1:{port}") as process:
        yield Contender(process)


@contextmanager
def litellm(folder: Path, upstream: str) -> Iterator[Contender]:
    """Without keys, limits and a cache, which it has only with a database."""
    if not (LITELLM / ".installed").exists():
        prepare(["scripts/make-venv", str(LITELLM.relative_to(ROOT))])
        lock = (PEERS / "litellm.lock").relative_to(ROOT)
        prepare(["scripts/install-locked", str(LITELLM.relative_to(ROOT)), str(lock)])
        (LITELLM / ".installed").touch()
    file = folder / "litellm.yaml"
    parameters = {"model": "openai/gpt-image-1", "api_base": f"{upstream}/v1", "api_key": "none"}
    model = {"model_name": "qwen-image-2.0", "litellm_params": parameters}
    file.write_text(json.dumps({"model_list": [model]}))
    port = free_port()
    program = [str(LITELLM / "bin/litellm"), "--config", str(file), "--num_workers", "1"]
    with started(
        [*program, "--host", "127.0.0.1", "--port", str(port)],
        core=SERVED,
        url=f"http://127.0.0.1:{port}",
        ready_path="/health/liveliness",
        environment={
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_TELEMETRY": "False",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        },
        folder=folder,
    ) as process:
        yield Contender(process)


@contextmanager
def portkey(_: Path, upstream: str) -> Iterator[Contender]:
    """Without keys, limits and a cache, which its hosted form has."""
    require({"node": "nodejs", "npm": "npm"})
    if not PORTKEY_SERVER.exists():
        PORTKEY.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PEERS / "portkey" / name, PORTKEY / name)
        install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        prepare([*install, "--prefix", str(PORTKEY)])
    port = free_port()
    host = upstream.removeprefix("http://").partition(":")[0]
    with started(
        ["node", str(PORTKEY_SERVER), f"--port={port}", "--headless"],
        core=SERVED,
        url=f"http://127.0.0.1:{port}",
        environment={"TRUSTED_CUSTOM_HOSTS": f"localhost,{host}", "NODE_ENV": "production"},
        folder=PORTKEY,
    ) as process:
        headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{upstream}/v1"}
        yield Contender(process, headers=headers)


def prepare(command: list[str]) -> None:
    """Raises SystemExit: what cannot be had."""
    print(f"Setting up: {' '.join(command)}", flush=True)
    done = subprocess.run(  # noqa: S603 - the commands above
        command, cwd=ROOT, timeout=SETUP_S, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip()[-400:] or f"{command[0]} failed")


PEERS_BY_NAME: dict[str, Callable[[Path, str], AbstractContextManager[Contender]]] = {
    "LiteLLM": litellm,
    "Portkey": portkey,
    "nginx proxy_pass": nginx,
}


def open_peers(
    stack: ExitStack, names: Iterable[str], folder: Path, upstream: str
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Those that can be had, and why the others cannot."""
    found: dict[str, Contender] = {}
    left_out: dict[str, str] = {}
    for name in names:
        place = folder / name.split()[0]
        place.mkdir()
        try:
            peer = stack.enter_context(PEERS_BY_NAME[name](place, upstream))
            peer.greet()
            found[name] = peer
        except (SystemExit, subprocess.TimeoutExpired) as why:
            left_out[name] = str(why)
            print(f"Left out: {name}: {why}", flush=True)
    return found, left_out

"""What a waiting request costs: memory and processor time of a gateway that holds thousands.

    .venv/bin/python bench/waiting.py [--requests 5000] [--seconds 5] [--redis URL]
                                      [--stream] [--bare | --litestar]

Starts the gateway as a process of its own, with an account that is due once a minute, and sends it
so many requests at once, each on its own connection with the headers that openai-python sends. All
of them wait for a slot. Two things are measured, and each has a goal; the exit status is 1 when one
is missed:

    memory      by how much the process grew (VmRSS), per request
    processor   ticks of 10 ms used in so many seconds of waiting; the goal is a part of what
                reading the requests took, so that it holds on a slow machine too

`--bare` and `--litestar` measure, with the same server and the same requests, an ASGI application
and a Litestar handler that do nothing but wait: what of the gateway's figure is not its own.

`--stream` asks for events; each answer has a comment every 15 s, and there is no goal.
"""
# ruff: noqa: INP001, S603, T201 - a program that measures others and prints

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gateway.tenants.keys import hash_key, new_key  # noqa: E402 - after the path

GOAL_KIB = 20.0
"""`--bare` and `--litestar` say what the server and Litestar have of it."""
GOAL_A_SECOND = 0.02
"""Of what reading all of them took: timers, and the leases that are renewed."""
GOAL_A_SECOND_ON_REDIS = 0.04
"""The leases of five thousand are renewed there, every few seconds."""
AT_ONCE = 200
RESTS_WITHIN_S = 60
KEY = new_key()
CONFIG = """\
listen: {{host: 127.0.0.1, port: 0}}
upstream: {{deadline_s: 30000000}}
pacing: {{waiting_per_model: 100000, waiting_per_tenant: 100000}}
accounts:
  - {{name: slow, base_url: "http://127.0.0.1:1/api/v1", api_key: none, rates: {{"*": 1/min}}}}
tenants:
  - name: bench
    keys: [{{hash: "{key_hash}"}}]
    limits: {{requests_per_minute: 1000000, images_per_minute: 1000000}}
"""
HEADERS = f"""\
POST /v1/images/generations HTTP/1.1
host: 127.0.0.1:8080
accept-encoding: gzip, deflate
connection: keep-alive
accept: application/json
content-type: application/json
user-agent: OpenAI/Python 2.8.1
x-stainless-lang: python
x-stainless-package-version: 2.8.1
x-stainless-os: Linux
x-stainless-arch: x64
x-stainless-runtime: CPython
x-stainless-runtime-version: 3.11.7
x-stainless-async: false
x-stainless-retry-count: 0
authorization: Bearer {KEY}
"""


def main() -> int:
    arguments = read_arguments()
    if arguments.serve:
        serve(arguments.serve)
        return 0
    allow_open_files(arguments.requests + 100)
    with (
        tempfile.TemporaryDirectory() as folder,
        started(command(arguments, Path(folder))) as (port, pid),
    ):
        return asyncio.run(measure(arguments, port, pid))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=5000, help="waiting at the same time")
    parser.add_argument("--seconds", type=float, default=5.0, help="of waiting, for the processor")
    parser.add_argument("--redis", metavar="URL", help="the store; by default in process")
    parser.add_argument("--stream", action="store_true", help="answers that are streams")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--bare", action="store_true", help="a bare ASGI application instead")
    what.add_argument("--litestar", action="store_true", help="a bare Litestar handler instead")
    what.add_argument("--serve", choices=["bare", "litestar"], help=argparse.SUPPRESS)
    return parser.parse_args()


def command(arguments: argparse.Namespace, folder: Path) -> list[str]:
    for name in ("bare", "litestar"):
        if getattr(arguments, name):
            return [sys.executable, __file__, "--serve", name]
    config = folder / "gateway.yaml"
    redis = f"redis: {{url: {json.dumps(arguments.redis)}}}\n" if arguments.redis else ""
    config.write_text(redis + CONFIG.format(key_hash=hash_key(KEY)))
    return [sys.executable, "-m", "gateway", "serve", "--config", str(config)]


async def measure(arguments: argparse.Namespace, port: int, pid: int) -> int:
    """Both, printed; 1 if a goal is missed."""
    await warm_up(port, stream=arguments.stream)
    before, ticks_before = resident_kib(pid), ticks(pid)
    started_at = time.perf_counter()
    clients = await connect_all(port, arguments.requests, stream=arguments.stream)
    await settled(pid)
    took_s = time.perf_counter() - started_at
    grown = resident_kib(pid) - before
    read = ticks(pid) - ticks_before
    await asyncio.sleep(arguments.seconds)
    used = ticks(pid) - ticks_before - read
    answered = await close_all(clients)
    each = grown / arguments.requests
    print(f"{arguments.requests} requests, all waiting within {took_s:.1f} s; {answered} answered")
    print(f"memory     {before / 1024:.1f} MiB before, {grown / 1024:+.1f} MiB: ", end="")
    print(f"{each:.1f} KiB per request, goal {GOAL_KIB:g}")
    goal = read * (GOAL_A_SECOND_ON_REDIS if arguments.redis else GOAL_A_SECOND)
    print(f"processor  {used} ticks in {arguments.seconds:g} s of waiting, ", end="")
    print(f"goal {goal:.1f} a second, a part of the {read} that reading took")
    idle = used <= max(1.0, goal * arguments.seconds)
    if arguments.stream:
        return 0
    is_small = round(each, 1) <= GOAL_KIB  # judged as it is printed
    return int(answered > 1 or not is_small or not idle)


async def warm_up(port: int, *, stream: bool) -> None:
    """Some requests that come and go, so that what is only made once is there."""
    clients = await connect_all(port, 50, stream=stream)
    await asyncio.sleep(0.5)
    await close_all(clients)
    await asyncio.sleep(0.5)


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect_all(port: int, count: int, *, stream: bool) -> list[Connection]:
    """Send so many requests, a few hundred at a time."""
    clients: list[Connection] = []
    for start in range(0, count, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, count))
        wanted = (connect(port, request(number, stream=stream)) for number in numbers)
        clients += await asyncio.gather(*wanted)
    return clients


async def connect(port: int, wanted: bytes) -> Connection:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(wanted)
    await writer.drain()
    return reader, writer


def request(number: int, *, stream: bool) -> bytes:
    """No two are the same."""
    body = {"model": "qwen-image", "prompt": f"a fox in the snow, {number}", "n": 1}
    if stream:
        body["stream"] = True
    content = json.dumps(body).encode()
    head = f"{HEADERS}content-length: {len(content)}\n\n".replace("\n", "\r\n")
    return head.encode() + content


async def close_all(clients: list[Connection]) -> int:
    """Hang up everywhere; how many had been answered."""
    answered = 0
    for reader, writer in clients:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                answered += bool(await reader.read(1)) or reader.at_eof()
        writer.close()
    return answered


async def settled(pid: int) -> None:
    """Wait until the process has read everything and rests, or is still as busy after a minute."""
    for _ in range(RESTS_WITHIN_S):
        before = ticks(pid)
        await asyncio.sleep(1.0)
        if ticks(pid) - before <= 2:
            return


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise SystemExit(f"process {pid} is gone")


def ticks(pid: int) -> int:
    """Processor time used so far, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def allow_open_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


@contextmanager
def started(program: list[str]) -> Iterator[tuple[int, int]]:
    """A running program, the port on its first line, and its process id."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            program, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, text=True
        )
        try:
            line = process.stdout.readline() if process.stdout else ""
            if "http://" not in line:
                errors.seek(0)
                raise SystemExit(f"{program} did not start:\n{errors.read().decode()}")
            yield int(line.rpartition(":")[2]), process.pid
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


# What the gateway is compared with: a server of its own, run by `--serve`.


def serve(what: str) -> None:
    """Listen, say where, and let every request wait."""
    import uvicorn  # noqa: PLC0415 - not in the process that measures

    from gateway.server.worker import BACKLOG, http_config  # noqa: PLC0415

    app: Any = bare_application if what == "bare" else litestar_application()
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as sock:
        print(f"listening on http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
        uvicorn.Server(http_config(app, "off")).run(sockets=[sock])


async def bare_application(_scope: Any, receive: Any, _send: Any) -> None:  # noqa: ANN401 - ASGI
    """Read the body, then wait for the client to leave."""
    while (await receive())["type"] != "http.disconnect":
        pass


def litestar_application() -> Any:  # noqa: ANN401 - ASGI
    from litestar import Litestar, Request, post  # noqa: PLC0415

    @post("/v1/images/generations")
    async def generate(request: Request[Any, Any, Any]) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    # Litestar resolves annotations by the names of the function's module.
    return Litestar([generate], openapi_config=None, logging_config=None)


if __name__ == "__main__":
    os.chdir(ROOT)
    raise SystemExit(main())

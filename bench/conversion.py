"""What it costs to hand images over as jpeg or webp: time, memory, and what others notice of it.

    .venv/bin/python bench/conversion.py [--requests 8] [--side 2048] [--rounds 5]

One picture like a photograph is converted in this process, again and again, for the time that one
takes. Then the gateway runs as a process of its own, asks a pretend vendor, and is sent so many
requests at once, round after round, while somebody asks for /healthz every 5 ms. The exit status is
1 when a goal is missed:

    time     of one image, by format and quality: median and longest; no goal
    memory   how far the gateway's peak rises above what it held before: at most its configured
             `conversion_bytes` and `budget_bytes`, and 32 MiB
    healthz  99th percentile of its answer meanwhile, beside what it is on the same machine while
             as many other processes do nothing but calculate
"""
# ruff: noqa: INP001, S310, S603, T201 - a program that measures others and prints

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageChops, ImageFilter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gateway.delivery import Encoding  # noqa: E402 - after the path
from gateway.delivery.conversion import BUDGET_BYTES, THREADS, converted  # noqa: E402
from gateway.domain.catalogue import Size  # noqa: E402
from gateway.tenants.keys import hash_key, new_key  # noqa: E402

MIB = 1024 * 1024
GOAL_HEALTHZ_MS = 50.0
SPARE_MIB = 32
IMAGES_MIB = 32
KEY = new_key()
CONFIG = f"""\
listen: {{{{host: 127.0.0.1, port: 0}}}}
accounts:
  - {{{{name: one, base_url: "http://127.0.0.1:{{port}}/api/v1", api_key: k,
     rates: {{{{"*": unlimited}}}}}}}}
images: {{{{allowed_hosts: ["127.0.0.1"], allow_http: true}}}}
tenants:
  - {{{{name: bench, keys: [{{{{hash: "{hash_key(KEY)}"}}}}], cache: {{{{mode: "off"}}}}}}}}
"""
ENCODINGS = (
    Encoding("jpeg", 100),
    Encoding("jpeg", 80),
    Encoding("webp", 100),
    Encoding("webp", 80),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=8, help="at the same time")
    parser.add_argument("--side", type=int, default=2048, help="of the picture, in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    png = photograph(arguments.side)
    print(f"{arguments.side}x{arguments.side}, {len(png) / MIB:.1f} MiB as png")
    for encoding in ENCODINGS:
        print_time(png, arguments.side, encoding, arguments.rounds)
    with vendor(png) as port, gateway(port) as (url, pid):
        return measure(url, pid, arguments)


def photograph(side: int) -> bytes:
    """Slow changes of colour, and the fine noise of a sensor."""
    noise = [
        Image.effect_noise((side, side), 40).filter(ImageFilter.GaussianBlur(1.2)) for _ in "rgb"
    ]
    slope = Image.linear_gradient("L").resize((side, side))
    light = [slope.rotate(90 * turn) for turn in range(3)]
    file = BytesIO()
    picture = ImageChops.add(Image.merge("RGB", light), Image.merge("RGB", noise), 2)
    picture.save(file, "PNG", compress_level=3)
    return file.getvalue()


def print_time(png: bytes, side: int, encoding: Encoding, rounds: int) -> None:
    times, size = [], 0
    for _ in range(rounds):
        began = time.perf_counter()
        size = len(converted(BytesIO(png), Size(side, side), encoding))
        times.append(time.perf_counter() - began)
    print(
        f"time     {encoding.format} at {encoding.quality:3}: {statistics.median(times):.2f} s, "
        f"longest {max(times):.2f} s, {size / MIB:.2f} MiB"
    )


@contextmanager
def vendor(png: bytes) -> Iterator[int]:
    """Answers every call with the address of the one picture, which it serves as well."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            url = f"http://127.0.0.1:{port}/1.png?Expires={int(time.time()) + 86_400}"
            content = {"content": [{"image": url}]}
            body = {"output": {"choices": [{"message": content}]}, "request_id": "r"}
            self._send(json.dumps(body).encode(), "application/json")

        def do_GET(self) -> None:
            self._send(png, "image/png")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _send(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield port
    server.shutdown()


@contextmanager
def gateway(port: int) -> Iterator[tuple[str, int]]:
    """Its address and its process' number."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "gateway.yaml"
        config.write_text(CONFIG.format(port=port))
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
        program = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, text=True
        )
        try:
            line = program.stdout.readline() if program.stdout else ""
            yield "http://" + line.partition("http://")[2].split("/")[0].strip(), program.pid
        finally:
            program.send_signal(signal.SIGKILL)
            program.wait()


def measure(url: str, pid: int, arguments: argparse.Namespace) -> int:
    """Memory and /healthz, printed; 1 if a goal is missed."""
    ask(url, Encoding("jpeg", 80))
    missed = False
    with calculating(THREADS):
        beside = Prober(url).during(lambda: time.sleep(3))
    print(f"healthz  beside {THREADS} processes that calculate: {shown(beside)}")
    for encoding in ENCODINGS:
        before = status_mib(pid, "VmRSS")
        Path(f"/proc/{pid}/clear_refs").write_text("5")

        def load(encoding: Encoding = encoding) -> None:
            with ThreadPoolExecutor(arguments.requests) as pool:
                list(
                    pool.map(
                        lambda _: ask(url, encoding), range(arguments.requests * arguments.rounds)
                    )
                )

        began = time.perf_counter()
        times = Prober(url).during(load)
        took = time.perf_counter() - began
        growth = status_mib(pid, "VmHWM") - before
        made = arguments.requests * arguments.rounds
        name = f"{encoding.format} at {encoding.quality:3}"
        print(f"healthz  {name}: {shown(times)}; {made / took:.1f} images/s")
        print(f"memory   {name}: {before:.0f} MiB before, peak {growth:+.0f} MiB")
        missed |= growth > BUDGET_BYTES / MIB + IMAGES_MIB + SPARE_MIB
        missed |= percentile(times, 99) > GOAL_HEALTHZ_MS
    return int(missed)


def ask(url: str, encoding: Encoding) -> None:
    body = {
        "model": "qwen-image-2.0",
        "prompt": "bench",
        "response_format": "b64_json",
        "output_format": encoding.format,
        "output_compression": encoding.quality,
    }
    request = urllib.request.Request(
        f"{url}/v1/images/generations",
        json.dumps(body).encode(),
        {"authorization": f"Bearer {KEY}", "content-type": "application/json"},
    )
    answer = opener().open(request, timeout=120).read()
    if f'"output_format":"{encoding.format}"'.encode() not in answer:
        raise SystemExit(f"not what was asked for: {answer[:200]!r}")


class Prober:
    """Asks for /healthz over and over; milliseconds of each."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/healthz"
        self._ended = threading.Event()
        self.times: list[float] = []

    def during(self, load: object) -> list[float]:
        thread = threading.Thread(target=self._run)
        thread.start()
        load()  # type: ignore[operator]
        self._ended.set()
        thread.join()
        return self.times

    def _run(self) -> None:
        while not self._ended.wait(0.005):
            began = time.perf_counter()
            opener().open(self._url, timeout=30).read()
            self.times.append((time.perf_counter() - began) * 1000)


@contextmanager
def calculating(count: int) -> Iterator[None]:
    """So many processes that take all of a processor."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


def percentile(times: list[float], share: int) -> float:
    return sorted(times)[min(len(times) - 1, len(times) * share // 100)]


def shown(times: list[float]) -> str:
    p50, p99 = percentile(times, 50), percentile(times, 99)
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {max(times):.1f} ms of {len(times)}"


def opener() -> urllib.request.OpenerDirector:
    """Without the environment's proxies."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def status_mib(pid: int, field: str) -> float:
    """A figure of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {field} of process {pid}")


if __name__ == "__main__":
    os.chdir(ROOT)
    raise SystemExit(main())

"""How b64_json answers are delivered: bytes, speed and memory, against `curl URLS | base64`.

    .venv/bin/python bench/delivery.py [--requests 8] [--images 4] [--megabytes 8] [--rounds 5]

Starts the simulator and the gateway, each as a process of its own on loopback, and asks for images
of a known size. Three things are measured, and each has a goal; the exit status is 1 when one is
missed:

    bytes    every image has the SHA-256 of what its URL serves, all requests running at once
    speed    concurrent requests, against one curl that fetches the same images into `base64`
    memory   how far the worker's peak rises above what it held after a first small request

Each round runs the two sides of `speed` one after the other; the medians are compared.
"""
# ruff: noqa: INP001, S310, S603, T201 - a program that measures others and prints

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gateway.tenants.keys import hash_key, new_key  # noqa: E402 - after the path

SLOWER_GOAL = 1.6
GROWTH_GOAL_MIB = 64.0
MIB = 1024 * 1024
GATEWAY = [sys.executable, "-m", "gateway"]
CONFIG = """\
listen: {{host: 127.0.0.1, port: 0}}
accounts:
  - {{name: simulated, base_url: "{simulator}/api/v1", api_key: simulated,
     rates: {{"*": unlimited}}}}
images: {{allowed_hosts: ["127.0.0.1"], allow_http: true}}
tenants:
  - {{name: bench, keys: [{{hash: "{key_hash}"}}], cache: {{mode: "off"}}}}
"""


class Case:
    """What one run asks for, and of whom."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.requests: int = arguments.requests
        self.images: int = arguments.images
        self.image_bytes: int = arguments.megabytes * 1024 * 1024
        self.folder = folder
        self.key = new_key()
        self.simulator = self.gateway = ""

    @property
    def total_mib(self) -> float:
        return self.requests * self.images * self.image_bytes / MIB

    def body(self, seed: int, response_format: str, images: int = 0) -> dict[str, Any]:
        """A request; the same seed always yields the same pictures."""
        return {
            "model": "qwen-image-2.0",
            "prompt": "bench",
            "n": images or self.images,
            "size": "1024x1024",
            "seed": seed,
            "response_format": response_format,
        }


def main() -> int:
    arguments = read_arguments()
    with tempfile.TemporaryDirectory() as folder:
        case = Case(arguments, Path(folder))
        with started([*GATEWAY, "simulate", "--port", str(free_port())]) as (simulator, _):
            case.simulator = simulator
            prepare_simulator(case)
            config = case.folder / "gateway.yaml"
            config.write_text(CONFIG.format(simulator=simulator, key_hash=hash_key(case.key)))
            with started([*GATEWAY, "serve", "--config", str(config)]) as (gateway, pid):
                case.gateway = gateway
                return measure(case, pid, arguments.rounds)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=8, help="at the same time")
    parser.add_argument("--images", type=int, default=4, help="per request")
    parser.add_argument("--megabytes", type=int, default=8, help="per image")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def measure(case: Case, pid: int, rounds: int) -> int:
    """All three, printed; 1 if a goal is missed."""
    urls = result_urls(case)
    expected = [hashlib.sha256(fetch(url)).hexdigest() for url in urls]
    post(case, case.body(0, "b64_json", images=1))
    before = status_mib(pid, "VmRSS")
    forget_peak(pid)
    wrong = compare(case, expected)
    pairs = [(run_curl(case, urls), run_gateway(case)) for _ in range(rounds)]
    growth = status_mib(pid, "VmHWM") - before
    curl_s, gateway_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = gateway_s / curl_s
    print(f"{case.requests} requests x {case.images} images x {case.image_bytes / MIB:g} MiB")
    print(f"bytes   {len(expected) - wrong} of {len(expected)} images identical")
    print(f"speed   curl | base64 {curl_s:.3f} s ({case.total_mib / curl_s:,.0f} MiB/s), ", end="")
    print(f"gateway {gateway_s:.3f} s ({case.total_mib / gateway_s:,.0f} MiB/s): ", end="")
    print(f"{ratio:.2f} times as long, goal {SLOWER_GOAL}")
    print(f"        each round: {', '.join(f'{mine / curl:.2f}' for curl, mine in pairs)}")
    print(f"memory  {before:.1f} MiB before, peak {growth:+.1f} MiB, goal {GROWTH_GOAL_MIB:g}")
    return int(bool(wrong) or ratio > SLOWER_GOAL or growth > GROWTH_GOAL_MIB)


def prepare_simulator(case: Case) -> None:
    """Answers at once, with images of the size wanted, all of which it keeps in memory."""
    settings = {
        "latency_s": 0,
        "render": "plain",
        "image_bytes": case.image_bytes,
        "rendered_max_bytes": int((case.requests + 1) * case.images * (case.image_bytes + MIB)),
    }
    url = f"{case.simulator}/_simulator/settings"
    request = urllib.request.Request(
        url, json.dumps(settings).encode(), {"content-type": "application/json"}, method="PUT"
    )
    opener().open(request).read()


def result_urls(case: Case) -> list[str]:
    """Where all the images are, asked for as URLs."""
    answers = (post(case, case.body(seed, "url")) for seed in range(case.requests))
    return [image["url"] for answer in answers for image in answer["data"]]


def compare(case: Case, expected: list[str]) -> int:
    """How many images of a concurrent run differ from their source."""
    files = [case.folder / f"{seed}.json" for seed in range(case.requests)]
    run_gateway(case, files)
    found: list[str] = []
    for file in files:
        answer = json.loads(file.read_bytes())
        images = [base64.b64decode(image["b64_json"], validate=True) for image in answer["data"]]
        found += [hashlib.sha256(image).hexdigest() for image in images]
        file.unlink()
    return sum(a != b for a, b in zip(found, expected, strict=True))


def run_curl(case: Case, urls: list[str]) -> float:
    """Seconds for one curl and one base64 over all images."""
    listing = case.folder / "urls"
    listing.write_text("".join(f'url = "{url}"\n' for url in urls))
    started_at = time.perf_counter()
    subprocess.run(f"curl -sSfK {listing} | base64 -w0 > /dev/null", shell=True, check=True)  # noqa: S602
    return time.perf_counter() - started_at


def run_gateway(case: Case, files: list[Path] | None = None) -> float:
    """Seconds for all requests at once, one curl each; curl fails on an incomplete answer."""
    commands = []
    for seed in range(case.requests):
        question = case.folder / f"request-{seed}"
        question.write_text(json.dumps(case.body(seed, "b64_json")))
        target = str(files[seed]) if files else "/dev/null"
        what = ["-o", target, "-d", f"@{question}", f"{case.gateway}/v1/images/generations"]
        commands.append(["curl", "-sSf", *headers(case), *what])
    started_at = time.perf_counter()
    clients = [subprocess.Popen(command) for command in commands]
    statuses = [client.wait() for client in clients]
    if any(statuses):
        raise SystemExit("a request failed")
    return time.perf_counter() - started_at


def headers(case: Case) -> list[str]:
    return ["-H", f"authorization: Bearer {case.key}", "-H", "content-type: application/json"]


def post(case: Case, body: dict[str, Any]) -> dict[str, Any]:
    """One answer of the gateway."""
    request = urllib.request.Request(
        f"{case.gateway}/v1/images/generations",
        json.dumps(body).encode(),
        {"authorization": f"Bearer {case.key}", "content-type": "application/json"},
    )
    answer: dict[str, Any] = json.load(opener().open(request))
    return answer


def fetch(url: str) -> bytes:
    content: bytes = opener().open(url).read()
    return content


def opener() -> urllib.request.OpenerDirector:
    """Without the environment's proxies."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def started(command: list[str]) -> Iterator[tuple[str, int]]:
    """A running program, the address on its first line, and its process id."""
    with tempfile.TemporaryFile() as errors:
        program = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, text=True
        )
        try:
            line = program.stdout.readline() if program.stdout else ""
            if "http://" not in line:
                errors.seek(0)
                raise SystemExit(f"{command} did not start:\n{errors.read().decode()}")
            address = "http://" + line.partition("http://")[2].split("/")[0].strip()
            wait_until_open(address)
            yield address, program.pid
        finally:
            program.send_signal(signal.SIGKILL)
            program.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def wait_until_open(address: str) -> None:
    """Until it takes connections; the simulator says where it listens just before it does."""
    for _ in range(100):
        try:
            opener().open(f"{address}/_simulator/state?log=0").read()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"nothing listens at {address}")


def status_mib(pid: int, field: str) -> float:
    """A figure of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {field} of process {pid}")


def forget_peak(pid: int) -> None:
    """Let VmHWM begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


if __name__ == "__main__":
    os.chdir(ROOT)
    raise SystemExit(main())

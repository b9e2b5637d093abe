"""What the gateway costs beside its rate: memory, start, size, and whether any of it grows."""
# ruff: noqa: INP001, S603, T201

from __future__ import annotations

import asyncio
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import contenders
import uvloop
from contenders import ANOTHER, KEY, SAME, Contender
from load import ask
from processes import OTHERS, ROOT, free_port, on_core, resident_kib, size_mib, started
from redis import Redis

DELAY_S = 10.0
AT_ONCE = 5_000
ENTRIES = 1_000_000
TENANTS = 10_000
FEW, MANY = 10, 5_000
TURNS, TURN_S = 3, 2
CROWDED_S = 8, 16
NUMBERS = count(1)
FILL = """\
-- As many more cached generations like the one that is there.
local base, head, payload = ARGV[3], ARGV[4], ARGV[5]
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local id = string.format('req_%032x', number)
  redis.call('HSET', base .. 'g:' .. id, 'head', head, 'payload', payload)
  redis.call('HSET', base .. 'c:' .. string.format('%064x', number), 'done', id)
  redis.call('ZADD', base .. 'a:' .. string.format('%064x', number), number, id)
  redis.call('ZADD', base .. 'cached', 4000000000000, id)
  redis.call('HSET', base .. 'sizes', id, #payload)
end
"""
FILLED_AT_ONCE = 2_000


def measure(folder: Path, only: str | None) -> dict[str, Any]:
    """All of them, by name."""
    found = {}
    for name, function in ALL.items():
        if only not in {None, name}:
            continue
        try:
            found[name] = function(folder)
        except SystemExit as why:
            if only is not None:
                raise
            print(f"{name}: not measured: {why}", flush=True)
        else:
            print(f"{name}: {found[name]}", flush=True)
    return found


@contextmanager
def redis_server() -> Iterator[str]:
    port = free_port()
    program = ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no"]
    with started(
        program, core=OTHERS, url=f"redis://127.0.0.1:{port}/0", ready_path=None
    ) as process:
        yield process.url


@contextmanager
def site(
    folder: Path,
    *,
    delay_s: float = 0.0,
    **options: Any,  # noqa: ANN401 - those of `contenders.gateway`
) -> Iterator[tuple[Contender, str]]:
    """A gateway with a Redis and a vendor of its own."""
    with (
        redis_server() as redis,
        contenders.upstream(delay_s) as vendor,
        contenders.gateway(folder, vendor.url, redis, **options) as gateway,
    ):
        yield gateway, redis


def start_and_size(folder: Path) -> dict[str, float]:
    """From the command to the first answer; at rest; on the disk, in an environment made anew."""
    environment = ROOT / ".venvs" / "bench"
    lock = ROOT / "requirements.lock"
    stamp = environment / ".installed"
    if not stamp.exists() or stamp.stat().st_mtime < lock.stat().st_mtime:
        name = str(environment.relative_to(ROOT))
        contenders.prepare(["scripts/make-venv", name])
        contenders.prepare(["scripts/install-locked", name, lock.name])
        stamp.touch()
    python = str(environment / "bin" / "python")
    starts, used, idle = [], [], []
    for _ in range(1 + TURNS):
        with site(folder, python=python) as (gateway, _redis):
            starts.append(gateway.process.start_s)
            used.append(gateway.process.cpu_s())
            time.sleep(1.0)
            idle.append(gateway.process.memory_mib())
    del starts[0], used[0]  # which compiled the code
    return {
        "start_s": statistics.median(starts),
        "start_cpu_s": statistics.median(used),
        "idle_mib": statistics.median(idle),
        "environment_mib": size_mib(environment),
    }


def at_once(folder: Path) -> dict[str, float]:
    """Requests that all come at once, of which the vendor takes ten seconds for each."""
    with site(folder, delay_s=DELAY_S) as (gateway, _), on_core(OTHERS):
        uvloop.run(crowd(gateway, 50))
        before = resident_kib(gateway.process.pid)
        took, most = uvloop.run(crowd(gateway, AT_ONCE))
    return {
        "requests": AT_ONCE,
        "answered": len(took),
        "p50_s": statistics.median(took),
        "p99_s": statistics.quantiles(took, n=100)[98],
        "kib_each": (most - before) / AT_ONCE,
    }


async def crowd(gateway: Contender, size: int) -> tuple[list[float], int]:
    """The seconds of those that were answered well, and the most memory meanwhile, in KiB."""
    asked = [asyncio.create_task(one(gateway, next(NUMBERS))) for _ in range(size)]
    most = 0
    while not all(task.done() for task in asked):
        await asyncio.sleep(0.1)
        most = max(most, resident_kib(gateway.process.pid))
    return [took for task in asked if (took := task.result()) is not None], most


async def one(gateway: Contender, number: int) -> float | None:
    """Its seconds, of a good answer."""
    host, port = gateway.process.url.removeprefix("http://").split(":")
    body = ANOTHER.replace("SEED", str(number)).encode()
    head = (
        f"POST {contenders.PATH} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        return time.perf_counter() - began if b" 200 " in answer[:20] else None
    except (OSError, asyncio.IncompleteReadError):
        return None
    finally:
        writer.close()


def waiting(_: Path) -> dict[str, float]:
    told = printed("bench/waiting.py")
    return {
        "kib_each": number(r"([\d.]+) KiB per request", told),
        "ticks": number(r"(\d+) ticks", told),
    }


def delivery(_: Path) -> dict[str, float]:
    told = printed("bench/delivery.py")
    return {
        "times_curl": number(r"([\d.]+) times as long", told),
        "growth_mib": number(r"peak \+?(-?[\d.]+) MiB", told),
    }


def printed(program: str) -> str:
    """What a program prints; its own goals are its own."""
    return subprocess.run(
        [sys.executable, program], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"{pattern} is not in:\n{text}")
    return float(found[1])


def two_workers(folder: Path) -> dict[str, float]:
    """Processor time with one and two workers: how many times the rate two free cores would give.

    They share the first core here, since the second one has the load.
    """
    with site(folder) as (alone, _), site(folder, workers=2) as (pair, _):
        sides = in_turns(
            lambda: ask(alone, ANOTHER, seconds=TURN_S).cpu_us,
            lambda: ask(pair, ANOTHER, seconds=TURN_S).cpu_us,
        )
    return {"one_us": sides[0], "two_us": sides[1], "times": 2 * sides[0] / sides[1]}


def tenants(folder: Path) -> dict[str, float]:
    """Of one tenant and of ten thousand."""
    with site(folder) as (few, _), site(folder, tenants=TENANTS) as (many, _):
        return growth(few, many)


def entries(folder: Path) -> dict[str, float]:
    """With one result in the cache, and with a million."""
    with site(folder) as (few, _), site(folder) as (many, redis):
        ask(many, SAME, seconds=1)
        fill(redis)
        return {"entries": ENTRIES} | growth(few, many)


def fill(redis: str) -> None:
    client = Redis.from_url(redis, socket_timeout=None)
    (generation,) = client.keys("*}:g:*")
    base = generation.rpartition(b"g:")[0]
    like = base, *client.hmget(generation, "head", "payload")
    script = client.register_script(FILL)
    for first in range(1, ENTRIES, FILLED_AT_ONCE):
        script(args=[first, first + FILLED_AT_ONCE - 1, *like])


def in_flight(folder: Path) -> dict[str, float]:
    """With ten requests at any moment, and with five thousand."""
    with site(folder) as (few, _), site(folder) as (many, _):
        return {
            what: ratio(
                lambda body=body: ask(few, body, connections=FEW, seconds=TURN_S).cpu_us,
                lambda body=body: crowded_us(many, body),
            )
            for what, body in (("hit", SAME), ("miss", ANOTHER))
        }


def crowded_us(contender: Contender, body: str) -> float:
    """By what a longer run has more: all are read before the first is answered."""
    runs = [ask(contender, body, connections=MANY, seconds=seconds) for seconds in CROWDED_S]
    if any(run.refused or run.broken for run in runs) or runs[0].answers >= runs[1].answers:
        raise SystemExit(f"{MANY} at once were answered otherwise than they should: {runs}")
    (short_us, short), (long_us, long) = ((run.cpu_us * run.answers, run.answers) for run in runs)
    return (long_us - short_us) / (long - short)


def growth(few: Contender, many: Contender) -> dict[str, float]:
    """Processor time of many over that of few."""
    return {
        what: ratio(
            lambda body=body: ask(few, body, seconds=TURN_S).cpu_us,
            lambda body=body: ask(many, body, seconds=TURN_S).cpu_us,
        )
        for what, body in (("hit", SAME), ("miss", ANOTHER))
    }


def ratio(few: Callable[[], float], many: Callable[[], float]) -> float:
    """The second over the first."""
    first, second = in_turns(few, many)
    return second / first


def in_turns(*sides: Callable[[], float]) -> list[float]:
    """The median of each, measured in turns."""
    for side in sides:
        side()
    turns = [[side() for side in sides] for _ in range(TURNS)]
    return [statistics.median(of) for of in zip(*turns, strict=True)]


def allow_open_files() -> None:
    """For five thousand connections at either end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * AT_ONCE
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


ALL: dict[str, Callable[[Path], Any]] = {
    "start": start_and_size,
    "at once": at_once,
    "waiting": waiting,
    "delivery": delivery,
    "two workers": two_workers,
    "tenants": tenants,
    "entries": entries,
    "in flight": in_flight,
}

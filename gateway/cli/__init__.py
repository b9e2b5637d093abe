"""The `gateway` command: arguments only, the work is elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from argparse import ArgumentParser
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from msgspec.structs import replace

from gateway.app import open_image_store, open_store
from gateway.cli import cache as caches
from gateway.cli.arguments import Argument, Commands, argument, run, utc_time
from gateway.cli.demo import demo_config, demo_text, start_simulator
from gateway.cli.doctor import examine, report
from gateway.cli.usage import as_json, as_table, read_usage, recorded
from gateway.config import Config, Listen, Tenant
from gateway.config.decode import ConfigError
from gateway.config.reload import read_whole
from gateway.config.warn import warnings_of
from gateway.domain.clock import Clock
from gateway.observability.logs import masker, silence_logs
from gateway.server.supervisor import CannotListen
from gateway.server.supervisor import serve as run_server
from gateway.simulator.app import serve as run_simulator
from gateway.store.availability import StoreUnavailable
from gateway.store.generations import CacheAdmin
from gateway.store.images import ImageStore
from gateway.store.limits import Usage
from gateway.tenants.keys import hash_key, new_key

T = TypeVar("T")
CacheWork = Callable[[CacheAdmin, ImageStore | None, Iterable[str]], Awaitable[T]]

MAX_PORT = 65535

HOST = argument("--host", default="127.0.0.1", help="default: %(default)s")
AS_JSON = argument("--json", action="store_true", help="print JSON instead of a table")
ONE_CACHE = argument(
    "--tenant", help="only the cache of this one; a group's where it belongs to one"
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `gateway` script."""
    try:
        try:
            run(command_parser(), arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Its reader had enough (`| head`). Other tools die of the signal, which Python ignores.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.raise_signal(signal.SIGPIPE)


def stop(message: object) -> None:
    """End with a sentence on standard error and status 1."""
    print(message, file=sys.stderr)
    raise SystemExit(1)


def read_config(path: Path) -> Config:
    """Ends the process with all faults, if any."""
    try:
        return read_whole(path)
    except ConfigError as fault:
        stop(fault)
        raise


def check_port(port: int) -> None:
    """End with a sentence for a port out of range."""
    if not 0 <= port <= MAX_PORT:
        stop(f"--port: expected 0 to {MAX_PORT}")


def serve(*, config: Path, host: str | None, port: int | None, workers: int) -> None:
    """Run the gateway."""
    loaded = read_config(config)
    listen = loaded.listen
    listen = replace(listen, host=host or listen.host, port=listen.port if port is None else port)
    check_port(listen.port)
    if workers < 1:
        stop("--workers: expected at least 1")
    if workers > 1 and loaded.redis is None:
        stop(
            "--workers: more than one worker needs Redis, or each would count limits alone. "
            f"Add `redis: {{url: redis://HOST:6379/0}}` to {config}, or use one worker."
        )
    start(replace(loaded, listen=listen), workers, lambda _: "", config)


def start(
    config: Config, workers: int, text: Callable[[str], str], path: Path | None = None
) -> None:
    """Serve, and say where once requests are taken; `text` adds to it."""

    def announce(port: int, metrics_port: int | None) -> None:
        url = address(config.listen.host, port)
        lines = outline(config, workers)
        if config.metrics.listen is not None and metrics_port is not None:
            lines += (
                f"\n  {'metrics':10}{address(config.metrics.listen.host, metrics_port)}/metrics"
            )
        words = f"gateway: listening on {url}\n{lines}{text(url)}"
        try:
            print(words, flush=True)
        except BrokenPipeError:
            # Image requests must not fail because nobody reads this, now or at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    try:
        run_server(config, workers, announce, path)
    except CannotListen as fault:
        stop(f"gateway: cannot listen on {fault.filename}: {fault.strerror or fault}")
    except OSError as fault:
        what = f"open {fault.filename}" if fault.filename else "go on"
        stop(f"gateway: cannot {what}: {fault.strerror or fault}")


def address(host: str, port: int) -> str:
    """As clients write it."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def outline(config: Config, workers: int) -> str:
    """What runs, in a few lines; names and hosts, never a key or a password."""
    parts = urlsplit(config.redis.url.reveal()) if config.redis else None
    where = parts and (parts.netloc.rpartition("@")[2] or parts.path)
    accounts = [f"{one.name} ({urlsplit(one.base_url).netloc})" for one in config.accounts]
    lines = {
        "workers": workers,
        "store": f"Redis at {where}" if where else "in this process",
        "accounts": ", ".join(accounts),
        "tenants": len(config.tenants),
        "models": f"{len(config.catalogue.models)}, and {len(config.catalogue.aliases)} aliases",
    }
    return "\n".join(f"  {name:10}{value}" for name, value in lines.items())


def demo(*, host: str, port: int) -> None:
    """Run the gateway with a fresh tenant key and no file; without DASHSCOPE_API_KEY, simulated."""
    check_port(port)
    key = new_key()
    simulator_port = None if os.environ.get("DASHSCOPE_API_KEY") else start_simulator()
    config = demo_config(key, Listen(host, port), simulator_port, os.environ)
    start(config, 1, lambda url: demo_text(key, url, simulator_port))


def simulate(*, host: str, port: int) -> None:
    """Run the DashScope simulator alone."""
    check_port(port)
    print(f"simulator: listening on http://{host}:{port}/api/v1", flush=True)
    run_simulator(host, port)


def usage(
    *, tenant: str | None, config: Path, since: datetime | None, by: str | None, json: bool
) -> None:
    """Show what each tenant has used today and this month, and what it has left.

    With `--since` or `--by`, sum the usage record (`usage_log`) instead.
    """
    loaded = read_config(config)
    if since is not None or by is not None:
        try:
            sums = recorded(loaded, tenant, since, by or "tenant,model", json=json)
        except (OSError, ValueError) as fault:
            stop(fault)
            raise
        print(sums)
        return
    tenants = [t for t in loaded.tenants if tenant in (None, t.name)]
    if not tenants:
        stop(f"No tenant named {tenant!r} in {config}.")
    if loaded.redis is None:
        stop(f"{config} has no `redis:`, so usage lives inside the running gateway only.")
    try:
        found = asyncio.run(from_store(loaded, tenants))
    except StoreUnavailable as fault:
        stop(f"Redis did not answer: {fault}")
        raise
    print(as_json(found, loaded.catalogue.currency) if json else as_table(found, loaded))


async def from_store(config: Config, tenants: list[Tenant]) -> list[Usage]:
    store = open_store(config, Clock(time.time, time.monotonic))
    try:
        return await read_usage(store, tenants)
    finally:
        await store.aclose()


def stats(*, config: Path, tenant: str | None, json: bool) -> None:
    """Show how much each tenant's cache holds, and how often it was of use."""
    reports = with_caches(config, tenant, caches.report)
    print(caches.as_json(reports) if json else caches.as_table(reports))


def purge(*, config: Path, tenant: str | None) -> None:
    """Empty the caches. Results stay where an idempotency key or a retry has a right to them."""
    print(f"{with_caches(config, tenant, caches.purge)} results purged")


def with_caches(path: Path, tenant: str | None, work: CacheWork[T]) -> T:
    """Do something with the caches of a configuration, or end with a sentence."""
    loaded = read_config(path)
    names = caches.scopes(loaded.tenants, tenant)
    if not names:
        stop(f"No tenant named {tenant!r} in {path}.")
    if loaded.redis is None:
        stop(f"{path} has no `redis:`, so the cache lives inside the running gateway only.")

    async def run() -> T:
        clock = Clock(time.time, time.monotonic)
        store, images = open_store(loaded, clock), open_image_store(loaded, clock)
        try:
            return await work(store, images, names)
        finally:
            await store.aclose()
            if images:
                await images.aclose()

    try:
        return asyncio.run(run())
    except StoreUnavailable as fault:
        stop(f"Redis did not answer: {fault}")
        raise


def check_config(file: Path) -> None:
    """Check a configuration file: report every fault, and warn of what will hurt later.

    Warnings leave the exit status 0. `gateway doctor` asks the accounts and Redis, too.
    """
    loaded = read_config(file)
    print(
        f"{file}: no faults. {len(loaded.accounts)} accounts, {len(loaded.tenants)} tenants, "
        f"{len(loaded.catalogue.models)} models, {len(loaded.catalogue.aliases)} aliases."
    )
    for warning in warnings_of(loaded):
        print(f"warning: {warning}")


def doctor(config: Path) -> None:
    """Ask what the configuration names for real, at no cost: accounts, proxies, image hosts, Redis.

    A line each, with what to do where it fails; the exit status is 1 if any fails.
    """
    loaded = read_config(config)
    silence_logs()
    masker.hide(loaded.secrets())
    found = asyncio.run(examine(loaded))
    print("\n".join(report(found)))
    if any(finding.state == "fails" for finding in found):
        raise SystemExit(1)


def print_new_key(tenant: str) -> None:
    """Make a key for a tenant: printed once, and its hash to paste into the configuration."""
    key = new_key()
    print(key)
    print(f'\n# under `keys:` of the tenant {tenant!r}:\n- {{hash: "{hash_key(key)}", label: ""}}')


def command_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="gateway",
        description="An OpenAI-compatible image API in front of Alibaba DashScope.",
        epilog="`gateway COMMAND --help` shows what a command takes.",
        allow_abbrev=False,
    )
    commands = Commands(parser)
    add_servers(commands)
    commands.add(
        "usage",
        usage,
        argument("tenant", metavar="TENANT", nargs="?", help="only this one"),
        config_for("the tenants' names, the store and the usage record"),
        argument(
            "--since",
            metavar="TIME",
            type=utc_time,
            help="sum from this UTC time on, such as 2026-11-01 or 2026-11-01T12:00:00",
        ),
        argument(
            "--by",
            metavar="NAMES",
            help="sum for each of tenant, key, model, size, day, month; such as tenant,model,day",
        ),
        AS_JSON,
    )
    cache = commands.group("cache", "What the tenants' caches hold.")
    of_caches = config_for("the tenants' names and the store")
    cache.add("stats", stats, of_caches, ONE_CACHE, AS_JSON)
    cache.add("purge", purge, of_caches, ONE_CACHE)
    commands.add(
        "check-config", check_config, argument("file", metavar="FILE", type=Path, help="the file")
    )
    commands.add("doctor", doctor, config_for("what is to be asked"))
    commands.add("new-key", print_new_key, argument("tenant", metavar="TENANT", help="its name"))
    return parser


def add_servers(commands: Commands) -> None:
    """Commands that serve until they are stopped."""
    commands.add(
        "serve",
        serve,
        argument(
            "--config", metavar="FILE", type=Path, required=True, help="the configuration file"
        ),
        argument("--host", help="listen here instead of the file's `listen.host`"),
        argument("--port", type=int, help="listen here instead of the file's `listen.port`"),
        argument(
            "--workers",
            metavar="NUMBER",
            type=int,
            default=1,
            help="number of processes; more than one needs Redis; default: %(default)s",
        ),
    )
    commands.add("demo", demo, HOST, port_of(8080))
    commands.add("simulate", simulate, HOST, port_of(8090))


def config_for(what: str) -> Argument:
    return argument(
        "--config",
        metavar="FILE",
        type=Path,
        required=True,
        help=f"the configuration file, for {what}",
    )


def port_of(number: int) -> Argument:
    return argument("--port", type=int, default=number, help="default: %(default)s")

"""The `gateway` command: arguments only, the work is elsewhere."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cyclopts import App
from msgspec.structs import replace

from gateway.app import open_store
from gateway.config import Config, Listen, Tenant, load_config
from gateway.decoding import ConfigError
from gateway.demo import demo_config, demo_text, start_simulator
from gateway.generation import Clock
from gateway.server import serve as run_server
from gateway.simulator.app import serve as run_simulator
from gateway.store.base import StoreUnavailable, Usage
from gateway.tenants import hash_key, new_key
from gateway.usage import as_json, as_table, read_usage

app = App(
    name="gateway",
    help="An OpenAI-compatible image API in front of Alibaba DashScope.",
    version_flags=[],
)


def main() -> None:
    """Entry point of the `gateway` script."""
    app()


def stop(message: object) -> None:
    """End with a sentence on standard error and status 1."""
    print(message, file=sys.stderr)
    raise SystemExit(1)


def read_config(path: Path) -> Config:
    """The configuration, or an end with all its faults."""
    try:
        return load_config(path)
    except ConfigError as fault:
        stop(fault)
        raise


@app.command
def serve(
    *,
    config: Path,
    host: str | None = None,
    port: int | None = None,
    workers: int = 1,
) -> None:
    """Run the gateway.

    Parameters
    ----------
    config
        The configuration file.
    host
        Listen here instead of the file's `listen.host`.
    port
        Listen here instead of the file's `listen.port`.
    workers
        Number of processes; more than one needs Redis.
    """
    loaded = read_config(config)
    listen = Listen(host or loaded.listen.host, loaded.listen.port if port is None else port)
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
    """Serve, and say where once requests are taken; `text` has more to say of that address."""

    def announce(port: int) -> None:
        host = f"[{config.listen.host}]" if ":" in config.listen.host else config.listen.host
        url = f"http://{host}:{port}"
        print(f"gateway: listening on {url}{text(url)}", flush=True)

    try:
        run_server(config, workers, announce, path)
    except OSError as fault:
        where = f"{config.listen.host}:{config.listen.port}"
        stop(f"gateway: cannot listen on {where}: {fault.strerror or fault}")


@app.command
def demo(*, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Run the gateway with a fresh tenant key and no file; without DASHSCOPE_API_KEY, simulated."""
    key = new_key()
    simulator_port = None if os.environ.get("DASHSCOPE_API_KEY") else start_simulator()
    config = demo_config(key, Listen(host, port), simulator_port, os.environ)
    start(config, 1, lambda url: demo_text(key, url, simulator_port))


@app.command
def simulate(*, host: str = "127.0.0.1", port: int = 8090) -> None:
    """Run the DashScope simulator alone."""
    print(f"simulator: listening on http://{host}:{port}/api/v1", flush=True)
    run_simulator(host, port)


@app.command
def usage(tenant: str | None = None, *, config: Path, json: bool = False) -> None:
    """Show what each tenant has used today and this month, and what it has left.

    Parameters
    ----------
    tenant
        Only this one.
    config
        The configuration file, for the tenants' names and the store.
    json
        Print JSON instead of a table.
    """
    loaded = read_config(config)
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
    """Open the store, read, close."""
    store = open_store(config, Clock(time.time, time.monotonic))
    try:
        return await read_usage(store, tenants)
    finally:
        await store.aclose()


@app.command
def check_config(file: Path) -> None:
    """Check a configuration file and report every fault."""
    loaded = read_config(file)
    print(
        f"{file}: no faults. {len(loaded.accounts)} accounts, {len(loaded.tenants)} tenants, "
        f"{len(loaded.catalogue.models)} models, {len(loaded.catalogue.aliases)} aliases."
    )


@app.command(name="new-key")
def print_new_key(tenant: str) -> None:
    """Make a key for a tenant: printed once, and its hash to paste into the configuration."""
    key = new_key()
    print(key)
    print(f'\n# under `keys:` of the tenant {tenant!r}:\n- {{hash: "{hash_key(key)}", label: ""}}')

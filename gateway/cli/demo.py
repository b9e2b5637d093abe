"""`gateway demo`, which `make run` calls: a working gateway without a configuration file."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Mapping

from gateway.config import (
    Account,
    Config,
    Images,
    Key,
    Listen,
    Tenant,
    with_catalogue,
    with_proxies,
)
from gateway.config.decode import Secret
from gateway.domain.catalogue import Rate
from gateway.simulator.app import serve as run_simulator
from gateway.tenants.keys import hash_key

DASHSCOPE = "https://dashscope-intl.aliyuncs.com/api/v1"


def start_simulator() -> int:
    """In a process that ends with this one; returns its port."""
    sock = socket.create_server(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    multiprocessing.get_context("fork").Process(
        target=simulate, args=(port, sock), daemon=True
    ).start()
    sock.close()
    return port


def simulate(port: int, sock: socket.socket) -> None:
    """Run until the parent process has ended, even by SIGKILL."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    run_simulator("127.0.0.1", port, sock=sock)


def end_with_parent() -> None:
    """Wait for the end of a pipe that the parent holds, then end at once."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


def demo_config(
    key: str, listen: Listen, simulator_port: int | None, environment: Mapping[str, str]
) -> Config:
    """One tenant without limits, and the simulator or the DashScope account of the environment."""
    if simulator_port is None:
        base_url = environment.get("DASHSCOPE_BASE_URL", DASHSCOPE)
        api_key, images = environment["DASHSCOPE_API_KEY"], Images()
    else:
        base_url = f"http://127.0.0.1:{simulator_port}/api/v1"
        api_key, images = "simulated", Images(allowed_hosts=("127.0.0.1",), allow_http=True)
    rates = {} if simulator_port is None else {"*": Rate(None)}
    account = Account(name="demo", base_url=base_url, api_key=Secret(api_key), rates=rates)
    tenant = Tenant(name="demo", keys=(Key(hash=hash_key(key), label="demo"),))
    config = Config(accounts=(account,), tenants=(tenant,), images=images, listen=listen)
    # No proxy leads to a simulator on this machine.
    proxies = {} if simulator_port is not None else environment
    return with_proxies(with_catalogue(config), proxies)


def demo_text(key: str, url: str, simulator_port: int | None) -> str:
    """The key, and a line that works as pasted."""
    upstream = (
        "DashScope, with the account of DASHSCOPE_API_KEY"
        if simulator_port is None
        else f"the simulator on port {simulator_port}; set DASHSCOPE_API_KEY to use DashScope"
    )
    return f"""
  upstream    {upstream}
  tenant key  {key}

Paste this into another terminal:

curl -s {url}/v1/images/generations \
  -H 'Authorization: Bearer {key}' \
  -H 'Content-Type: application/json' \
  -d '{{"model": "qwen-image-2.0", "prompt": "a red fox in the snow", "size": "1024x1024"}}'
"""

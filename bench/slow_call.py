"""The longest generation, through the proxies of deploy/proxies as they are.

    .venv/bin/python bench/slow_call.py [--seconds 295]

Starts a pretend vendor that takes so long for an image, a gateway, and before it nginx and Envoy
with their files' own time-outs, and asks for one image through each. The gateway's own limit for a
request is 300 s. The exit status is 1 when an answer is not the image.
"""
# ruff: noqa: INP001, T201 - a program that measures others and prints

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.deploy.proxies import envoy, nginx
from tests.operations.site import IMAGE, PATH, document, session
from tests.running import GatewayProcess
from tests.simulated import SimulatedDashScope


async def ask(name: str, url: str) -> bool:
    """One image; whether it came."""
    started = time.monotonic()
    async with session() as client:
        # Longer than any limit on the way.
        timeout = aiohttp.ClientTimeout(total=600)
        async with client.post(url + PATH, json=IMAGE, timeout=timeout) as answer:
            body = await answer.json()
    print(f"{name:8}{answer.status} after {time.monotonic() - started:.1f} s")
    return answer.status == 200 and len(body["data"]) == 1


async def ask_all(urls: Mapping[str, str]) -> bool:
    """Through every proxy at the same time."""
    return all(await asyncio.gather(*(ask(name, url) for name, url in urls.items())))


def main() -> None:
    """Start everything, ask, say how long it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=295)
    options = parser.parse_args()
    with ExitStack() as stack:
        vendor = SimulatedDashScope(render="plain", latency_s=options.seconds)
        stack.enter_context(vendor)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = folder / "gateway.yaml"
        config.write_text(json.dumps(document(vendor.base_url)))
        gateway = stack.enter_context(GatewayProcess.serving(config))
        port = int(gateway.url.rpartition(":")[2])
        urls = {
            proxy.__name__: stack.enter_context(proxy([port, port], folder))
            for proxy in (nginx, envoy)
        }
        came = asyncio.run(ask_all(urls))
    sys.exit(not came)


if __name__ == "__main__":
    main()

"""Assembles the pretend DashScope, and serves it."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from typing import Any

import uvicorn
from litestar import Litestar, Request, Response, asgi
from litestar.exceptions import NotFoundException
from litestar.types import Receive, Scope, Send

from gateway.simulator.connection import ExposedConnection
from gateway.simulator.control import control_routes
from gateway.simulator.downloads import DownloadEndpoint
from gateway.simulator.generation import PATHS, GenerationEndpoint
from gateway.simulator.settings import LIFELIKE, Settings
from gateway.simulator.simulator import Clock, Simulator, Sleep
from gateway.simulator.task_api import task_routes

KEEP_ALIVE_S = 75
BACKLOG = 4096


def create_app(
    settings: Settings | None = None,
    *,
    clock: Clock = time.time,
    sleep: Sleep = asyncio.sleep,
    chance: random.Random | None = None,
) -> Litestar:
    """One pretend vendor with a state of its own.

    Args:
        settings: what it is like; no latency and no limits when absent.
        clock: Unix seconds, for URL expiry, task progress and call rates.
        sleep: waits the seconds given, for latency and slow faults.
        chance: for seeds, latencies and URL names; give a seeded one to repeat a run.
    """
    simulator = Simulator(settings or Settings(), clock, sleep, chance or random.Random())
    generation_endpoint = GenerationEndpoint(simulator)
    download_endpoint = DownloadEndpoint(simulator)

    @asgi(list(PATHS), copy_scope=False)
    async def generation(scope: Scope, receive: Receive, send: Send) -> None:
        await generation_endpoint(scope, receive, send)

    @asgi(["/1d", "/7d"], is_mount=True, copy_scope=False)
    async def download(scope: Scope, receive: Receive, send: Send) -> None:
        await download_endpoint(scope, receive, send)

    return Litestar(
        route_handlers=[generation, download, task_routes(simulator), control_routes(simulator)],
        exception_handlers={NotFoundException: _not_found},
        openapi_config=None,
        logging_config=None,
    )


def build_server(app: Litestar, host: str = "127.0.0.1", port: int = 0) -> uvicorn.Server:
    """A server for the app that can cut connections; tests run and stop it themselves."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=ExposedConnection,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    settings: Settings = LIFELIKE,
    sock: socket.socket | None = None,
) -> None:
    """Serves until interrupted; on `sock` when given, which is then bound and listening already.

    It is a test tool without any protection: keep it on a loopback address.
    """
    server = build_server(create_app(settings), host, port)
    server.run(sockets=[sock] if sock is not None else None)


def _not_found(_: Request[Any, Any, Any], __: NotFoundException) -> Response[dict[str, str]]:
    return Response({"code": "NotFound", "message": "Not found."}, status_code=404)

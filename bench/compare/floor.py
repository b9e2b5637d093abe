"""What the gateway's stack can do at most: Litestar with little or nothing behind it.

    python bench/compare/floor.py --redis URL --upstream URL

    /echo  a typed body in, a typed answer out
    /hit   with one Redis script by redis-py, one log line, one counter and one histogram
    /miss  with one call by aiohttp besides

No gateway can be built on this stack with less; it checks no key, plans nothing and keeps nothing.
"""
# ruff: noqa: INP001, T201 - a program that prints where it listens

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import aiohttp
import msgspec
import uvicorn
from litestar import Litestar, post
from prometheus_client import Counter, Histogram
from redis.asyncio import Redis

SCRIPT = """\
local used = redis.call('INCR', KEYS[1])
redis.call('PEXPIRE', KEYS[1], 60000)
return {used, redis.call('GET', KEYS[2]) or ''}
"""
REQUESTS = Counter("floor_requests_total", "Answers.", ["tenant", "outcome"])
SECONDS = Histogram("floor_seconds", "Of each.", ["model"])
URL = "https://dashscope-result.oss-cn-beijing.aliyuncs.com/7d/a.png?Expires=4000000000&Signature="
ENCODER = msgspec.json.Encoder()


class ImageRequest(msgspec.Struct):
    prompt: str
    model: str | None = None
    n: int | None = None
    seed: int | None = None


class Image(msgspec.Struct):
    url: str


class ImagesResponse(msgspec.Struct):
    created: int
    data: list[Image]


class Item(msgspec.Struct):
    image: str | None = None


class Reply(msgspec.Struct):
    content: list[Item]


class Choice(msgspec.Struct):
    message: Reply


class Output(msgspec.Struct):
    choices: list[Choice]


class GenerationReply(msgspec.Struct):
    output: Output


REPLY = msgspec.json.Decoder(GenerationReply)


class Floor:
    """The two that do something."""

    def __init__(self, redis: str, upstream: str) -> None:
        self._redis = Redis.from_url(redis)
        self._script = self._redis.register_script(SCRIPT)
        self._url = f"{upstream}/api/v1/services/aigc/multimodal-generation/generation"
        self._session: aiohttp.ClientSession

    @asynccontextmanager
    async def lifespan(self, _: Litestar) -> AsyncIterator[None]:
        self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        yield
        await self._session.close()

    async def hit(self, data: ImageRequest) -> ImagesResponse:
        began = perf_counter()
        await self._ask_redis()
        return self._answer(data, URL, began)

    async def miss(self, data: ImageRequest) -> ImagesResponse:
        began = perf_counter()
        await self._ask_redis()
        call = {
            "model": data.model,
            "input": {"messages": [{"role": "user", "content": [{"text": data.prompt}]}]},
            "parameters": {"n": 1, "seed": data.seed},
        }
        async with self._session.post(
            self._url, data=ENCODER.encode(call), headers={"content-type": "application/json"}
        ) as response:
            reply = REPLY.decode(await response.read())
        return self._answer(data, reply.output.choices[0].message.content[0].image or "", began)

    async def _ask_redis(self) -> None:
        await self._script(keys=["floor:used", "floor:kept"], args=[1])

    def _answer(self, data: ImageRequest, url: str, began: float) -> ImagesResponse:
        took_s = perf_counter() - began
        REQUESTS.labels("bench", "ok").inc()
        SECONDS.labels(data.model or "").observe(took_s)
        now = datetime.now(UTC)
        line = {"event": "answered", "ms": took_s * 1000, "model": data.model, "at": now}
        sys.stderr.write(ENCODER.encode(line).decode() + "\n")
        return ImagesResponse(created=int(now.timestamp()), data=[Image(url)])


async def echo(data: ImageRequest) -> ImagesResponse:
    return ImagesResponse(created=1763800000, data=[Image(data.prompt)])


def application(floor: Floor) -> Any:  # noqa: ANN401 - ASGI
    routes = {"/echo": echo, "/hit": floor.hit, "/miss": floor.miss}
    handlers = [post(path, status_code=200)(function) for path, function in routes.items()]
    return Litestar(handlers, lifespan=[floor.lifespan], openapi_config=None, logging_config=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--redis", required=True)
    parser.add_argument("--upstream", required=True)
    arguments = parser.parse_args()
    app = application(Floor(arguments.redis, arguments.upstream))
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_config=None, access_log=False)
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as sock:
        print(f"listening on http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[sock])


if __name__ == "__main__":
    main()

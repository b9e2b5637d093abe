"""A vendor that answers at once, and costs next to nothing: what stands behind every contender.

    python bench/compare/upstream.py [--delay SECONDS]

Answers any POST with one image, in DashScope's form, or in OpenAI's on a path that ends so.
"""
# ruff: noqa: INP001, T201 - a program that prints where it listens

from __future__ import annotations

import argparse
import asyncio
import re
from functools import partial

import uvloop

IMAGE = (
    "https://dashscope-result.oss-cn-beijing.aliyuncs.com/7d/a.png?Expires=4000000000&Signature="
)
DASHSCOPE = (
    b'{"output":{"choices":[{"finish_reason":"stop","message":{"role":"assistant","content":'
    b'[{"image":"%b"}]}}]},"usage":{"image_count":1,"width":1024,"height":1024},'
    b'"request_id":"d0250a3d-b07f-49e1-bdc8-6793f4929694"}' % IMAGE.encode()
)
OPENAI = b'{"created":1763800000,"data":[{"url":"%b"}]}' % IMAGE.encode()
OPENAI_PATH = b"/images/generations"
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"transfer-encoding: *chunked", re.IGNORECASE)
HEAD_ENDS, CHUNKS_END = b"\r\n\r\n", b"\r\n0\r\n\r\n"


def answer(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


ANSWERS = {False: answer(DASHSCOPE), True: answer(OPENAI)}


class Connection(asyncio.Protocol):
    """Requests one after the other."""

    transport: asyncio.Transport

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._unread += data
        while (end := self._end_of_request()) is not None:
            line = self._unread.partition(b" HTTP/")[0]
            self._unread = self._unread[end:]
            reply = ANSWERS[line.endswith(OPENAI_PATH)]
            if self._delay_s and line.startswith(b"POST"):
                asyncio.get_running_loop().call_later(self._delay_s, self._write, reply)
            else:
                self._write(reply)

    def _write(self, reply: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(reply)

    def _end_of_request(self) -> int | None:
        head_end = self._unread.find(HEAD_ENDS)
        if head_end < 0:
            return None
        body = head_end + len(HEAD_ENDS)
        head = self._unread[:head_end]
        if CHUNKED.search(head):
            end = self._unread.find(CHUNKS_END, head_end)
            return None if end < 0 else end + len(CHUNKS_END)
        length = LENGTH.search(head)
        end = body + (int(length[1]) if length else 0)
        return end if len(self._unread) >= end else None


async def serve(delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(Connection, delay_s), "127.0.0.1", 0, backlog=8192)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    uvloop.run(serve(parser.parse_args().delay))

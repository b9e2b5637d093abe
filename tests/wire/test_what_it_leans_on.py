"""All that the HTTP layer takes from uvicorn and httptools; a new version of one may break it here
and nowhere else.
"""

from __future__ import annotations

import asyncio
import inspect

import httptools
import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.server.http import HttpProtocol


def test_the_state_that_uvicorn_hands_over() -> None:
    state = ServerState()

    assert (state.connections, state.tasks, state.default_headers) == (set(), set(), [])


def test_what_uvicorn_makes_a_connection_with() -> None:
    """Its server calls the class with these names, and the object's `shutdown`."""
    source = inspect.getsource(uvicorn.Server.startup)

    for name in ("config=", "server_state=", "app_state=", "_loop="):
        assert name in source
        assert name.removesuffix("=") in inspect.signature(HttpProtocol).parameters
    assert "connection.shutdown()" in inspect.getsource(uvicorn.Server.shutdown)
    assert "default_headers" in inspect.getsource(uvicorn.Server.on_tick)


async def test_the_application_that_uvicorn_loads() -> None:
    async def application(scope: object, receive: object, send: object) -> None:
        """Any."""

    config = uvicorn.Config(
        application, http=HttpProtocol, interface="asgi3", lifespan="off", log_config=None
    )
    config.load()
    await asyncio.sleep(0)

    assert config.loaded_app is not None
    assert config.http_protocol_class is HttpProtocol


def test_an_offer_is_reported_with_its_place() -> None:
    """Behind the head; what follows has not been read."""

    class Sink:
        def on_message_begin(self) -> None: ...

    head = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n"
    data = head + b"content-length: 5\r\n\r\n"
    parser = httptools.HttpRequestParser(Sink())

    with pytest.raises(httptools.HttpParserUpgrade) as offer:
        parser.feed_data(data + b"hello")

    assert offer.value.args == (len(data),)

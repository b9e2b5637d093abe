"""One server at each form of its address, as a user of its own: tcp, TLS and a Unix socket."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from gateway.store.availability import StoreUnavailable
from gateway.store.limits import Limits
from gateway.store.redis import RedisStore
from tests.certificates import make_certificate
from tests.contract.stores import PATIENT, ask, take
from tests.redis_server import RedisServer

LIMITS = Limits(requests_per_minute=10)
PASSWORD = "p/a?s#s@w%o:rd"
LOGIN = f"gateway:{quote(PASSWORD, safe='')}@"
DB = 3


@pytest.fixture
def server(each_redis_server: RedisServer) -> Iterator[RedisServer]:
    """Each version, with a user that may use the keys of the gateway alone."""
    with redis.Redis.from_url(each_redis_server.url) as client:
        rights = ["+@all", "~gateway:*"]
        client.execute_command("ACL", "SETUSER", "gateway", "on", f">{PASSWORD}", *rights)
        yield each_redis_server
        client.acl_deluser("gateway")
        client.flushall()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a key and a certificate of this machine, which signs itself."""
    return make_certificate(tmp_path / "redis.pem", "localhost")


@asynccontextmanager
async def over_tls(server: RedisServer, certificate: Path) -> AsyncIterator[int]:
    """A port that speaks TLS before a server, as not every server is built with it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", server.port)
        with suppress(OSError):
            await asyncio.gather(carry(reader, to_server), carry(from_server, writer))

    async with await asyncio.start_server(meet, "127.0.0.1", 0, ssl=context) as listening:
        yield listening.sockets[0].getsockname()[1]


async def check(url: str, server: RedisServer) -> None:
    """It counts there, in the database that the address names."""
    store = RedisStore(url, timeouts=PATIENT)
    assert (await take(store, ask(1, LIMITS))).allowed
    await store.ping()
    await store.aclose()
    with redis.Redis(port=server.port, db=DB) as client:
        assert client.exists("gateway:{t:acme}:window")


async def test_over_tcp(server: RedisServer) -> None:
    await check(f"redis://{LOGIN}127.0.0.1:{server.port}/{DB}", server)


async def test_over_a_unix_socket(server: RedisServer) -> None:
    await check(f"unix://{LOGIN}{server.dir}/redis.sock?db={DB}", server)


async def test_over_tls(server: RedisServer, certificate: Path) -> None:
    async with over_tls(server, certificate) as port:
        url = f"rediss://{LOGIN}localhost:{port}/{DB}"
        await check(f"{url}?ssl_ca_certs={certificate}", server)
        await check(f"{url}?ssl_cert_reqs=none", server)


@pytest.mark.parametrize("options", ["", "?ssl_check_hostname=false", "?ssl_ca_certs=/none.pem"])
async def test_a_server_that_cannot_prove_itself_is_unavailable(
    options: str, server: RedisServer, certificate: Path
) -> None:
    async with over_tls(server, certificate) as port:
        store = RedisStore(f"rediss://{LOGIN}localhost:{port}/0{options}", timeouts=PATIENT)
        with pytest.raises(StoreUnavailable):
            await take(store, ask(1, LIMITS))
        await store.aclose()


async def test_a_name_that_is_not_in_the_certificate_counts_only_if_asked(
    server: RedisServer, certificate: Path
) -> None:
    async with over_tls(server, certificate) as port:
        url = f"rediss://{LOGIN}127.0.0.1:{port}/{DB}?ssl_ca_certs={certificate}"
        store = RedisStore(url, timeouts=PATIENT)
        with pytest.raises(StoreUnavailable):
            await take(store, ask(1, LIMITS))
        await store.aclose()
        await check(f"{url}&ssl_check_hostname=false", server)


@pytest.mark.parametrize("login", ["", "gateway:wrong@", "nobody:pw@"])
async def test_a_wrong_password_is_unavailable(login: str, server: RedisServer) -> None:
    """A server without an open default user lets nobody in."""
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "default", "-@all", "+acl", "+flushall", "+ping")
        try:
            store = RedisStore(f"redis://{login}127.0.0.1:{server.port}", timeouts=PATIENT)
            with pytest.raises(StoreUnavailable):
                await take(store, ask(1, LIMITS))
            await store.aclose()
        finally:
            client.execute_command("ACL", "SETUSER", "default", "+@all")

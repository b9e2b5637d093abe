"""Changing the file while it serves: every worker follows in time, and no caller notices."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from gateway.config import Config, load_config
from gateway.config.decode import ConfigError
from gateway.config.reload import FOLLOWED, Follower
from tests.operations.site import (
    IMAGE,
    PATH,
    Line,
    Load,
    Site,
    children_of,
    document,
    eventually,
    generate,
    line_to_each,
    one_account,
    session,
    tenant,
    write,
)
from tests.running import ACME, GatewayProcess, key_of
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.timing

WITHIN_S: Final = 2.0
RELOADS: Final = 100
EVERY_TENTH_BROKEN: Final = (2, 5, 8)
PER_SECOND: Final = 30

BROKEN: Final[tuple[dict[str, Any], ...]] = (
    {"tenants": [tenant("acme", ACME, models="*"), {"name": "no keys"}]},
    {"max_body_bytes": -1, "colour": "red"},
    {"aliases": {"painter": {"model": "no-such-model"}}, "default_model": "neither"},
)
FAULTS: Final = (
    ("tenants[0].models", "tenants[1].name", "tenants[1].keys"),
    ("max_body_bytes", "colour: unknown key"),
    ("aliases.painter.model", "default_model"),
)


class Followed:
    """A running site, a kept connection to each worker, and how long changes took."""

    def __init__(self, site: Site, gateway: GatewayProcess, lines: list[Line]) -> None:
        self.site = site
        self.gateway = gateway
        self.lines = lines
        self.slowest_s = 0.0

    def signal(self) -> None:
        self.gateway.stop(signal.SIGHUP)

    def count(self, event: str) -> int:
        """How many times the workers have logged it."""
        return len(re.findall(rf'"event": ?"{event}"', self.gateway.output))

    async def until_everywhere(self, method: str, path: str, check: Any, **more: Any) -> None:
        """Ask every worker until each gives the answer that the file asks for."""
        for line in self.lines:

            async def is_so(line: Line = line) -> bool:
                return bool(check(*await line.ask(method, path, **more)))

            took_s = await eventually(is_so, WITHIN_S)
            self.slowest_s = max(self.slowest_s, took_s)

    async def until_faults(self, number: int) -> None:
        """As the metrics tell it."""

        async def is_so() -> bool:
            async with (
                aiohttp.ClientSession() as client,
                client.get(f"{self.gateway.url}/metrics") as answer,
            ):
                return f"gateway_configuration_faults {number:.1f}" in await answer.text()

        await eventually(is_so, WITHIN_S)


@pytest.fixture
async def followed(site: Site) -> AsyncIterator[Followed]:
    site.write()
    with site.start() as gateway:
        lines = await line_to_each(gateway.url, children_of(gateway.pid))
        yield Followed(site, gateway, lines)
        for line in lines:
            line.close()


async def change_key(now: Followed, number: int) -> None:
    """A new key opens the door, and the one before it no longer does."""
    fresh, former = key_of(f"key{number}"), key_of(f"key{number - 1}")
    now.site.write(tenants=[tenant("acme", ACME, fresh)])
    now.signal()
    await now.until_everywhere("GET", "/v1/models", lambda s, *_: s == 200, key=fresh)
    await now.until_everywhere("GET", "/v1/models", lambda s, *_: s == 401, key=former)


async def change_limit(now: Followed, number: int) -> None:
    limits = {"requests_per_minute": 100_000 + number}
    now.site.write(tenants=[tenant("acme", ACME, limits=limits)])
    now.signal()
    shown = str(limits["requests_per_minute"])
    await now.until_everywhere(
        "POST",
        PATH,
        lambda s, h, _: s == 200 and h.get("x-ratelimit-limit-requests") == shown,
        body=IMAGE,
    )


async def change_alias(now: Followed, number: int) -> None:
    now.site.write(aliases={f"painter-{number}": {"model": "qwen-image-2.0"}})
    now.signal()
    await now.until_everywhere("GET", f"/v1/models/painter-{number}", lambda s, *_: s == 200)


async def change_models(now: Followed, number: int) -> None:
    """A tenant's right is taken away and, with the next change, given back."""
    now.site.write(tenants=[tenant("acme", ACME, models=["qwen-image-2.0"])])
    now.signal()
    await now.until_everywhere("GET", "/v1/models/qwen-image-plus", lambda s, *_: s in {403, 404})


async def break_it(now: Followed, number: int) -> None:
    """Both workers report every fault, with its path, and go on as before."""
    choice = number % len(BROKEN)
    refused, printed = now.count("reload_refused"), len(now.gateway.output)
    now.site.write(**BROKEN[choice])
    now.signal()

    async def reported() -> bool:
        return now.count("reload_refused") >= refused + len(now.lines)

    await eventually(reported, WITHIN_S)
    await now.until_faults(len(FAULTS[choice]))
    for fault in FAULTS[choice]:
        assert fault in now.gateway.output[printed:]
    for line in now.lines:
        assert (await line.ask("GET", "/v1/models"))[0] == 200


async def test_a_refused_file_is_seen_until_it_is_mended(followed: Followed) -> None:
    await break_it(followed, 0)
    followed.site.write()
    followed.signal()
    await followed.until_faults(0)


CHANGES: Final = (change_key, change_limit, change_alias, change_models)


@pytest.mark.timeout(120)
async def test_100_reloads_under_load_drop_nothing(followed: Followed) -> None:
    """30 of them are broken; every other one holds in both workers within two seconds."""
    kinds = itertools.cycle(CHANGES)
    async with Load(followed.gateway.url, PER_SECOND) as load:
        for number in range(RELOADS):
            change = break_it if number % 10 in EVERY_TENTH_BROKEN else next(kinds)
            await change(followed, number)
    assert dict(load.outcomes) == {"200": load.sent}
    assert followed.slowest_s < WITHIN_S


async def test_a_replaced_file_is_noticed_without_a_signal(followed: Followed) -> None:
    """By a rename, by writing into it, and through the links that a mounted ConfigMap has."""
    site = followed.site
    new = [key_of(f"new{number}") for number in range(3)]
    site.write(tenants=[tenant("acme", ACME, new[0])])
    await followed.until_everywhere("GET", "/v1/models", lambda s, *_: s == 200, key=new[0])

    content = json.loads(site.file.read_text()) | {"tenants": [tenant("acme", ACME, new[1])]}
    site.file.write_text(json.dumps(content))
    await followed.until_everywhere("GET", "/v1/models", lambda s, *_: s == 200, key=new[1])
    await followed.until_everywhere("GET", "/v1/models", lambda s, *_: s == 401, key=new[0])


async def test_a_swapped_link_is_noticed(site: Site, tmp_path: Path) -> None:
    """A mounted ConfigMap: `gateway.yaml` → `..data/gateway.yaml`, and `..data` is swapped."""
    fresh = key_of("fresh")
    site.write()
    first, second = tmp_path / "..first", tmp_path / "..second"
    first.mkdir()
    second.mkdir()
    site.file.rename(first / "gateway.yaml")
    content = json.loads((first / "gateway.yaml").read_text())
    write(second / "gateway.yaml", content | {"tenants": [tenant("acme", fresh)]})
    (tmp_path / "..data").symlink_to(first.name)
    site.file.symlink_to("..data/gateway.yaml")
    with site.start() as gateway:
        lines = await line_to_each(gateway.url, children_of(gateway.pid))
        (tmp_path / "..data_tmp").symlink_to(second.name)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        now = Followed(site, gateway, lines)
        await now.until_everywhere("GET", "/v1/models", lambda s, *_: s == 200, key=fresh)
        await now.until_everywhere("GET", "/v1/models", lambda s, *_: s == 401)
        for line in lines:
            line.close()


async def test_accounts_follow_the_file(followed: Followed, vendor: SimulatedDashScope) -> None:
    """The next call goes to the account that the file names now."""
    with SimulatedDashScope(render="plain") as other:
        account = one_account(other.base_url, name="two", api_key="sk-two")
        followed.site.write(accounts=[account])
        followed.signal()
        before = vendor.state(0)["paid"]

        async def calls_the_other() -> bool:
            answers = [await line.ask("POST", PATH, body=IMAGE) for line in followed.lines]
            assert [status for status, *_ in answers] == [200, 200]
            return bool(sum(other.state(0)["paid"].values()) >= 4)

        await eventually(calls_the_other, WITHIN_S)
        after = vendor.state(0)["paid"]
    assert sum(after.values()) - sum(before.values()) <= 4


async def test_a_worker_that_replaces_a_dead_one_has_what_the_others_have(
    followed: Followed,
) -> None:
    """A removed key stays removed, even while the file is broken."""
    old, fresh = ACME, key_of("fresh")
    followed.site.write(tenants=[tenant("acme", fresh)])
    await followed.until_everywhere("GET", "/v1/models", lambda s, *_: s == 401, key=old)
    await asyncio.sleep(0.7)  # the supervisor looks twice a second
    followed.site.write(**BROKEN[0])
    await replace_a_worker(followed.gateway)
    lines = await line_to_each(followed.gateway.url, children_of(followed.gateway.pid))
    for line in lines:
        assert (await line.ask("GET", "/v1/models", key=old))[0] == 401
        assert (await line.ask("GET", "/v1/models", key=fresh))[0] == 200
        line.close()


async def replace_a_worker(gateway: GatewayProcess) -> None:
    """Kill one, and wait for the new one."""
    former = children_of(gateway.pid)
    os.kill(former[0], signal.SIGKILL)

    async def replaced() -> bool:
        now = children_of(gateway.pid)
        return len(now) == len(former) and former[0] not in now

    await eventually(replaced, 15)


async def test_what_needs_a_restart_is_said(followed: Followed) -> None:
    """A change that cannot be followed does not look as if it were."""
    followed.site.write(upstream={"deadline_s": 100}, tenants=[tenant("acme", ACME, models=["*"])])
    await asyncio.to_thread(followed.gateway.wait_for, r'"needs_restart": ?\["upstream"\]')
    assert "upstream" not in FOLLOWED


async def test_a_file_that_no_reader_expects_stops_no_later_change(followed: Followed) -> None:
    """The next good file is followed, whatever the one before it did to the parser."""
    fresh = key_of("fresh")
    followed.site.file.write_text("accounts: 2026-99-99")
    followed.signal()
    await asyncio.sleep(0.8)
    followed.site.write(tenants=[tenant("acme", fresh)])
    followed.signal()
    await followed.until_everywhere("GET", "/v1/models", lambda s, *_: s == 200, key=fresh)


async def test_half_a_character_ends_nobody(followed: Followed) -> None:
    """Neither a worker nor the supervisor, which still replaces the dead and can be ended."""
    content = {"tenants": [{**tenant("acme", ACME), "cache": {"mode": "\ud800"}}]}
    followed.site.write(**content)
    await asyncio.to_thread(followed.gateway.wait_for, "line 1: half a character")
    await asyncio.sleep(0.7)  # the supervisor looks twice a second
    await replace_a_worker(followed.gateway)
    for line in await line_to_each(followed.gateway.url, children_of(followed.gateway.pid)):
        line.close()
    followed.gateway.stop()
    assert await asyncio.to_thread(followed.gateway.ended) == 0


async def test_a_pipe_in_its_place_is_refused_and_stops_no_later_change(
    followed: Followed,
) -> None:
    """Nobody would ever write into it."""
    fresh = key_of("fresh")
    followed.site.file.unlink()
    os.mkfifo(followed.site.file)
    await asyncio.to_thread(followed.gateway.wait_for, "it is no regular file")
    followed.site.write(tenants=[tenant("acme", fresh)])
    await followed.until_everywhere("GET", "/v1/models", lambda s, *_: s == 200, key=fresh)


async def test_a_refused_file_is_followed_once_its_secret_is_there(
    followed: Followed, tmp_path: Path
) -> None:
    """The file itself does not change; and while it is refused, its faults are said once."""
    fresh, secret = key_of("fresh"), tmp_path / "secret"
    account = one_account(followed.site.base_url, api_key={"file": str(secret)})
    followed.site.write(accounts=[account], tenants=[tenant("acme", fresh)])
    await followed.until_faults(1)
    await asyncio.sleep(2.5)
    assert followed.count("reload_refused") == len(followed.lines)
    secret.write_text("sk-upstream-of-the-file")
    await followed.until_everywhere("GET", "/v1/models", lambda s, *_: s == 200, key=fresh)


async def test_a_file_that_could_not_be_read_for_a_moment_is_followed(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing about it changes when the reason goes away, as with a full table of open files."""
    tries = []

    def fail_once(path: Path) -> Config:
        tries.append(path)
        if len(tries) == 1:
            raise OSError(24, "Too many open files")
        return load_config(path)

    monkeypatch.setattr("gateway.config.reload.load_config", fail_once)
    follower = Follower(followed.site.file)
    with pytest.raises(ConfigError, match="OSError"):
        follower.read()
    assert not follower.is_due()

    async def is_due() -> bool:
        return follower.is_due()

    await eventually(is_due, WITHIN_S)
    assert follower.read().tenants
    assert not follower.is_due()


async def test_a_changed_address_needs_a_restart(site: Site) -> None:
    """Unless the command line has the last word on it."""
    site.write()
    with site.start("--port", "0") as gateway:
        await asyncio.sleep(1.5)  # each worker has looked at the file it was started with
        site.write(listen={"host": "127.0.0.2", "port": 0}, drain_s=7)
        await asyncio.to_thread(gateway.wait_for, r'"needs_restart": ?\["listen", ?"drain_s"\]')
    with site.start("--host", "127.0.0.1") as gateway:
        await asyncio.sleep(1.5)  # each worker has looked at the file it was started with
        site.write(listen={"host": "127.0.0.3", "port": 0}, drain_s=8)
        await asyncio.to_thread(gateway.wait_for, r'"needs_restart": ?\["drain_s"\]')


async def test_one_process_follows_too(site: Site) -> None:
    """Without a supervisor and without Redis."""
    fresh = key_of("fresh")
    write(site.file, document(site.base_url))
    with GatewayProcess.serving(site.file) as gateway:
        write(site.file, document(site.base_url, tenants=[tenant("acme", fresh)]))
        gateway.stop(signal.SIGHUP)
        async with session() as client:

            async def removed() -> bool:
                return await generate(client, gateway.url) == 401

            assert await eventually(removed) < WITHIN_S

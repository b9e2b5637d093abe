"""Marker secrets go in everywhere; success, failure, reload and crash show none of them."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from gateway.app import Parts
from gateway.config import load_config
from gateway.domain.clock import Clock
from gateway.store.availability import Share
from gateway.store.memory import MemoryStore
from gateway.tenants.keys import hash_key, new_key
from tests.redis_server import RedisServer
from tests.running import GatewayProcess
from tests.security.secrets_search import Search, writings
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

UPSTREAM: Final = "sk-marker-upstream-4f1c0a77e1"
FROM_FILE: Final = "sk-marker-file-91be55d203aa"
PASSWORD: Final = "marker-redis-password-77aa01"
PROMPT: Final = "marker prompt: a private fox in a secret den"
NEGATIVE: Final = "marker negative: no wolves at all"
FAILURES: Final = (
    *("InvalidApiKey", "Arrearage", "Throttling.RateQuota", "DataInspectionFailed"),
    *("InternalError", "drop", "garbage", "empty"),
)


class Running:
    """A gateway with a secret in every place that takes one."""

    def __init__(self, folder: Path, vendor: SimulatedDashScope, redis: RedisServer) -> None:
        self.key, self.removed = new_key(), new_key()
        self.file, self.usage = folder / "gateway.yaml", folder / "usage.jsonl"
        self.base_url, self.redis_port = vendor.base_url, redis.port
        (folder / "key").write_text(FROM_FILE + "\n")
        self.search = Search(
            {
                "a tenant's key": self.key,
                "a removed key": self.removed,
                "the vendor's key": UPSTREAM,
                "the key in a file": FROM_FILE,
                "the password of Redis": PASSWORD,
                "a prompt": PROMPT,
                "a negative prompt": NEGATIVE,
            }
        )

    def document(self) -> dict[str, Any]:
        rates = {"*": "unlimited"}
        accounts = [
            {"name": "env", "api_key": "${MARKER_KEY}", "base_url": self.base_url, "rates": rates},
            {
                "name": "file",
                "api_key": {"file": str(self.file.parent / "key")},
                "base_url": self.base_url,
                "rates": rates,
            },
        ]
        keys = [{"hash": hash_key(key), "label": "ci"} for key in (self.key, self.removed)]
        return {
            "listen": {"host": "127.0.0.1", "port": 0},
            "redis": {"url": f"redis://user:{PASSWORD}@127.0.0.1:{self.redis_port}/0"},
            "accounts": accounts,
            "images": {"allowed_hosts": ["127.0.0.1"], "allow_http": True},
            "usage_log": str(self.usage),
            "tenants": [{"name": "acme", "keys": keys}],
        }

    def write(self, document: dict[str, Any]) -> None:
        fresh = self.file.with_suffix(".new")
        fresh.write_text(json.dumps(document))
        fresh.rename(self.file)

    def ask(self, http: httpx.Client, method: str, url: str, **more: Any) -> httpx.Response:
        """Call, and keep what came back."""
        answer = http.request(method, url, **more)
        head = "\n".join(f"{name}: {text}" for name, text in answer.headers.items())
        self.search.add(f"the answer to {method} {answer.url.path}", head)
        # The simulator writes the prompt into its pictures, which are their caller's own.
        content = re.sub(rb'"b64_json": ?"[^"]*"', b"", answer.content)
        self.search.add(f"the answer to {method} {answer.url.path}", content)
        return answer


@pytest.fixture
def running(tmp_path: Path, own_redis_server: RedisServer) -> Iterator[Running]:
    own_redis_server.close()
    acl = f"user user on >{PASSWORD} ~* &* +@all"
    with (
        SimulatedDashScope(render="plain") as vendor,
        RedisServer(config=acl) as redis,
    ):
        yield Running(tmp_path, vendor, redis)


def call_in_every_way(running: Running, url: str) -> None:
    """Success, each kind of failure, and requests that are themselves at fault."""
    key = {"authorization": f"Bearer {running.key}"}
    path = f"{url}/v1/images/generations"
    with httpx.Client(trust_env=False, timeout=20) as http:
        body: dict[str, Any] = {"prompt": PROMPT, "model": "qwen-image-2.0", "size": "512x512"}
        body |= {"negative_prompt": NEGATIVE, "seed": 1}
        for form in ("url", "b64_json"):
            answer = running.ask(
                http, "POST", path, headers=key, json={**body, "response_format": form}
            )
            assert answer.status_code == 200
        for number, failure in enumerate(FAILURES):
            prompt = f"{PROMPT} [simulate:{failure}]"
            fields = {**body, "prompt": prompt, "seed": number + 2}
            running.ask(http, "POST", path, headers=key, json=fields)
        for bad in ({"prompt": [PROMPT]}, {"prompt": PROMPT, "size": running.key}, {}):
            running.ask(http, "POST", path, headers=key, json=bad)
        for header in (running.key[:-1], f"{running.key}x", running.removed):
            running.ask(http, "POST", path, headers={"authorization": f"Bearer {header}"}, json={})
        running.ask(http, "POST", path, headers={"authorization": running.key}, json={})
        for page in ("/v1/models", "/metrics", "/readyz", "/healthz", f"/{running.removed[:5]}"):
            running.ask(http, "GET", url + page, headers=key)


def test_nothing_shows_a_secret(running: Running) -> None:
    """Not the output of a whole life, nor an answer, the metrics or the usage record."""
    environment = {"MARKER_KEY": UPSTREAM}
    running.write(running.document())
    with GatewayProcess.serving(running.file, "--workers", "2", environment=environment) as gateway:
        call_in_every_way(running, gateway.url)
        running.write({**running.document(), "accounts": [{"api_key": UPSTREAM, "name": 1}]})
        gateway.stop(signal.SIGHUP)
        gateway.wait_for("reload_refused")
        running.file.write_text(f"redis: {{url: {PASSWORD}\n  api_key: '{UPSTREAM}")
        gateway.stop(signal.SIGHUP)
        time.sleep(0.7)
        kept = running.document()
        kept["tenants"][0]["keys"].pop()
        running.write(kept)
        gateway.stop(signal.SIGHUP)
        children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGABRT)
        time.sleep(1.0)
        gateway.stop()
        assert gateway.ended() == 0
    running.search.add("the output", gateway.output)
    running.search.add("the usage record", running.usage.read_bytes())

    assert running.search.size > 10_000
    assert running.search.found() == []


@pytest.mark.parametrize(
    "spoil",
    [
        {
            "accounts": [
                {"name": "one", "api_key": UPSTREAM, "base_url": f"https://u:{UPSTREAM}@x/"}
            ]
        },
        {"accounts": [{"name": UPSTREAM, "api_key": [UPSTREAM], "base_url": 5}]},
        {"redis": {"url": f"rediss:/user:{PASSWORD}@host"}},
        {"redis": {"url": f"redis://user:{PASSWORD}@127.0.0.1:notaport/0"}},
        {"redis": {"url": {"file": "/nowhere", "or": PASSWORD}}},
        {"tenants": [{"name": "acme", "keys": [{"hash": UPSTREAM}]}]},
    ],
)
def test_a_refused_start_shows_no_secret(running: Running, spoil: dict[str, Any]) -> None:
    """A value that is at fault is not repeated where it may be a secret."""
    document = running.document() | spoil
    running.write(document)
    with GatewayProcess(
        "serve", "--config", str(running.file), environment={"MARKER_KEY": UPSTREAM}
    ) as gateway:
        time.sleep(2)
        gateway.stop(signal.SIGKILL)
        gateway.ended()
    running.search.add("the output", gateway.output)

    assert running.search.found() == []


def test_no_part_shows_a_secret_when_it_is_printed(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a debugger, a crash reporter or a careless log line would."""
    monkeypatch.setenv("MARKER_KEY", UPSTREAM)
    running.write(running.document())
    config = load_config(running.file)
    clock = Clock(time.time, time.monotonic)
    parts = Parts(config, store=MemoryStore(clock.now), transport=None, clock=clock, share=Share())
    if parts.usage is not None:
        parts.usage.close()
    for name, part in {"config": config, **vars(parts)}.items():
        running.search.add(f"repr of {name}", repr(part))
        running.search.add(f"str of {name}", str(part))
        if hasattr(part, "__dict__"):
            running.search.add(f"fields of {name}", repr(vars(part)))

    assert running.search.found() == []


@pytest.mark.parametrize("writing", list(writings(UPSTREAM)))
def test_the_search_finds_what_is_there(writing: str) -> None:
    """In each of the forms in which it may have been written."""
    search = Search({"the key": UPSTREAM})
    search.add("a log", f'{{"header": "Bearer {writing}"}}')

    assert search.found() == ["the key in a log"]

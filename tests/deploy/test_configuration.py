"""The configuration, the Redis settings and the secrets that both deployments share."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError

from gateway.config import Config, load_config
from gateway.config.decode import REFERENCE
from gateway.store.redis import RedisStore, Timeouts
from tests.deploy.rendering import COMPOSE, DEPLOY, PRODUCTION, load, only, render
from tests.operations.site import document, tenant, write
from tests.redis_server import RedisServer
from tests.running import ACME, GatewayProcess
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

GATEWAY_YAML = DEPLOY / "config" / "gateway.yaml"
LIMITS = {"requests_per_minute": 100, "images_per_day": 100, "spend_per_month": "100"}
SEEDED: tuple[dict[str, str], dict[str, object]] = (
    {},
    {"seed": 7, "response_format": "b64_json"},
)
KEYED: tuple[dict[str, str], dict[str, object]] = (
    {"idempotency-key": "one"},
    {"prompt": "another"},
)
ASKED = (SEEDED, SEEDED, KEYED, KEYED)
CACHED = ["miss", "hit", "bypass", "replayed"]
"""Of those, in this order."""
SECRETS = ("dashscope_api_key", "redis_url", "redis_users", "grafana_admin_password")


def test_it_is_accepted_with_the_environment_of_either_deployment(secrets: Path) -> None:
    for environment in (compose_environment(), kubernetes_environment()):
        config = accepted(secrets, environment)

        assert config.redis is not None
        assert config.redis.replicas == int(environment["GATEWAY_REPLICAS"])


def test_what_it_takes_from_outside_is_what_the_deployments_give() -> None:
    asked_for = set(REFERENCE.findall(GATEWAY_YAML.read_text()))
    container = only(render(PRODUCTION), "Deployment")["spec"]["template"]["spec"]["containers"][0]

    assert asked_for == compose_environment().keys() == kubernetes_environment().keys()
    assert all(entry.keys() == {"name", "value"} for entry in container["env"])


def test_every_secret_it_reads_is_mounted_by_both_deployments() -> None:
    asked_for = {line.split("/run/secrets/")[1].rstrip("}") for line in secret_lines()}
    volumes = only(render(PRODUCTION), "Deployment")["spec"]["template"]["spec"]["volumes"]
    (secret,) = [volume["secret"] for volume in volumes if "secret" in volume]

    assert asked_for == set(load(COMPOSE)["services"]["gateway-1"]["secrets"])
    assert asked_for == {item["path"] for item in secret["items"]}


def test_secrets_are_made_once_and_kept(tmp_path: Path) -> None:
    made = make_secrets(tmp_path)

    assert set(made) == set(SECRETS)
    assert made["dashscope_api_key"] == "sk-of-nobody\n"
    assert make_secrets(tmp_path) == made
    assert make_secrets(tmp_path / "other") != made
    assert tmp_path.stat().st_mode & 0o077 == 0
    password = made["redis_url"].split("@")[0].rpartition(":")[2]
    assert len(password) == 48
    assert password not in made["redis_users"]
    assert f"#{hashlib.sha256(password.encode()).hexdigest()} " in made["redis_users"]


def test_a_key_is_never_taken_from_an_empty_answer(tmp_path: Path) -> None:
    run = subprocess.run(
        [DEPLOY / "compose" / "make-secrets", tmp_path],
        env={"PATH": "/usr/bin:/bin"},
        input="\n",
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 1
    assert "A DashScope API key is needed." in run.stderr
    assert list(tmp_path.iterdir()) == []


async def test_redis_lets_the_gateway_in_and_nobody_else(redis: RedisServer, secrets: Path) -> None:
    url = redis_url(redis, secrets)
    store = RedisStore(url, timeouts=Timeouts(1.0, 1.0))
    try:
        await store.ping()
        await store.heartbeat("worker", 1000)
    finally:
        await store.aclose()

    with Redis.from_url(redis.url) as stranger, pytest.raises(AuthenticationError):
        stranger.get("gateway:workers")
    with Redis.from_url(url) as gateway:
        # It warns at its start where limits could be evicted.
        assert gateway.info("memory")["maxmemory_policy"] == "noeviction"
        for command in (("FLUSHALL",), ("CONFIG", "GET", "*"), ("SET", "other:key", "1")):
            with pytest.raises(NoPermissionError):
                gateway.execute_command(*command)


def test_redis_allows_everything_that_a_gateway_does(
    redis: RedisServer, secrets: Path, tmp_path: Path
) -> None:
    """Limits, budgets, cache, idempotency, images' bytes, and the commands for operators."""
    url = redis_url(redis, secrets)
    config = tmp_path / "gateway.yaml"
    with SimulatedDashScope(render="plain") as vendor:
        content = document(
            vendor.base_url,
            redis={"url": url, "connect_timeout_ms": 2000, "command_timeout_ms": 2000},
            image_cache={"url": url},
            tenants=[tenant("acme", ACME, limits=LIMITS, cache={"mode": "seeded"})],
        )
        with GatewayProcess.serving(write(config, content), "--workers", "2") as gateway:
            found = [
                httpx.post(
                    f"{gateway.url}/v1/images/generations",
                    headers={"authorization": f"Bearer {ACME}", **headers},
                    json={"prompt": "a fox", "model": "qwen-image-2.0", **fields},
                    trust_env=False,
                    timeout=30,
                )
                for headers, fields in ASKED
            ]
            for command in (("usage",), ("cache", "stats"), ("cache", "purge")):
                with GatewayProcess(*command, "--config", str(config)) as done:
                    assert done.ended() == 0, done.output

    assert [answer.headers["x-cache"] for answer in found] == CACHED
    # It introduces itself by no name, which it would not be allowed either, from Redis 7.2 on.
    own = {"username": "inspector", "password": "sees-all", "driver_info": None}
    with Redis.from_url(redis.url, **own) as inspector:
        assert inspector.acl_log() == []


def test_redis_forgets_no_limit_to_save_memory_or_at_a_restart() -> None:
    settings = dict(
        line.split(maxsplit=1)
        for line in (DEPLOY / "compose" / "redis.conf").read_text().splitlines()
        if line and not line.startswith("#")
    )

    # Every key of the gateway has a time to live, so volatile-* would evict limits too.
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["appendonly"] == "yes"


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A folder as `make-secrets` fills it."""
    make_secrets(tmp_path / "secrets")
    return tmp_path / "secrets"


@pytest.fixture
def redis(secrets: Path) -> Iterator[RedisServer]:
    """A real server with the settings of deploy/compose, where this machine's own may differ."""
    own = ("dir ", "bind ")
    settings = (DEPLOY / "compose" / "redis.conf").read_text().splitlines()
    config = "\n".join(line for line in settings if not line.startswith(own))
    users = secrets / "redis_users"
    users.chmod(0o600)
    with users.open("a") as more:
        more.write("user inspector on >sees-all +acl|log\n")
    with RedisServer(config=config.replace("/run/secrets", str(secrets)) + "\n") as server:
        yield server


def redis_url(server: RedisServer, secrets: Path) -> str:
    url = (secrets / "redis_url").read_text().strip()
    return url.replace("@redis:6379", f"@127.0.0.1:{server.port}")


def make_secrets(folder: Path) -> dict[str, str]:
    subprocess.run(
        [DEPLOY / "compose" / "make-secrets", folder],
        env={"PATH": "/usr/bin:/bin", "DASHSCOPE_API_KEY": "sk-of-nobody"},
        capture_output=True,
        check=True,
    )
    return {name: (folder / name).read_text() for name in SECRETS}


def accepted(secrets: Path, environment: dict[str, str]) -> Config:
    """The configuration, its secrets read from a folder of this machine."""
    copy = secrets.parent / "gateway.yaml"
    copy.write_text(GATEWAY_YAML.read_text().replace("/run/secrets", str(secrets)))
    return load_config(copy, environment)


def secret_lines() -> list[str]:
    return [line for line in GATEWAY_YAML.read_text().splitlines() if "{file:" in line]


def compose_environment() -> dict[str, str]:
    return dict(load(COMPOSE)["services"]["gateway-1"]["environment"])


def kubernetes_environment() -> dict[str, str]:
    pod = only(render(PRODUCTION), "Deployment")["spec"]["template"]["spec"]
    return {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}

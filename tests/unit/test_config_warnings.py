"""What `gateway check-config` warns of: allowed, and will hurt later."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.config import load_config
from gateway.config.warn import warnings_of
from tests.running import ROOT

KEY: Final = "sha256:" + "a" * 64
BEIJING: Final = "https://dashscope.aliyuncs.com/api/v1"
SINGAPORE: Final = "https://dashscope-intl.aliyuncs.com/api/v1"
FRANKFURT: Final = "https://ws-1.eu-central-1.maas.aliyuncs.com/api/v1"
QWEN_CLOUD: Final = "https://maas.qwencloudapi.com/api/v1"
MODELS: Final = '["qwen-image-2.0"]'
FLAT: Final = """
currency: EUR
models:
  own:
    sizes: {kind: fixed, list: [512x512]}
    images_per_call: 1
    max_prompt: 100
    rate: 1/s
    price: [{cost: 0.1}]
    released: 2026-01-02
"""


def account(base_url: str, name: str = "one", models: str = MODELS, more: str = "") -> str:
    return f"  - {{name: {name}, base_url: '{base_url}', api_key: sk-x, models: {models}{more}}}"


def written(folder: Path, *accounts: str, more: str = "") -> Path:
    file = folder / "gateway.yaml"
    lines = ["accounts:", *accounts, "tenants:", f"  - {{name: acme, keys: [{{hash: '{KEY}'}}]}}"]
    file.write_text("\n".join([*lines, "default_model: qwen-image-2.0", more]))
    return file


def warnings(folder: Path, *accounts: str, more: str = "") -> list[str]:
    return list(map(str, warnings_of(load_config(written(folder, *accounts, more=more), {}))))


@pytest.mark.parametrize("base_url", [BEIJING, SINGAPORE, "http://127.0.0.1:8090/api/v1"])
def test_a_price_that_is_known_is_no_matter(base_url: str, tmp_path: Path) -> None:
    assert warnings(tmp_path, account(base_url)) == []


def test_a_region_without_prices_is_named(tmp_path: Path) -> None:
    """Budgets would book a tenth to a quarter too little, or too much."""
    [told] = warnings(tmp_path, account(FRANKFURT))

    assert told.startswith("accounts[0]: no price is known in eu-central-1 for qwen-image-2.0; ")
    assert "accounts[0].prices" in told


def test_a_host_whose_region_nobody_knows_is_named(tmp_path: Path) -> None:
    [told] = warnings(tmp_path, account(QWEN_CLOUD))

    assert told.startswith("accounts[0].base_url: no price is known")
    assert "accounts[0].price_region" in told


@pytest.mark.parametrize(
    "more", [", price_region: ap-southeast-1", ", prices: {'qwen-*': [{cost: 0.3}]}"]
)
def test_either_setting_ends_the_warning(more: str, tmp_path: Path) -> None:
    assert warnings(tmp_path, account(QWEN_CLOUD, more=more)) == []


def test_a_region_that_its_host_contradicts(tmp_path: Path) -> None:
    [told] = warnings(tmp_path, account(SINGAPORE, more=", price_region: cn-beijing"))

    assert told == (
        "accounts[0].price_region: the prices of cn-beijing are booked, but its host is in "
        "ap-southeast-1"
    )


def test_one_price_for_accounts_in_two_regions(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(FLAT)
    more = "models: own.yaml"
    accounts = [account(BEIJING, "a", '["*"]'), account(SINGAPORE, "b", '["*"]')]
    file = written(tmp_path, *accounts, more=more)
    file.write_text(file.read_text().replace("qwen-image-2.0", "own"))

    [told] = map(str, warnings_of(load_config(file, {})))

    assert told.startswith("models: the accounts are in ap-southeast-1 and cn-beijing")


def test_a_rate_for_a_snapshot_is_never_asked_for(tmp_path: Path) -> None:
    name = "qwen-image-2.0-2026-03-03"
    [told] = warnings(
        tmp_path, account(BEIJING, models='["*"]', more=f", rates: {{{name}: 1/min}}")
    )

    assert told.startswith(f"accounts[0].rates.{name}: ")
    assert told.endswith("name qwen-image-2.0 instead")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("rediss://clustercfg.my.abc.euw1.cache.amazonaws.com:6379", "rediss+cluster://"),
        ("redis://my.abc.clustercfg.memorydb.eu-west-1.amazonaws.com", "redis+cluster://"),
        ("redis://redis-cluster.cache.svc.cluster.local:6379", "redis+cluster://"),
        ("redis://my-ro.abc.ng.0001.euw1.cache.amazonaws.com", "read-only"),
        ("redis://replica.my.abc.euw1.cache.amazonaws.com", "read-only"),
        ("redis://redis.cache.svc.cluster.local:6379", None),
        ("redis+cluster://redis-cluster:6379", None),
        ("redis://127.0.0.1:6379/0", None),
        ("unix:///run/redis-cluster.sock", None),
        ("redis://r-bp1zxszhcgatnx.redis.rds.aliyuncs.com:6379", None),
    ],
)
def test_an_address_of_redis_that_is_another_s(
    url: str, expected: str | None, tmp_path: Path
) -> None:
    found = warnings(tmp_path, account(BEIJING), more=f"redis: {{url: '{url}'}}")

    if expected is None:
        assert found == []
    else:
        [told] = found
        assert told.startswith("redis.url: ")
        assert expected in told


@pytest.mark.parametrize(
    ("more", "path"),
    [
        (
            "redis: {url: 'redis://a:6379/0'}\nimage_cache: {url: 'redis://a:6379/1'}",
            "image_cache.url",
        ),
        ("images: {max_bytes: 1048576}", "images.max_bytes"),
        ("metrics: {allow: ['0.0.0.0/0']}", "metrics.allow[0]"),
        ("drain_s: 60", "drain_s"),
        ("listen: {keep_alive_s: 60}", "listen.keep_alive_s"),
    ],
)
def test_others(more: str, path: str, tmp_path: Path) -> None:
    [told, *_] = warnings(tmp_path, account(BEIJING), more=more)

    assert told.startswith(f"{path}: ")


def checked(file: Path) -> tuple[int, list[str]]:
    done: Any = subprocess.run(
        [sys.executable, "-m", "gateway", "check-config", str(file)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


@pytest.mark.slow
def test_warnings_are_lines_and_no_failure(tmp_path: Path) -> None:
    status, [first, *rest] = checked(written(tmp_path, account(FRANKFURT), more="drain_s: 60"))

    assert status == 0
    assert ": no faults. 1 accounts" in first
    assert [line.partition(":")[0] for line in rest] == ["warning", "warning"]

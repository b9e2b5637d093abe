"""The configuration file: what it may say, what it may not, and what it never prints."""

from __future__ import annotations

import copy
import pickle
import pprint
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from gateway.config import Config, load_config
from gateway.config.decode import ConfigError, Secret
from gateway.domain.catalogue import Alias, Rate
from gateway.domain.prices import Money

FAULTS: Final = Path(__file__).parents[1] / "config_faults"
SECRET: Final = "sk-5f3e9a17b2c84d60"
HASH: Final = "sha256:" + "a" * 64
OTHER_HASH: Final = "sha256:" + "b" * 64

# As it is documented.
EXAMPLE: Final = """
listen: {host: 127.0.0.1, port: 8080}
redis: {url: redis://127.0.0.1:6379/0}
accounts:
  - name: intl
    base_url: https://dashscope-intl.aliyuncs.com/api/v1
    api_key: ${DASHSCOPE_API_KEY}
    rates: {qwen-image-2.0-pro: 2/min}
images:
  allowed_hosts: [".aliyuncs.com"]
aliases:
  gpt-image-1: {model: qwen-image-2.0-pro, response_format: b64_json}
  dall-e-3: {model: qwen-image-2.0-pro, response_format: url}
tenants:
  - name: acme
    keys: [{hash: "sha256:HASH", label: ci, expires_at: 2027-01-01T00:00:00Z}]
    models: ["*"]
    limits:
      requests_per_minute: 60
      images_per_minute: 120
      concurrent_requests: 16
      images_per_day: 5000
      spend_per_month: 200.00
    cache: {mode: seeded, ttl_s: 86400}
""".replace("sha256:HASH", HASH)

MINIMAL: Final = f"""
accounts: [{{name: one, base_url: "https://vendor.example/api/v1", api_key: "KEY"}}]
tenants: [{{name: acme, keys: [{{hash: "{HASH}"}}]}}]
"""


def load(folder: Path, text: str, **environment: str) -> Config:
    path = folder / "gateway.yaml"
    path.write_text(text)
    return load_config(path, environment)


def faults(folder: Path, text: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, **environment)
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize("file", sorted(FAULTS.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_fault_is_reported_with_its_path(file: Path) -> None:
    """Each file's first comment lines are every fault in it, in that order."""
    lines = file.read_text().splitlines()
    expected = [line.removeprefix("# ") for line in lines if line.startswith("# ")]
    assert expected, "the file says what is wrong with it"

    with pytest.raises(ConfigError) as caught:
        load_config(file, {})

    reported = [str(fault).replace(f"{FAULTS}/", "") for fault in caught.value.faults]
    assert reported == expected
    assert str(caught.value).startswith(f"{file}: {len(expected)} fault")


def test_the_documented_example_loads(tmp_path: Path) -> None:
    config = load(tmp_path, EXAMPLE, DASHSCOPE_API_KEY=SECRET)

    [account], [tenant] = config.accounts, config.tenants
    assert account.api_key.reveal() == SECRET
    assert account.rates == {"qwen-image-2.0-pro": Rate(2 / 60)}
    assert config.redis is not None
    assert config.redis.url.reveal() == "redis://127.0.0.1:6379/0"
    assert tenant.keys[0].expires_at == datetime(2027, 1, 1, tzinfo=UTC)
    assert tenant.limits.spend_per_month == Money(200_000_000)
    assert tenant.limits.images_per_day == 5000
    assert (tenant.cache.mode, tenant.cache.ttl_s) == ("seeded", 86400)
    assert config.catalogue.aliases["dall-e-3"] == Alias("qwen-image-2.0-pro", "url")
    assert "qwen-image-2.0-pro" in config.catalogue.models


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)

    assert (config.listen.host, config.listen.port) == ("127.0.0.1", 8080)
    assert config.redis is None
    assert config.images.allowed_hosts == (".aliyuncs.com",)
    assert not config.images.allow_http
    [tenant] = config.tenants
    assert tenant.models == ("*",)
    assert tenant.limits.requests_per_minute is None
    assert tenant.size_policy == "nearest"


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)
    for part in (config, config.listen, config.tenants[0], config.accounts[0]):
        name = part.__struct_fields__[0]
        with pytest.raises(AttributeError):
            setattr(part, name, None)


def test_the_environment_fills_in_parts_of_any_value(tmp_path: Path) -> None:
    text = MINIMAL.replace("vendor.example", "${HOST}").replace("acme", "'a-${TEAM}-${TEAM}'")

    config = load(tmp_path, text, HOST="vendor.test", TEAM="x")

    assert config.accounts[0].base_url == "https://vendor.test/api/v1"
    assert config.tenants[0].name == "a-x-x"


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ("listen: {port: '${VALUE}'}", ("listen", "port"), 9000),
        ("images: {allow_http: '${YES}'}", ("images", "allow_http"), True),
        ("upstream: {deadline_s: '${SECONDS}'}", ("upstream", "deadline_s"), 1.5),
        ("max_body_bytes: ${VALUE}", ("max_body_bytes",), 9000),
    ],
)
def test_the_environment_s_text_may_stand_for_a_number(
    line: str, path: tuple[str, ...], value: object, tmp_path: Path
) -> None:
    """It has nothing else; a file's own quoted number is still a fault."""
    found: Any = load(tmp_path, MINIMAL + line, VALUE="9000", YES="true", SECONDS="1.5")
    for name in path:
        found = getattr(found, name)

    assert found == value
    assert type(found) is type(value)


def test_what_the_environment_holds_is_not_expanded_again(tmp_path: Path) -> None:
    """Nor read as YAML: a password may contain anything."""
    text = MINIMAL.replace("KEY", "${KEY}")

    config = load(tmp_path, text, KEY="${OTHER}:{}[]#'", OTHER="no")

    assert config.accounts[0].api_key.reveal() == "${OTHER}:{}[]#'"


@pytest.mark.parametrize("text", ["${}", "${1A}", "$${", "${KEY", "${KEY:-no}", "${A-KEY}"])
def test_a_reference_that_cannot_be_one_is_a_fault(text: str, tmp_path: Path) -> None:
    """Taken as it stands, it would be sent as the key."""
    [reported] = faults(tmp_path, MINIMAL.replace('"KEY"', f"'{text}'"), KEY="no")

    assert reported.startswith("accounts[0].api_key: expected ${NAME}")


@pytest.mark.parametrize("text", ["$KEY", "{KEY}", "$(KEY)"])
def test_what_is_no_reference_stays(text: str, tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL.replace('"KEY"', f"'{text}'"), KEY="no")

    assert config.accounts[0].api_key.reveal() == text


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_a_secret_is_read_from_its_file_without_its_line_end(end: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET.encode() + end.encode())

    config = load(tmp_path, MINIMAL.replace('"KEY"', f'{{file: "{secret}"}}'))

    assert config.accounts[0].api_key.reveal() == SECRET


def test_a_secret_s_path_may_come_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    text = MINIMAL.replace('"KEY"', "{file: '${FOLDER}/secret'}")

    config = load(tmp_path, text, FOLDER=str(tmp_path))

    assert config.accounts[0].api_key.reveal() == SECRET


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"x" * 70_000, "is longer than 65536 bytes"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"two\nlines", "expected a key without spaces or line ends"),
        (b"", "expected a key without spaces or line ends"),
        ("schlüssel".encode(), "expected a key without spaces or line ends"),
    ],
)
def test_a_secret_s_file_that_holds_no_key(content: bytes, fault: str, tmp_path: Path) -> None:
    """Said without showing what it holds."""
    secret = tmp_path / "secret"
    secret.write_bytes(content)

    [reported] = faults(tmp_path, MINIMAL.replace('"KEY"', f'{{file: "{secret}"}}'))

    assert fault in reported
    assert "lines" not in reported.replace("line ends", "")


def test_a_secret_that_is_a_folder_is_a_fault(tmp_path: Path) -> None:
    [reported] = faults(tmp_path, MINIMAL.replace('"KEY"', f'{{file: "{tmp_path}"}}'))

    assert reported.startswith("accounts[0].api_key: cannot read")


def renderings(thing: object) -> list[str]:
    """Every way in which a value usually ends up on a screen or in a log."""
    found = [repr(thing), str(thing), f"{thing}", f"{thing!r:>20}", pprint.pformat(thing)]
    for write in (msgspec.json.encode, msgspec.to_builtins, pickle.dumps, copy.deepcopy, vars):
        try:
            found.append(repr(write(thing)))
        except (TypeError, pickle.PicklingError) as refusal:
            found.append(repr(refusal))
    return found


def test_a_secret_never_prints(tmp_path: Path) -> None:
    """Neither itself nor inside whatever holds it, nor by the usual ways to dump a value."""
    text = MINIMAL.replace("KEY", "${KEY}") + "redis: {url: '${URL}'}"
    config = load(tmp_path, text, KEY=SECRET, URL=f"redis://:{SECRET}@host")

    for thing in (Secret(SECRET), config, config.accounts, config.accounts[0], config.redis):
        for shown in renderings(thing):
            assert SECRET not in shown


def test_a_secret_does_not_print_in_a_fault(tmp_path: Path) -> None:
    """Of the key itself, or of what stands beside it."""
    text = MINIMAL.replace("KEY", "${KEY}") + "redis: {url: '${URL}'}\nunknown: 1"

    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, KEY=f"{SECRET} with a space", URL=f"http://:{SECRET}@host")

    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_key_given_in_the_clear_is_not_printed(tmp_path: Path) -> None:
    key = "sk-gw-abcdefghij-" + "s" * 38

    [reported] = faults(tmp_path, MINIMAL.replace(HASH, key))

    assert key not in reported


def test_secrets_compare_by_what_they_hold() -> None:
    assert Secret("a") == Secret("a")
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    assert Secret("a") != "a"


def test_a_missing_file_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml", {})


def test_a_file_that_is_not_text_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(path, {})


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    [reported, *_] = faults(tmp_path, "accounts: !!python/object/apply:os.system ['true']")

    assert reported.startswith("the file: not YAML")


@pytest.mark.slow
def test_deep_nesting_is_a_fault(tmp_path: Path) -> None:
    """Not a crash of the reader."""
    assert faults(tmp_path, "accounts: " + "[" * 5000)


def test_an_anchor_that_is_used_many_times_is_fine(tmp_path: Path) -> None:
    text = f"""
accounts: [{{name: one, base_url: "https://vendor.example/api/v1", api_key: k}}]
tenants:
  - &acme {{name: acme, keys: [{{hash: "{HASH}"}}], models: ["qwen-*"]}}
  - {{<<: *acme, name: other, keys: [{{hash: "{OTHER_HASH}"}}]}}
"""
    config = load(tmp_path, text)

    assert [tenant.models for tenant in config.tenants] == [("qwen-*",), ("qwen-*",)]


def test_an_own_alias_lies_over_the_shipped_one(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL + "aliases: {dall-e-3: {model: qwen-image}}")

    assert config.catalogue.aliases["dall-e-3"] == Alias("qwen-image")
    assert config.catalogue.aliases["gpt-image-1"].model == "qwen-image-2.0-pro"


OWN_MODELS: Final = """
currency: EUR
models:
  own:
    sizes: {kind: fixed, list: [512x512]}
    default_size: 512x512
    images_per_call: 2
    supports: [seed]
    max_prompt: 100
    rate: 1/s
    price: [{cost: 0.1}]
    released: 2026-01-02
"""


def test_an_own_catalogue_takes_the_shipped_one_s_place(tmp_path: Path) -> None:
    """Found beside the file; shipped aliases that lead nowhere are gone."""
    (tmp_path / "own.yaml").write_text(OWN_MODELS)

    config = load(tmp_path, MINIMAL + "models: own.yaml\ndefault_model: own")

    assert list(config.catalogue.models) == ["own"]
    assert config.catalogue.aliases == {}
    assert config.catalogue.currency == "EUR"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("kind: fixed", "kind: round", "models.models.own.sizes"),
        ("512x512]", "512*512]", "models.models.own.sizes"),
        ("default_size: 512x512", "default_size: 512", "models.models.own.default_size"),
        ("default_size: 512x512", "default_size: 600x600", "models.models.own.default_size"),
        ("images_per_call: 2", "images_per_call: 0", "models.models.own.images_per_call"),
        ("supports: [seed]", "supports: [speed]", "models.models.own.supports"),
        ("cost: 0.1", "cost: free", "models.models.own.price[0].cost"),
        ("price: [{cost: 0.1}]", "price: []", "models.models.own.price"),
        ("price: [{cost: 0.1}]", "price: {}", "models.models.own.price"),
        ("price: [{cost: 0.1}]", "price: 0.1", "models.models.own.price"),
        ("price: [{cost: 0.1}]", "price: {cn-beijing: []}", "models.models.own.price.cn-beijing"),
        (
            "price: [{cost: 0.1}]",
            "price: {cn-beijing: [{cost: free}]}",
            "models.models.own.price.cn-beijing[0].cost",
        ),
        ("released: 2026-01-02", "released: early", "models.models.own.released"),
        ("rate: 1/s", "rate: 1", "models.models.own.rate"),
        ("max_prompt: 100", "max_promt: 100", "models.models.own.max_promt"),
        ("currency: EUR\n", "", "models.currency"),
    ],
)
def test_a_fault_in_an_own_catalogue_is_reported(
    old: str, new: str, fault: str, tmp_path: Path
) -> None:
    """A catalogue is data that somebody writes: what it cannot mean is said at the start."""
    assert old in OWN_MODELS
    (tmp_path / "own.yaml").write_text(OWN_MODELS.replace(old, new))

    reported = faults(tmp_path, MINIMAL + "models: own.yaml\ndefault_model: own")

    assert [line for line in reported if line.startswith(fault)]


def test_the_shipped_catalogue_has_the_models_of_the_vendor_s_page(tmp_path: Path) -> None:
    models = load(tmp_path, MINIMAL).catalogue.models

    assert list(models)[:5] == [
        "qwen-image-2.0-pro",
        "qwen-image-2.0",
        "qwen-image-max",
        "qwen-image-plus",
        "qwen-image",
    ]
    assert {"qwen-image-3.0-pro", "z-image-turbo", "wan2.6-t2i", "wan2.7-image"} <= set(models)


def test_the_shipped_catalogue_contradicts_itself_nowhere(tmp_path: Path) -> None:
    catalogue = load(tmp_path, MINIMAL).catalogue

    for name, model in catalogue.models.items():
        assert model.default_size is None or model.sizes.allows(model.default_size), name
        assert all(tiers[-1].up_to is None for tiers in model.price_lists(None)), name
    for name, alias in catalogue.aliases.items():
        assert alias.model in catalogue.models, name

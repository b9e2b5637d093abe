"""The compose file follows its schema, and lets nothing in or out that it need not."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gateway.config import Config, Listen
from gateway.server.worker import DRAIN_S
from tests.deploy.dockerfile import exec_form, final, health_check
from tests.deploy.rendering import COMPOSE, DEPLOY, MONITORING, load

SERVICES: dict[str, Any] = load(COMPOSE)["services"]
GATEWAYS = ("gateway-1", "gateway-2")
EACH = pytest.mark.parametrize("service", SERVICES)
METRICS_PORT = load(DEPLOY / "config" / "gateway.yaml")["metrics"]["listen"]["port"]


def test_it_follows_the_compose_specification() -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema, for its schema of compose")
    schemas = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text())

    jsonschema.Draft202012Validator(schema).validate(load(COMPOSE))


@EACH
def test_each_container_has_no_more_rights_than_it_needs(service: str) -> None:
    settings = SERVICES[service]

    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert int(settings["user"].split(":")[0]) > 0
    assert "privileged" not in settings
    assert "cap_add" not in settings


@EACH
def test_each_container_is_named_by_a_version_and_watched(service: str) -> None:
    settings = SERVICES[service]

    assert re.search(r":v?\d+\.\d+\.\d+$", settings["image"])
    assert settings["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


@EACH
def test_everything_mounted_is_there_and_cannot_be_changed(service: str) -> None:
    for volume in SERVICES[service].get("volumes", []):
        source, _, *mode = volume.split(":")
        if not source.startswith("."):
            continue
        assert mode == ["ro"], volume
        assert source in MONITORING or (COMPOSE.parent / source).exists(), volume


def test_only_nginx_is_reached_and_only_from_this_machine() -> None:
    published = {name: one["ports"] for name, one in SERVICES.items() if "ports" in one}

    assert published.keys() == {"nginx"}
    assert all(port.startswith("127.0.0.1:") for port in published["nginx"])


def test_only_nginx_and_the_gateways_have_a_way_out() -> None:
    networks = load(COMPOSE)["networks"]
    way_out = {name for name, settings in networks.items() if not settings.get("internal")}

    outside = {name for name, one in SERVICES.items() if way_out & set(one["networks"])}
    assert outside == {"nginx", *GATEWAYS}
    assert {name for name, one in SERVICES.items() if "store" in one["networks"]} == {
        "redis",
        *GATEWAYS,
    }


def test_metrics_are_read_by_prometheus_alone() -> None:
    """Nobody else shares a network with them but nginx, which has the API's port alone."""
    beside = {name for name, one in SERVICES.items() if "metrics" in one["networks"]}
    text = (DEPLOY / "proxies" / "nginx.conf").read_text()

    assert beside == {"prometheus", *GATEWAYS}
    assert load(COMPOSE)["networks"]["metrics"]["internal"] is True
    assert f":{METRICS_PORT}" not in text


def test_prometheus_asks_every_gateway_for_its_metrics() -> None:
    scrapes = load(DEPLOY / "compose" / "prometheus.yaml")["scrape_configs"]
    (gateways,) = [one for one in scrapes if one["job_name"] == "image-gateway"]

    assert gateways["static_configs"] == [
        {"targets": [f"{name}:{METRICS_PORT}" for name in GATEWAYS]}
    ]


def test_nginx_finds_each_gateway_at_its_address() -> None:
    text = (DEPLOY / "proxies" / "nginx.conf").read_text()
    fixed = [SERVICES[name]["networks"]["front"]["ipv4_address"] for name in GATEWAYS]

    assert re.findall(r"^ +server ([\d.]+):8080 ", text, re.MULTILINE) == fixed


@pytest.mark.parametrize("name", GATEWAYS)
def test_a_gateway_runs_as_the_image_means_it_to(name: str) -> None:
    gateway = SERVICES[name]

    assert gateway["user"] == final("USER")
    assert gateway["healthcheck"]["test"] == ["CMD", *health_check()]
    command = exec_form(final("CMD"))
    assert gateway["command"][: len(command)] == command
    assert gateway["image"] == SERVICES["gateway-1"]["image"]
    assert "../config:/etc/gateway:ro" in gateway["volumes"]
    assert any(mount.startswith("/tmp") for mount in gateway["tmpfs"])  # noqa: S108


@pytest.mark.parametrize("name", GATEWAYS)
def test_a_gateway_has_room_for_the_pictures_of_edits(name: str) -> None:
    """In each worker, beside what else is in /tmp, which counts as its memory."""
    gateway = SERVICES[name]
    workers = int(gateway["command"][gateway["command"].index("--workers") + 1])
    (files_mib,) = re.findall(r"^/tmp:.*size=(\d+)m", gateway["tmpfs"][0])
    pictures_mib = workers * int(gateway["environment"]["UPLOADS_BYTES"]) / 1024**2

    of_a_tenant = int(gateway["environment"]["UPLOADS_TENANT_BYTES"])
    assert 2 * of_a_tenant <= int(gateway["environment"]["UPLOADS_BYTES"])
    assert gateway["environment"]["UPLOADS"] == "/tmp"  # noqa: S108
    assert int(files_mib) >= pictures_mib + 64
    assert int(gateway["mem_limit"].removesuffix("m")) >= int(files_mib) + 768


def test_nginx_has_room_for_all_that_it_may_hold() -> None:
    """Heads on every connection, bodies of every request that it lets in, and its files."""
    text = (DEPLOY / "proxies" / "nginx.conf").read_text()
    (requests,) = re.findall(r"limit_conn everybody (\d+);", text)
    (body,) = re.findall(r"^ {8}client_body_buffer_size (\d+)k;", text, re.MULTILINE)
    (files,) = re.findall(r"size=(\d+)m", SERVICES["nginx"]["tmpfs"][0])
    (workers,) = re.findall(r"^worker_processes (\d+);", text, re.MULTILINE)
    (connections,) = re.findall(r"worker_connections (\d+);", text)
    (number, size) = re.findall(r"large_client_header_buffers (\d+) (\d+)k;", text)[0]
    # Before a head is whole nobody counts the connection as somebody's.
    heads = int(workers) * int(connections) * (1 + int(number) * int(size))
    holds_mib = (heads + int(requests) * int(body)) / 1024 + int(files)

    assert int(SERVICES["nginx"]["mem_limit"].removesuffix("m")) >= holds_mib


def test_the_gateways_count_each_other() -> None:
    counted = {SERVICES[name]["environment"]["GATEWAY_REPLICAS"] for name in GATEWAYS}

    assert counted == {str(len(GATEWAYS))}


@pytest.mark.parametrize("name", [*GATEWAYS, "nginx"])
def test_nothing_in_flight_is_cut_off_by_a_restart(name: str) -> None:
    ends_after_s = Config(accounts=(), tenants=()).lame_duck_s + DRAIN_S

    assert seconds(SERVICES[name]["stop_grace_period"]) >= ends_after_s + 10
    assert Listen().keep_alive_s < DRAIN_S


def test_every_secret_is_a_file_that_git_does_not_see() -> None:
    secrets = load(COMPOSE)["secrets"]
    used = {name for one in SERVICES.values() for name in one.get("secrets", [])}

    assert used == set(secrets)
    assert {str(Path(one["file"]).parent) for one in secrets.values()} == {"secrets"}
    ignored = (COMPOSE.parent / "secrets" / ".gitignore").read_text().splitlines()
    assert ignored == ["*", "!.gitignore"]


def seconds(text: str) -> int:
    assert text.endswith("s"), text
    return int(text.removesuffix("s"))

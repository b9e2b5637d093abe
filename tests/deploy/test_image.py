"""The Dockerfile says what it must; scripts/prove-image builds it and runs the image."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest

from tests.deploy.dockerfile import (
    exec_form,
    final,
    final_stage,
    health_check,
    instructions,
)
from tests.deploy.rendering import BASE, COMPOSE, DEPLOY, PRODUCTION, ROOT, load, only, render
from tests.operations.site import document, write
from tests.running import GatewayProcess, closed_port


def test_both_stages_are_on_one_base_that_is_pinned_by_an_argument() -> None:
    first_word, base = instructions()[0]
    image, _, digest = base.removeprefix("PYTHON_IMAGE=").partition("@")
    tag = image.rpartition("/")[2].partition(":")[2]
    stages = [rest.split()[0] for word, rest in instructions() if word == "FROM"]

    assert first_word == "ARG"
    assert stages == ["${PYTHON_IMAGE}"] * 2
    assert re.match(r"3\.\d+", tag)
    assert not digest or re.fullmatch(r"sha256:[0-9a-f]{64}", digest)


def test_nothing_is_installed_that_the_locks_do_not_hold() -> None:
    commands = [part for word, rest in instructions() if word == "RUN" for part in rest.split("&&")]
    installs = [part.split() for part in commands if "bin/pip " in part]
    locks = [words[-1] for words in installs if "--requirement" in words]

    assert locks == ["requirements.lock", "requirements-build.lock"]
    for words in installs:
        assert "--no-deps" in words
        assert {"--require-hashes", "--only-binary"} <= {*words} or "--no-index" in words


def test_what_the_base_has_to_install_packages_with_is_not_in_the_image() -> None:
    words = [word for word, _ in final_stage()]
    removed = final("RUN").removeprefix("rm -rf ").split()

    assert words.index("RUN") < words.index("USER")
    assert {"/usr/local/bin/pip*", "/usr/local/lib/python3*/site-packages/*"} <= set(removed)


def test_it_runs_as_a_user_without_a_name_or_rights() -> None:
    assert [int(number) > 0 for number in final("USER").split(":")] == [True, True]


@pytest.mark.slow
def test_the_gateway_runs_as_any_user_of_any_group(tmp_path: Path) -> None:
    """As OpenShift has it: a number that no file gives a name, and the group of root."""
    stranger = ["unshare", "--user", "--map-user=1000680000", "--map-group=0"]
    if not shutil.which("unshare") or subprocess.run([*stranger, "true"], check=False).returncode:
        pytest.skip("user namespaces were not found: install util-linux, and allow them")
    config = write(tmp_path / "gateway.yaml", document("http://127.0.0.1:1/api/v1"))
    serve = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
    gateway = subprocess.Popen(
        [*stranger, *serve], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, text=True
    )
    with gateway:
        assert gateway.stdout is not None
        url = gateway.stdout.readline().partition("listening on ")[2].strip()
        owner = Path(f"/proc/{gateway.pid}/uid_map").read_text().split()[0]
        answer = httpx.get(f"{url}/healthz", trust_env=False)
        gateway.terminate()
        assert gateway.wait(20) == 0

    assert owner == "1000680000"
    assert answer.status_code == 200


def test_it_starts_and_stops_without_a_shell() -> None:
    assert exec_form(final("ENTRYPOINT")) == ["/opt/app/bin/gateway"]
    assert exec_form(final("CMD"))[:3] == ["serve", "--config", "/etc/gateway/gateway.yaml"]
    assert final("STOPSIGNAL") == "SIGTERM"


def test_every_deployment_has_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    images = [load(COMPOSE)["services"]["gateway-1"]["image"]]
    for folder in (BASE, PRODUCTION):
        pod = only(render(folder), "Deployment")["spec"]["template"]["spec"]
        images += [container["image"] for container in pod["containers"]]

    assert {image.rpartition(":")[2] for image in images} == {version}
    assert ("ARG", f"VERSION={version}") in instructions()
    assert 'org.opencontainers.image.version="${VERSION}"' in final("LABEL")


def test_only_what_the_wheel_is_built_from_is_sent_to_the_build() -> None:
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    locks = {"requirements.lock", "requirements-build.lock"}
    sources = {*wheel["packages"], *wheel["force-include"], "pyproject.toml", *locks}
    described = {project["project"][key] for key in ("readme",) if key in project["project"]}

    assert rules[0] == "*"
    assert {f"!{name}" for name in sources | described} <= set(rules)


@pytest.mark.slow
def test_the_health_check_tells_a_gateway_that_answers_from_one_that_does_not(
    tmp_path: Path,
) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text(
        "accounts: [{name: one, base_url: 'https://dashscope.aliyuncs.com/api/v1', api_key: k}]\n"
        "tenants: []\n"
    )

    with GatewayProcess.serving(config, "--port", "0") as gateway:
        assert check_health(gateway.url.rpartition(":")[2]) == 0
    with closed_port() as port:
        assert check_health(str(port)) != 0


@pytest.mark.parametrize("name", ["Dockerfile", *sorted(
    str(path.relative_to(ROOT))
    for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc"
)])  # fmt: skip
def test_nothing_in_it_moves_or_is_a_secret(name: str) -> None:
    text = (ROOT / name).read_text()

    assert ":latest" not in text
    assert not re.search(r"\bsk-[0-9A-Za-z]{8}", text)


def check_health(port: str) -> int:
    python, *arguments = health_check()
    assert python == "/opt/app/bin/python"
    assert sum("8080" in argument for argument in arguments) == 1
    there = [argument.replace("8080", port) for argument in arguments]
    run = subprocess.run([sys.executable, *there], capture_output=True, check=False)
    return run.returncode

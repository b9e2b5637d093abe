"""docs/deployment.md and docs/operations.md speak of what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from gateway.config import Listen
from gateway.server.worker import DRAIN_S
from tests.deploy.rendering import (
    DEPLOY,
    MONITORING,
    PRODUCTION,
    ROOT,
    VERSIONS,
    only,
    render,
)

TEXT = (ROOT / "docs" / "deployment.md").read_text()


def test_every_file_it_names_is_there() -> None:
    named = set(re.findall(r"`((?:deploy|scripts|tests)/[\w./-]+)`", TEXT))
    elsewhere = {source.replace("..", "deploy") for source in MONITORING}

    assert len(named) > 8
    assert [name for name in named if name not in elsewhere and not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_every_link_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", path.read_text())

    for name, anchor in links:
        target = path.parent / name if name else path
        assert target.exists(), name
        assert not anchor or anchor in anchors(target), f"{name}#{anchor}"


def test_the_picture_of_the_dashboard_is_of_this_one() -> None:
    """Else run `make picture`."""
    path = ROOT / "docs" / "dashboard.png"
    dashboard = json.loads((DEPLOY / "grafana" / "gateway.json").read_text())
    with Image.open(path) as picture:
        drawn = json.loads(picture.info["Description"])

    assert drawn == [panel["title"] for panel in dashboard["panels"]]
    assert path.stat().st_size < 500_000
    assert f"({path.name})" in (ROOT / "docs" / "operations.md").read_text()


def test_its_numbers_are_those_of_the_code() -> None:
    grace = only(render(PRODUCTION), "Deployment")["spec"]["template"]["spec"]

    assert f"at most {DRAIN_S} s" in TEXT
    assert f"60 s against {Listen().keep_alive_s:g} s" in TEXT
    assert f"grace period of {grace['terminationGracePeriodSeconds']} s" in TEXT
    assert f"Kubernetes {VERSIONS[0]} and {VERSIONS[1]}" in TEXT


def anchors(path: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}

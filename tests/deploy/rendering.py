"""Reads what is in deploy/, and renders its Kustomize folders without Kustomize.

Only the part of Kustomize that deploy/ uses: resources, components, a ConfigMap from files with its
own name, namespace, images, and JSON patches of a named target. Anything else is an error, so the
renderer never quietly leaves out what the real one would do; where kubectl is installed, the tests
compare the two.
"""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
BASE: Final = DEPLOY / "kubernetes" / "base"
PRODUCTION: Final = DEPLOY / "kubernetes" / "overlays" / "production"
OPENSHIFT: Final = DEPLOY / "kubernetes" / "overlays" / "openshift"
COMPOSE: Final = DEPLOY / "compose" / "compose.yaml"
# What compose mounts besides its own folder: rules and dashboards.
MONITORING: Final = ("../prometheus", "../grafana")
# The oldest that knows every field used here, and the newest that the schemas are packaged for.
VERSIONS: Final = ("1.29", "1.37")
KNOWN_KEYS: Final = {
    *("apiVersion", "kind", "namespace", "resources", "components"),
    *("configMapGenerator", "generatorOptions", "images", "patches"),
}
CLUSTER_WIDE: Final = {"Namespace"}

Manifest = dict[str, Any]


def load(path: Path) -> Any:
    """The one document of a YAML file."""
    return yaml.safe_load(path.read_text())


def render(folder: Path) -> list[Manifest]:
    """Everything a Kustomize folder stands for."""
    kustomization = load(folder / "kustomization.yaml")
    unknown = kustomization.keys() - KNOWN_KEYS
    assert not unknown, f"{folder}: this renderer does not know {unknown}"
    manifests = [
        manifest
        for name in [*kustomization.get("resources", []), *kustomization.get("components", [])]
        for manifest in _resource((folder / name).resolve())
    ]
    options = kustomization.get("generatorOptions", {})
    generators = kustomization.get("configMapGenerator", [])
    manifests += [_config_map(folder, generator, options) for generator in generators]
    for manifest in manifests:
        if "namespace" in kustomization and manifest["kind"] not in CLUSTER_WIDE:
            manifest["metadata"]["namespace"] = kustomization["namespace"]
    for image in kustomization.get("images", []):
        _set_image(manifests, image)
    for patch in kustomization.get("patches", []):
        _patch(manifests, patch["target"], load(folder / patch["path"]))
    return manifests


def render_with_kubectl(folder: Path) -> list[Manifest]:
    """The same by the Kustomize in kubectl."""
    command = ["kubectl", "kustomize", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(run.stdout))


def renderers() -> list[Callable[[Path], list[Manifest]]]:
    """Those that can be had on this machine."""
    return [render, render_with_kubectl] if shutil.which("kubectl") else [render]


def only(manifests: list[Manifest], kind: str) -> Manifest:
    """The one manifest of a kind."""
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def _resource(path: Path) -> list[Manifest]:
    return render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))


def _config_map(folder: Path, generator: Manifest, options: Manifest) -> Manifest:
    assert generator.keys() == {"name", "files"}, generator
    assert options.keys() <= {"disableNameSuffixHash", "labels"}, options
    assert options["disableNameSuffixHash"], "names with a hash are not rendered here"
    data = {name: (folder / name).read_text() for name in generator["files"]}
    metadata: Manifest = {"name": generator["name"]}
    if "labels" in options:
        metadata["labels"] = options["labels"]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _set_image(manifests: list[Manifest], image: Manifest) -> None:
    for manifest in manifests:
        if manifest["kind"] == "Deployment":
            for container in manifest["spec"]["template"]["spec"]["containers"]:
                if container["image"].split(":")[0] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"


def _patch(manifests: list[Manifest], target: Manifest, operations: list[Manifest]) -> None:
    assert target.keys() == {"kind", "name"}, target
    found = only(manifests, target["kind"])
    assert found["metadata"]["name"] == target["name"]
    for operation in operations:
        _apply(found, operation)


def _apply(document: Any, operation: Manifest) -> None:
    *parents, last = [
        part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
    ]
    for part in parents:
        document = document[int(part) if isinstance(document, list) else part]
    key: Any = int(last) if isinstance(document, list) else last
    match operation["op"]:
        case "test":
            assert document[key] == operation["value"], operation
        case "replace":
            assert document[key] is not None, operation
            document[key] = copy.deepcopy(operation["value"])
        case "remove":
            del document[key]
        case unknown:
            raise AssertionError(f"this renderer does not know the operation {unknown!r}")

"""The Kubernetes manifests follow their schemas, and agree with the gateway and with each other."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import jsonschema
import pytest
import yaml

from gateway.config import Config, Upstream
from gateway.observability.metrics import Metrics
from gateway.server.worker import DRAIN_S
from tests.deploy.dockerfile import exec_form, final
from tests.deploy.rendering import (
    BASE,
    DEPLOY,
    OPENSHIFT,
    PRODUCTION,
    ROOT,
    VERSIONS,
    Manifest,
    load,
    only,
    render,
    renderers,
)
from tests.running import GatewayProcess

OPERATOR: Final = "monitoring.coreos.com/v1"
FOLDERS: Final = pytest.mark.parametrize(
    "folder", [BASE, PRODUCTION, OPENSHIFT], ids=lambda path: path.name
)
MANIFESTS: Final = render(PRODUCTION)
RULES: Final = """
# Why these.
---
groups:
  - name: NAME
    rules:
      - alert: NAME
        expr: |
          up == 0

          or vector(1)
        for: 1m
"""
LABELS: Final = {"app.kubernetes.io/name": "image-gateway"}

DEPLOYMENT: Final = only(MANIFESTS, "Deployment")
POD: Final[Manifest] = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER: Final[Manifest] = POD["containers"][0]
GATEWAY: Final = load(DEPLOY / "config" / "gateway.yaml")
METRICS_PORT: Final = GATEWAY["metrics"]["listen"]["port"]


@pytest.mark.slow
@FOLDERS
@pytest.mark.parametrize("renderer", renderers())
@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_follows_its_schema(
    folder: Path, renderer: Callable[[Path], list[Manifest]], version: str
) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="Kubernetes' schemas")

    for manifest in renderer(folder):
        if manifest["apiVersion"] == OPERATOR:
            operator_schema = json.loads(
                (Path(__file__).parent / "monitoring.schema.json").read_text()
            )
            jsonschema.Draft202012Validator(operator_schema).validate(manifest)
        else:
            schemas.validate(manifest, version, strict=True)


@FOLDERS
@pytest.mark.parametrize("renderer", renderers())
def test_kustomize_makes_the_same_of_it(
    folder: Path, renderer: Callable[[Path], list[Manifest]]
) -> None:
    def by_name(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
        return {(one["kind"], one["metadata"]["name"]): one for one in manifests}

    assert by_name(renderer(folder)) == by_name(render(folder))


def test_the_pod_is_what_the_restricted_profile_asks_for() -> None:
    assert (
        only(MANIFESTS, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        == "restricted"
    )
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    kinds = {kind for volume in POD["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "emptyDir", "secret"}


def test_the_pod_runs_as_the_user_of_the_image() -> None:
    user, group = map(int, final("USER").split(":"))

    assert POD["securityContext"]["runAsUser"] == user
    assert POD["securityContext"]["runAsGroup"] == POD["securityContext"]["fsGroup"] == group


def test_on_openshift_the_pod_runs_as_whoever_its_namespace_says() -> None:
    """`restricted-v2` refuses users and groups of the pod's own choice; the rest is as it was."""
    there = only(render(OPENSHIFT), "Deployment")["spec"]["template"]["spec"]
    chosen = {"runAsUser", "runAsGroup", "fsGroup"}

    assert there["securityContext"] == {
        name: value for name, value in POD["securityContext"].items() if name not in chosen
    }
    assert there["containers"][0]["securityContext"] == CONTAINER["securityContext"]
    assert there["volumes"] == POD["volumes"]
    assert there["containers"][0]["args"] == CONTAINER["args"]


def test_on_openshift_the_same_paths_are_served_for_as_long() -> None:
    manifests = render(OPENSHIFT)
    ingress = only(manifests, "Ingress")
    (rule,) = ingress["spec"]["rules"]
    timeout = ingress["metadata"]["annotations"]["haproxy.router.openshift.io/timeout"]
    rules = only(manifests, "NetworkPolicy")["spec"]["ingress"]

    paths = [path["path"] for path in rule["http"]["paths"]]
    assert paths == [path["path"] for path in ingress_paths("image-gateway")]
    assert int(timeout.removesuffix("s")) > Upstream().deadline_s
    assert [one["ports"][0]["port"] for one in rules] == ["http", "metrics"]


def test_the_pod_gets_no_token_of_the_cluster() -> None:
    assert POD["automountServiceAccountToken"] is False
    account = only(MANIFESTS, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert POD["serviceAccountName"] == account["metadata"]["name"]


def test_the_pod_runs_the_command_of_the_image() -> None:
    command = exec_form(final("CMD"))

    assert CONTAINER["args"][: len(command)] == command


def test_a_pod_that_ends_finishes_what_it_has() -> None:
    *_, sleep = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    seconds = int(sleep.removeprefix("import time; time.sleep(").removesuffix(")"))

    ends_after_s = Config(accounts=(), tenants=()).lame_duck_s + DRAIN_S
    assert POD["terminationGracePeriodSeconds"] >= seconds + ends_after_s + 10
    assert Upstream().deadline_s < DRAIN_S
    # The proxies have noticed before the gateway stops to take requests.
    readiness = CONTAINER["readinessProbe"]
    assert seconds > readiness["periodSeconds"] * readiness["failureThreshold"]


def test_a_roll_out_takes_no_pod_away_before_its_successor_is_ready() -> None:
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert "replicas" not in DEPLOYMENT["spec"], "the HorizontalPodAutoscaler decides"


def test_everything_selects_the_same_pods() -> None:
    by_kind: dict[str, Callable[[Manifest], Manifest]] = {
        "Service": lambda spec: spec["selector"],
        "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
        "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        "ServiceMonitor": lambda spec: spec["selector"]["matchLabels"],
        "Deployment": lambda spec: spec["selector"]["matchLabels"],
    }

    found = {kind: select(only(MANIFESTS, kind)["spec"]) for kind, select in by_kind.items()}
    assert found == dict.fromkeys(by_kind, LABELS)
    assert DEPLOYMENT["spec"]["template"]["metadata"]["labels"] == LABELS
    assert only(MANIFESTS, "Service")["metadata"]["labels"] == LABELS


def test_everything_reaches_the_port_that_the_gateway_listens_on() -> None:
    listens_on = CONTAINER["args"][CONTAINER["args"].index("--port") + 1]
    port, own_port = CONTAINER["ports"]
    service_port, own_service_port = only(MANIFESTS, "Service")["spec"]["ports"]
    policy, own_policy = only(MANIFESTS, "NetworkPolicy")["spec"]["ingress"]
    (endpoint,) = only(MANIFESTS, "ServiceMonitor")["spec"]["endpoints"]

    assert str(port["containerPort"]) == listens_on == final("EXPOSE")
    assert own_port["containerPort"] == METRICS_PORT
    assert port["name"] == service_port["targetPort"] == policy["ports"][0]["port"]
    assert own_port["name"] == own_service_port["targetPort"] == own_policy["ports"][0]["port"]
    assert endpoint["port"] == own_service_port["name"]
    for backend in ingress_backends():
        assert backend["service"]["port"]["name"] == service_port["name"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert CONTAINER[probe]["httpGet"]["port"] == own_port["name"]


def test_both_families_of_addresses_are_served() -> None:
    """By one listener on `::`, which takes IPv4 alone where there is nothing else."""
    assert CONTAINER["args"][CONTAINER["args"].index("--host") + 1] == "::"
    assert GATEWAY["metrics"]["listen"]["host"] == "::"
    assert only(MANIFESTS, "Service")["spec"]["ipFamilyPolicy"] == "PreferDualStack"


def test_it_is_scaled_by_a_metric_that_there_is() -> None:
    spec = only(MANIFESTS, "HorizontalPodAutoscaler")["spec"]
    declared = {metric.name for metric in Metrics().registry.collect()}

    assert spec["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]
    assert {one["pods"]["metric"]["name"] for one in spec["metrics"] if "pods" in one} <= declared
    assert [one["type"] for one in spec["metrics"]] == ["Pods", "Resource"]


def test_every_secret_is_a_reference() -> None:
    assert "Secret" not in {manifest["kind"] for manifest in MANIFESTS}


def test_no_outsider_comes_past_the_ingress_to_what_is_not_for_them() -> None:
    namespaces = {
        rule["ports"][0]["port"]: [
            source["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            for source in rule["from"]
        ]
        for rule in only(MANIFESTS, "NetworkPolicy")["spec"]["ingress"]
    }
    paths = {path["path"] for path in ingress_paths("image-gateway")}
    edits = {path["path"] for path in ingress_paths("image-gateway-edits")}

    assert namespaces == {"http": ["ingress-nginx"], "metrics": ["monitoring"]}
    assert paths == {"/v1", "/images", "/models", "/api/v1", "/openai"}
    native = "/api/v1/services/aigc/multimodal-generation/generation"
    assert edits == {"/v1/images/edits", "/images/edits", "/openai/v1/images/edits", native}


def test_the_gateway_reaches_names_redis_and_the_vendor_and_nothing_else() -> None:
    names, redis, vendor = egress().values()

    assert list(egress()) == [(("UDP", 53), ("TCP", 53)), (("TCP", 6379),), (("TCP", 443),)]
    assert [to.keys() for to in names] == [{"namespaceSelector", "podSelector"}, {"ipBlock"}]
    assert names[1]["ipBlock"]["cidr"].endswith("/32")
    assert redis[0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "redis"}
    assert [to["ipBlock"]["cidr"] for to in vendor] == ["0.0.0.0/0", "::/0"]


def test_the_pictures_of_edits_have_room_on_a_disk() -> None:
    """In each worker; a volume in memory would be the pod's memory."""
    environment = {entry["name"]: entry["value"] for entry in CONTAINER["env"]}
    (mount,) = [m for m in CONTAINER["volumeMounts"] if m["mountPath"] == environment["UPLOADS"]]
    pod = only(MANIFESTS, "Deployment")["spec"]["template"]["spec"]
    (volume,) = [each["emptyDir"] for each in pod["volumes"] if each["name"] == mount["name"]]
    workers = int(CONTAINER["args"][CONTAINER["args"].index("--workers") + 1])
    room_mib = int(volume["sizeLimit"].removesuffix("Mi"))
    limit_mib = int(CONTAINER["resources"]["limits"]["ephemeral-storage"].removesuffix("Mi"))

    assert "medium" not in volume
    assert 2 * int(environment["UPLOADS_TENANT_BYTES"]) <= int(environment["UPLOADS_BYTES"])
    assert limit_mib - 256 >= room_mib >= workers * int(environment["UPLOADS_BYTES"]) / 1024**2


def test_the_gateway_reaches_no_private_address_by_a_url_of_an_answer() -> None:
    v4, v6 = (to["ipBlock"] for to in egress()[("TCP", 443),])

    assert {"10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "192.168.0.0/16"} <= set(v4["except"])
    assert set(v6["except"]) == {"fc00::/7", "fe80::/10"}


@pytest.mark.parametrize("name", ["image-gateway", "image-gateway-edits"])
def test_the_ingress_waits_for_the_slowest_generation_and_sends_it_once(name: str) -> None:
    annotations = annotations_of(name)

    assert int(annotations["proxy-read-timeout"]) > Upstream().deadline_s
    assert annotations["proxy-next-upstream"].split() == ["error", "timeout"]
    assert int(annotations["limit-connections"]) <= 1000


def test_what_the_ingress_holds_is_what_the_gateway_takes() -> None:
    """The controller is shared: nobody may fill its memory."""
    annotations, edits = annotations_of("image-gateway"), annotations_of("image-gateway-edits")

    assert annotations["proxy-body-size"] == annotations["client-body-buffer-size"] == "128k"
    assert Config(accounts=(), tenants=()).max_body_bytes == 128 * 1024
    assert edits["proxy-request-buffering"] == "off"


@pytest.mark.slow
def test_what_the_probes_ask_for_is_there(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text(
        "accounts: [{name: one, base_url: 'https://dashscope.aliyuncs.com/api/v1', api_key: k}]\n"
        "tenants: []\n"
    )
    probes = ("startupProbe", "livenessProbe", "readinessProbe")
    paths = {CONTAINER[probe]["httpGet"]["path"] for probe in probes}
    paths |= {one["path"] for one in only(MANIFESTS, "ServiceMonitor")["spec"]["endpoints"]}
    httpx = pytest.importorskip("httpx")

    with GatewayProcess.serving(config, "--port", "0") as gateway:
        found = {path: httpx.get(gateway.url + path).status_code for path in paths}

    assert found == dict.fromkeys(paths, 200)


def test_the_operator_is_given_the_rules_of_prometheus() -> None:
    files = sorted((DEPLOY / "prometheus").glob("*.rules.yaml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]

    assert only(MANIFESTS, "PrometheusRule")["spec"]["groups"] == groups, (
        "run scripts/write-prometheus-rule"
    )


def test_rules_are_written_for_the_operator_as_they_are(tmp_path: Path) -> None:
    for folder in ("scripts", "deploy/prometheus", "deploy/kubernetes/components/monitoring"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "write-prometheus-rule", tmp_path / "scripts")
    for name in ("one", "two"):
        file = tmp_path / "deploy" / "prometheus" / f"{name}.rules.yaml"
        file.write_text(RULES.replace("NAME", name))

    subprocess.run([tmp_path / "scripts" / "write-prometheus-rule"], check=True)

    (written_file,) = tmp_path.rglob("prometheusrule.yaml")
    written = yaml.safe_load(written_file.read_text())
    assert written["spec"]["groups"] == [
        group
        for name in ("one", "two")
        for group in yaml.safe_load(RULES.replace("NAME", name))["groups"]
    ]


def egress() -> dict[tuple[tuple[str, int], ...], list[Manifest]]:
    """Where to, by the protocols and ports of each rule."""
    return {
        tuple((one["protocol"], one["port"]) for one in rule["ports"]): rule["to"]
        for rule in only(MANIFESTS, "NetworkPolicy")["spec"]["egress"]
    }


def ingresses() -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in MANIFESTS if one["kind"] == "Ingress"}


def annotations_of(ingress: str) -> dict[str, str]:
    annotations = ingresses()[ingress]["metadata"]["annotations"]
    return {name.rpartition("/")[2]: text for name, text in annotations.items()}


def ingress_paths(ingress: str) -> list[Manifest]:
    (rule,) = ingresses()[ingress]["spec"]["rules"]
    paths: list[Manifest] = rule["http"]["paths"]
    return paths


def ingress_backends() -> list[Manifest]:
    return [path["backend"] for name in ingresses() for path in ingress_paths(name)]

"""What the doctor says of clusters that lack something, each finding with a command that mends it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nas import doctor
from nas.cluster import ClusterError, Target
from nas.doctor import Finding
from nas.errors import NasError

Object = dict[str, Any]


class Cluster:
    """A cluster as its objects, healthy until a test takes something away."""

    target, namespace, options, home = Target.CLUSTER, "nas", "--target cluster", Path("/none")

    def __init__(self) -> None:
        self.forbidden = ""
        self.version: Object | None = {
            "clientVersion": {"gitVersion": "v1.34.0"},
            "serverVersion": {"gitVersion": "v1.31.2"},
        }
        ready = [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "False"}]
        info = {"architecture": "amd64", "kubeletVersion": "v1.31.2"}
        node = {"nodeInfo": info, "conditions": ready, "images": [{"names": ["docker.io/library/server:latest"]}]}
        hook = {"name": doctor.WEBHOOK, "clientConfig": {"caBundle": "abc"}}
        default = {"storageclass.kubernetes.io/is-default-class": "true"}
        labels = {"katib.kubeflow.org/metrics-collector-injection": "enabled"}
        self.held: dict[str, dict[str, Object]] = {
            "Node": {"one": {"metadata": {"name": "one", "labels": {}}, "spec": {}, "status": node}},
            "CustomResourceDefinition": {name: {"metadata": {"name": name}} for name in doctor.KATIB_KINDS},
            "Deployment": {name: deployment(name) for name in doctor.KATIB_PARTS},
            "ValidatingWebhookConfiguration": {"katib": {"webhooks": [hook]}},
            "Namespace": {"nas": {"metadata": {"labels": labels}}},
            "StorageClass": {"disk": {"metadata": {"name": "disk", "annotations": default}}},
        }

    def call(self, *words: str, **_: Any) -> str:
        if words[0] == "config":
            return "team"
        if self.version is None:
            raise ClusterError("The connection to the server was refused\nstart it")
        return json.dumps(self.version)

    def words(self, *words: str, namespace: str = "nas") -> str:
        return " ".join(["kubectl", "-n", namespace, *words])

    def get(self, kind: str, name: str) -> Object | None:
        return self.held[kind].get(name)

    def objects(self, kind: str, **_: Any) -> list[Object]:
        if kind == self.forbidden:
            raise ClusterError("storageclasses is forbidden\nask for the right")
        return list(self.held[kind].values())


def deployment(name: str) -> Object:
    template = {"spec": {"containers": [{"image": f"ghcr.io/kubeflow/katib/{name}:v0.19.0"}]}}
    return {"metadata": {"name": name}, "spec": {"template": template}, "status": {"readyReplicas": 1}}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def wrong(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Findings that say something is wrong: what mends it, by what is said."""
    (tmp_path / "images/server").mkdir(parents=True)
    (tmp_path / "images/server/Dockerfile").touch()
    monkeypatch.setattr(doctor.chart, "helm", lambda _: "helm")

    def look(*wanted: str) -> dict[str, str]:
        found: list[Finding] = list(doctor.findings(cluster, tmp_path, list(wanted)))  # type: ignore[arg-type]
        return {f"{finding.subject}: {finding.text}": finding.mend for finding in found if finding.mend}

    return look


Wrong = Callable[..., dict[str, str]]


def test_a_healthy_cluster_has_nothing_wrong(wrong: Wrong) -> None:
    assert wrong("server:latest", "registry.example/team/other:1") == {}


def test_a_cluster_that_does_not_answer_is_the_only_finding(cluster: Cluster, tmp_path: Path) -> None:
    cluster.version = None
    found = list(doctor.findings(cluster, tmp_path, []))  # type: ignore[arg-type]
    assert found == [Finding("cluster", "The connection to the server was refused", "start it")]


def test_the_context_that_is_looked_at_is_told(cluster: Cluster, tmp_path: Path) -> None:
    assert Finding("kubectl", "v1.34.0, context team") in doctor.findings(cluster, tmp_path, [])  # type: ignore[arg-type]


def test_an_old_kubernetes_is_told(cluster: Cluster, wrong: Wrong) -> None:
    assert cluster.version
    cluster.version["serverVersion"]["gitVersion"] = "v1.27.9"
    assert wrong() == {"Kubernetes: v1.27.9": "upgrade the cluster to 1.28 or newer"}


@pytest.mark.parametrize("kind", ["experiments", "trials", "suggestions"])
def test_a_missing_crd_is_mended_by_setup(cluster: Cluster, wrong: Wrong, kind: str) -> None:
    del cluster.held["CustomResourceDefinition"][f"{kind}.kubeflow.org"]
    told = f"Katib: the cluster doesn't know {kind}.kubeflow.org"
    assert wrong() == {told: "nas cluster setup --target cluster"}


def test_a_part_of_katib_that_is_missing_or_not_ready_is_named(cluster: Cluster, wrong: Wrong) -> None:
    del cluster.held["Deployment"]["katib-db-manager"]
    cluster.held["Deployment"]["katib-mysql"] = deployment("katib-mysql") | {"status": {}}
    assert wrong() == {
        "Katib: katib-db-manager isn't there": "nas cluster setup --target cluster",
        "Katib: katib-mysql isn't ready": "kubectl -n kubeflow describe deployment katib-mysql",
    }


def test_a_search_needs_no_user_interface_of_katib(cluster: Cluster, wrong: Wrong) -> None:
    cluster.held["Deployment"]["katib-ui"] = deployment("katib-ui") | {"status": {}}
    assert wrong() == {}


def test_a_webhook_without_its_certificate_is_told(cluster: Cluster, wrong: Wrong) -> None:
    cluster.held["ValidatingWebhookConfiguration"]["katib"]["webhooks"][0]["clientConfig"] = {}
    (mend,) = wrong().values()
    assert mend == "kubectl -n kubeflow rollout restart deployment katib-controller"


def test_a_namespace_without_the_label_is_mended_by_the_label(cluster: Cluster, wrong: Wrong) -> None:
    cluster.held["Namespace"]["nas"]["metadata"]["labels"] = {}
    (mend,) = wrong().values()
    assert (
        mend == "kubectl -n nas label namespace nas katib.kubeflow.org/metrics-collector-injection=enabled --overwrite"
    )
    del cluster.held["Namespace"]["nas"]
    assert wrong() == {"namespace: nas isn't there": "nas cluster setup --target cluster"}


def test_without_a_default_storage_class_those_there_are_named(cluster: Cluster, wrong: Wrong) -> None:
    cluster.held["StorageClass"]["disk"]["metadata"]["annotations"] = {}
    assert wrong() == {"storage: no default storage class (there: disk)": "set storage.storageClass"}


def test_what_this_user_may_not_read_is_told_and_the_rest_is_looked_at(cluster: Cluster, wrong: Wrong) -> None:
    cluster.forbidden = "StorageClass"
    cluster.held["Node"]["one"]["status"]["images"] = []
    found = wrong("server:latest")
    assert found.pop("storage: storageclasses is forbidden") == "ask for the right"
    assert list(found) == ["image: server:latest is not on the nodes"]


def test_an_image_that_no_node_has_is_told_but_not_one_of_a_registry(cluster: Cluster, wrong: Wrong) -> None:
    cluster.held["Node"]["one"]["status"]["images"] = []
    (mend,) = wrong("server:latest", "registry.example/server:1").values()
    assert mend == "nas images build server && nas images import server --target cluster"


def test_an_image_on_other_machines_that_list_no_more_than_fifty_cannot_be_told(
    cluster: Cluster, wrong: Wrong, tmp_path: Path
) -> None:
    many = [{"names": [f"docker.io/library/other:{number}"]} for number in range(50)]
    cluster.held["Node"]["one"]["status"]["images"] = many
    assert wrong("server:latest") == {}
    told = "server:latest: can't be told, as a node lists 50 images at most"
    assert Finding("image", told) in doctor.findings(cluster, tmp_path, ["server:latest"])  # type: ignore[arg-type]
    many.pop()
    assert list(wrong("server:latest")) == ["image: server:latest is not on the nodes"]


def test_nodes_under_pressure_not_ready_or_of_two_kinds_are_told(cluster: Cluster, wrong: Wrong) -> None:
    one = cluster.held["Node"]["one"]
    two = json.loads(json.dumps(one)) | {"metadata": {"name": "two", "labels": {}}}
    two["status"]["nodeInfo"]["architecture"] = "arm64"
    two["status"]["conditions"][0]["status"] = "Unknown"
    one["status"]["conditions"][1]["status"] = "True"
    cluster.held["Node"]["two"] = two
    assert wrong() == {
        "node: one: DiskPressure=True": "kubectl -n nas describe node one",
        "node: two: Ready=Unknown": "kubectl -n nas describe node two",
        "node: architectures differ (amd64, arm64): an image runs on one": (
            "nodeSelector: {kubernetes.io/arch: …} in the values"
        ),
    }


def test_a_condition_that_kubernetes_itself_does_not_have_is_no_trouble(cluster: Cluster, wrong: Wrong) -> None:
    conditions = cluster.held["Node"]["one"]["status"]["conditions"]
    conditions += [{"type": "EtcdIsVoter", "status": "True"}, {"type": "NetworkUnavailable", "status": "False"}]
    assert wrong() == {}
    conditions[-1]["status"] = "True"
    assert list(wrong()) == ["node: one: NetworkUnavailable=True"]


@pytest.fixture
def microk8s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The calls of a microk8s that runs until there is a file `stopped`, and whose add-on dns can't be enabled."""
    script = tmp_path / "microk8s"
    script.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n[ "$2" != dns ] || exit 1\n'
        f'if [ -e {tmp_path}/stopped ]; then echo "microk8s is not running"; else echo "microk8s is running"; fi\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "calls"


def test_microk8s_add_ons_are_enabled_once_it_is_ready_and_one_that_fails_ends_it(microk8s: Path) -> None:
    with pytest.raises(NasError, match="microk8s enable dns failed"):
        doctor._addons(["hostpath-storage", "dns", "dashboard"], 10)
    assert microk8s.read_text().splitlines() == [
        "status --wait-ready --timeout 10",
        "enable hostpath-storage",
        "enable dns",
    ]


def test_a_microk8s_that_does_not_run_is_told_before_any_add_on_is_enabled(microk8s: Path) -> None:
    microk8s.with_name("stopped").touch()
    with pytest.raises(NasError, match="MicroK8s isn't running: microk8s start"):
        doctor._addons(["dns"], 10)
    assert microk8s.read_text() == "status --wait-ready --timeout 10\n"

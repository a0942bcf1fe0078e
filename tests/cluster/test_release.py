"""What a release does besides its search: the bridge, batch, `helm test`, policies, upgrade and uninstall."""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from release import Cluster, Release, holds, until

ROWS = "sepal_length,sepal_width,petal_length,petal_width\n5.1,3.5,1.4,0.2\n6.3,3.3,6.0,2.5\n"


@pytest.fixture(scope="module")
def release(shared_release: Release) -> Release:
    """With a model, from a search of one short trial."""
    made = shared_release.install(
        experiment__maxTrials=1,
        experiment__parallelTrials=1,
        experiment__maxFailedTrials=1,
        experiment__trainer__args__epochs=8,
    )
    made.wait_for_search()
    made.wait("condition=Available", "deployment/iris-nas-serving")
    return made


def test_kubectl_cp_brings_a_whole_model_home_byte_by_byte(release: Release, tmp_path: Path) -> None:
    release.kubectl("cp", f"{release.bridge}:/model/iris", str(tmp_path / "iris"))
    digest = (tmp_path / "iris/CURRENT").read_text().strip()
    model = tmp_path / f"iris/versions/{digest}/model.onnx"
    assert hashlib.sha256(model.read_bytes()).hexdigest() == digest


def test_kubectl_cp_brings_a_file_to_the_claim_byte_by_byte(release: Release, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3_000_000)
    (tmp_path / "data.bin").write_bytes(data)
    release.kubectl("cp", str(tmp_path / "data.bin"), f"{release.bridge}:/model/data.bin")
    assert release.run("sha256sum", "/model/data.bin").split()[0] == hashlib.sha256(data).hexdigest()


def test_the_bridge_keeps_its_name_when_its_pod_is_deleted(release: Release) -> None:
    old = release.get("pod", release.bridge)[0]["metadata"]["uid"]
    release.kubectl("delete", "pod", release.bridge, "--grace-period=1")
    until(lambda: [p for p in release.pods("bridge") if holds(p, "Ready")], "the new pod")
    assert release.get("pod", release.bridge)[0]["metadata"]["uid"] != old
    assert "all whole" in release.store("verify")


def test_batch_scores_a_file_on_the_claim_and_an_unchanged_upgrade_does_not_repeat_it(
    release: Release, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    release.kubectl("cp", str(tmp_path / "rows.csv"), f"{release.bridge}:/model/rows.csv")
    for _ in range(2):
        release.upgrade(batch__enabled=True, batch__inputs=["/model/rows.csv"], batch__format="csv")
        jobs = release.get("jobs", "--selector=app.kubernetes.io/name=batch")
        assert len(jobs) == 1
        release.wait("condition=Complete", f"job/{jobs[0]['metadata']['name']}")
    assert "Sample 0: predicted class = 0 (setosa)" in release.kubectl("logs", f"job/{jobs[0]['metadata']['name']}")
    folder = f"/model/iris/predictions/{jobs[0]['metadata']['name'].rsplit('-', 1)[1]}"
    assert release.run("sh", "-c", f"cat {folder}/part-*").count("\n") == 3
    assert '"rows"' in release.run("cat", f"{folder}/_SUCCESS")


def test_helm_test_passes(cluster: Cluster, release: Release) -> None:
    said = cluster.helm("test", release.name, "--namespace", release.namespace).stdout
    assert "Phase:          Succeeded" in said


def test_every_part_has_a_network_policy_for_its_own_pods(release: Release) -> None:
    """That they are there, and whom they select: this cluster's network enforces none."""
    policies = {p["metadata"]["name"]: p["spec"] for p in release.get("networkpolicies")}
    for part in ("experiment", "bridge", "serving"):
        selected = policies[f"iris-nas-{part}"]["podSelector"]["matchLabels"]
        assert selected == {"app.kubernetes.io/name": part, "app.kubernetes.io/instance": "iris-nas"}
        assert policies[f"iris-nas-{part}"]["policyTypes"] == ["Ingress", "Egress"]


def test_restricted_pod_security_admits_every_pod_of_ours(
    cluster: Cluster, release: Release, new_release: Callable[..., Release], new_namespace: Callable[..., str]
) -> None:
    level = "pod-security.kubernetes.io"
    strict = new_release(namespace=new_namespace(f"{level}/enforce=restricted", f"{level}/warn=restricted"))
    strict.install(experiment__enabled=False, batch__enabled=True, serving__ready="process")
    strict.wait("condition=Available", "deployment/iris-nas-serving")
    strict.wait("jsonpath={.status.readyReplicas}=1", "statefulset/iris-nas-bridge")
    assert until(lambda: strict.pods("batch"), "the batch Job's pod")
    job = release.trials[0]["spec"]["runSpec"]
    job["metadata"] = {"name": "trial", "namespace": strict.namespace}
    said = cluster.kubectl("create", "--dry-run=server", "--filename=-", stdin=json.dumps(job))
    assert "created (server dry run)" in said.stdout
    assert "would violate" not in said.stderr


def test_uninstall_keeps_claim_and_models_and_the_next_install_serves_them(cluster: Cluster, release: Release) -> None:
    with release.forwarded() as ask:
        before = ask("/model")["digest"]
    cluster.helm("uninstall", release.name, "--namespace", release.namespace, "--wait")
    assert release.get("experiments") == []
    until(lambda: not release.get("pods"), "the end of all pods")
    release.install(experiment__enabled=False)
    release.wait("condition=Available", "deployment/iris-nas-serving")
    with release.forwarded() as ask:
        assert ask("/model")["digest"] == before

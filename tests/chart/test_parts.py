"""Claim, bridge, server and batch Job: what is there, how it is secured, what a value turns on."""

import re

import pytest
from rendering import EVERYTHING, PRESETS, Object, label, one, pod_of, pods, render



def test_one_values_file_makes_all_five_parts() -> None:
    names = [
        (item["kind"], re.sub("[0-9a-f]{8}$", "HASH", item["metadata"]["name"])) for item in render("iris", *EVERYTHING)
    ]
    assert sorted(names) == [
        ("Deployment", "x-serving"),
        ("Experiment", "x-HASH"),
        ("Job", "x-batch-HASH"),
        ("PersistentVolumeClaim", "x-models"),
        ("Pod", "x-test-serving"),
        ("Service", "x-bridge"),
        ("Service", "x-serving"),
        ("StatefulSet", "x-bridge"),
    ]


@pytest.mark.parametrize("part", ["experiment", "storage", "bridge", "serving"])
def test_a_part_that_is_off_leaves_nothing(part: str) -> None:
    left = render("iris", f"{part}.enabled=false")
    assert not [item for item in left if item["metadata"]["labels"]["app.kubernetes.io/name"] == part]


def test_batch_is_off_until_it_is_asked_for() -> None:
    assert "Job" not in [item["kind"] for item in render("iris")]


def test_the_claim_is_a_gigabyte_and_stays_on_uninstall() -> None:
    claim = one(render("iris"), "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    fast = one(render("iris", "storage.storageClass=fast"), "PersistentVolumeClaim")
    assert fast["spec"]["storageClassName"] == "fast"


def test_an_existing_claim_is_used_by_all_and_none_is_made() -> None:
    objects = render("iris", *EVERYTHING, "global.claim.existing=theirs")
    assert "PersistentVolumeClaim" not in [item["kind"] for item in objects]
    claims = [
        v["persistentVolumeClaim"]["claimName"]
        for pod in pods(objects)
        for v in pod.get("volumes", [])
        if "persistentVolumeClaim" in v
    ]
    assert claims == ["theirs"] * 4


def test_no_pod_has_more_rights_than_it_needs() -> None:
    for pod in pods(render("iris", *EVERYTHING)):
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (1000, True)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


def test_pods_of_a_claim_that_one_node_mounts_are_kept_together() -> None:
    terms = [
        pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"]
        for pod in pods(render("iris", *EVERYTHING))
        if pod.get("volumes")
    ]
    assert terms == [{"matchLabels": {"nas/claim": "x-models"}}] * 4
    for free in ("global.claim.colocate=false", "global.claim.accessMode=ReadWriteMany"):
        assert not [pod for pod in pods(render("iris", free)) if "affinity" in pod]


def test_serving_and_batch_never_write_to_the_models() -> None:
    objects = render("iris", *EVERYTHING)
    for kind in ("Deployment", "Job"):
        mounts = one(objects, kind)["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        assert next(m for m in mounts if m["mountPath"] == "/model")["readOnly"] is True

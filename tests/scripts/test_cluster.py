"""Where things run, by what the machine's commands say."""

import os
from pathlib import Path

import pytest
from nas.cluster import ClusterError, Target, choose, image_name, trouble


@pytest.fixture
def microk8s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A microk8s that prints what is in `says`, and fails unless that is `{}`."""
    script = tmp_path / "microk8s"
    script.write_text(f'#!/bin/sh\ncat {tmp_path}/says; grep -q "^{{}}" {tmp_path}/says\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "says"


def test_auto_is_this_machine_where_microk8s_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert choose(Target.AUTO) == (Target.LOCAL, "MicroK8s is not installed here (https://microk8s.io)")


def test_auto_is_microk8s_when_it_has_katib(microk8s: Path) -> None:
    microk8s.write_text("{}")
    assert choose(Target.AUTO)[0] is Target.MICROK8S


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ("Insufficient permissions to access MicroK8s.", "usermod -a -G microk8s"),
        ("microk8s is not running, try microk8s start", "not running: microk8s start"),
        ("Error from server (NotFound): the server could not find the requested resource", "nas cluster setup"),
    ],
)
def test_auto_is_this_machine_when_microk8s_cannot_be_used_and_asking_for_it_is_an_error(
    microk8s: Path, says: str, why: str
) -> None:
    microk8s.write_text(says)
    target, reason = choose(Target.AUTO)
    assert (target, why in reason) == (Target.LOCAL, True)
    with pytest.raises(ClusterError, match=why):
        choose(Target.MICROK8S)


def test_what_keeps_a_pod_from_running_is_told_with_what_mends_it() -> None:
    waiting = {"reason": "ErrImageNeverPull", "message": "not present with pull policy of Never"}
    pod = {"status": {"containerStatuses": [{"image": "team/tabular-trainer:1", "state": {"waiting": waiting}}]}}
    assert (
        trouble(pod) == "ErrImageNeverPull: not present with pull policy of Never (nas images import tabular-trainer)"
    )
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node fits"}
    assert trouble({"status": {"conditions": [condition]}}) == "Unschedulable: no node fits"
    creating = {"image": "x", "state": {"waiting": {"reason": "ContainerCreating"}}}
    assert trouble({"status": {"containerStatuses": [creating]}}) == ""


def test_an_images_name_is_its_folders() -> None:
    names = ("server", "server:1", "host:5000/team/server:1", f"team/server@sha256:{'0' * 64}")
    assert {image_name(name) for name in names} == {"server"}

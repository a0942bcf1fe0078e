"""Where things run, by what the machine's commands say."""

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from nas import artifacts, chart, cli, doctor, release
from nas.cluster import Cluster, ClusterError, Target, choose, image_name, output, trouble
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
DIGEST = "ab" * 32
# A cluster with one installed release, whose upgrades are kept for the test to see.
HELM = """#!/bin/sh
case "$*" in
  *"get values"*) cat $STATE/values ;;
  *" upgrade "*) echo "$@" >$STATE/upgrade; cat >$STATE/changed ;;
  *) exec $HELM "$@" ;;
esac
"""
KUBECTL = """#!/bin/sh
case "$*" in
  *"get Namespace"*) [ ! -e $STATE/forbidden ] || { echo 'namespaces is forbidden: no right'; exit 1; } ;;
  *"get Deployment"*) echo '{"items": [{"metadata": {"name": "katib-mysql"}}, {"metadata": {"name": "katib-ui"}}]}' ;;
  *"get Job"*) echo '{"status": {"conditions": [{"type": "Complete", "status": "True"}]}}' ;;
  *"get "*) echo '{"items": []}' ;;
  *"apply -f -"*) cat >$STATE/applied ;;
  *) echo "$@" >>$STATE/calls ;;
esac
"""


class Claim:
    """A claim that notes what goes over."""

    def __init__(self) -> None:
        self.moved: list[tuple[Any, ...]] = []

    def kept(self, model: str) -> dict[str, str]:
        return {"place": f"/model/{model}/versions/{DIGEST}"}

    def list(self, path: str) -> str:
        return f"what is in {path!r}\n"

    def put(self, source: Path, path: str, _: object) -> int:
        self.moved.append((source, path))
        return 1

    def copy(self, path: str, target: Path, _: object) -> int:
        self.moved.append((path, target))
        return 2


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("HELM", str(chart.helm(ROOT / ".nas")))
    monkeypatch.setenv("STATE", str(tmp_path))
    for name, text in (("helm", HELM), ("kubectl", KUBECTL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    values = yaml.safe_load((ROOT / "charts/nas/values.yaml").read_text())
    values["global"]["model"] = "iris"
    values["experiment"] |= yaml.safe_load((ROOT / "values/iris.yaml").read_text())["experiment"]
    (tmp_path / "values").write_text(json.dumps(values))
    return Cluster(Target.CLUSTER, "nas", tmp_path / "home")


@pytest.fixture
def claim(monkeypatch: pytest.MonkeyPatch) -> Claim:
    made = Claim()
    monkeypatch.setattr(artifacts, "opened", lambda *_: contextlib.nullcontext(made))
    return made


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
    assert choose(Target.AUTO) == (Target.LOCAL, "no MicroK8s here: https://microk8s.io")


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


@pytest.mark.parametrize(
    ("said", "mend"),
    [
        ("error: accumulating resources: hit 27s timeout running '/usr/bin/git fetch --depth=1'", "--manifests DIR"),
        ("error: no 'git' program on path: exec: git not found", "--manifests DIR"),
        ("failed to run '/usr/bin/git fetch': Failed to connect to github.com: Connection refused", "--manifests DIR"),
        ('error when creating "github.com/kubeflow/katib.git/x?ref=v1": roles is forbidden', "auth can-i"),
        ('unable to recognize "github.com/kubeflow/katib.git/x": dial tcp: connection refused', "is it running"),
        ("error: timed out waiting for the condition", "nas doctor"),
        ("no matches for kind Experiment in version kubeflow.org/v1beta1", "nas cluster setup"),
        ("Unable to connect to the server: dial tcp: i/o timeout", "is it running"),
        ("jobs.batch is forbidden: User cannot create resource", "auth can-i"),
    ],
)
def test_what_a_command_refuses_is_told_with_what_mends_it(said: str, mend: str) -> None:
    with pytest.raises(ClusterError) as caught:
        output(["sh", "-c", 'echo "$1" >&2; exit 1', "sh", said])
    first, second = str(caught.value).splitlines()
    assert said.removeprefix("error: ") in first
    assert mend in second


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


def test_the_batch_job_is_the_one_that_the_upgrade_makes_and_its_result_comes_home(
    cluster: Cluster, claim: Claim, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text("1,2,3,4\n")
    settings = {"format": "csv", "onError": "skip", "probabilities": True, "keep": ["a", "b"], "digest": None}
    settings |= {"inputs": [tmp_path / "rows.csv"]}
    release.batch(cluster, ROOT, "iris-nas", settings, None, build=False, follow=True)
    words = (tmp_path / "upgrade").read_text().split()
    assert words[:4] == ["--namespace", "nas", "upgrade", "iris-nas"]
    assert words[-3:] == ["--reset-then-reuse-values", "--values", "-"]
    changed = json.loads((tmp_path / "changed").read_text())
    only = ["--show-only", "charts/batch/templates/job.yaml"]
    command = [os.environ["HELM"], "template", "iris-nas", str(ROOT / "charts/nas"), *only, "--values"]
    command += [str(tmp_path / "values"), "--values", str(tmp_path / "changed")]
    job = yaml.safe_load(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert f"batch Job {job['metadata']['name']}, version {DIGEST[:12]}" in capsys.readouterr().out
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    (sent, path), (result, target) = claim.moved
    assert sent == tmp_path / "rows.csv"
    assert changed["batch"]["inputs"] == [path]
    assert {f"--digest={DIGEST}", "--format=csv", "--on-error=skip", f"--output=/output/{result}"} <= set(arguments)
    assert target == tmp_path / "home/output/iris" / Path(result).name


def test_a_batch_job_that_is_not_followed_is_started_and_left_alone(
    cluster: Cluster, claim: Claim, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text("1,2,3,4\n")
    settings = {"format": "csv", "keep": None, "inputs": [tmp_path / "rows.csv"]}
    release.batch(cluster, ROOT, "iris-nas", settings, None, build=False, follow=False)
    changed = json.loads((tmp_path / "changed").read_text())
    ((_, sent),) = claim.moved  # the file, and no result
    assert changed == {"batch": {"enabled": True, "digest": DIGEST, "format": "csv", "inputs": [sent]}}
    assert f"the same command with --digest {DIGEST} --follow" in capsys.readouterr().out


def test_setup_installs_katib_labels_the_namespace_and_waits_for_it(cluster: Cluster, tmp_path: Path) -> None:
    doctor.setup(cluster, None, dashboard=False, timeout=7)
    install, wait = (tmp_path / "calls").read_text().splitlines()
    assert install.startswith("--namespace kubeflow apply -k github.com/kubeflow/katib.git/")
    wanted = " ".join(f"deployment/katib-{name}" for name in ("controller", "db-manager", "mysql"))
    assert wait == f"--namespace kubeflow rollout status {wanted} --timeout=7s"
    assert json.loads((tmp_path / "applied").read_text()) == {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "nas", "labels": {doctor.LABEL: "enabled"}},
    }


@pytest.mark.parametrize(("file", "option"), [("kustomization.yaml", "-k"), ("katib.yaml", "-f")])
def test_setup_takes_manifests_that_are_here(cluster: Cluster, tmp_path: Path, file: str, option: str) -> None:
    (tmp_path / "katib").mkdir()
    (tmp_path / "katib" / file).touch()
    doctor.setup(cluster, tmp_path / "katib", dashboard=False, timeout=7)
    install = (tmp_path / "calls").read_text().splitlines()[0]
    assert install == f"--namespace kubeflow apply {option} {tmp_path}/katib"


def test_whoever_may_not_read_the_namespace_upgrades_without_the_charts_look_at_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.upgrade("x", "chart")
    assert "checkCluster" not in (tmp_path / "upgrade").read_text()
    (tmp_path / "forbidden").touch()
    cluster.upgrade("x", "chart")
    assert "upgrade x chart --set global.checkCluster=false" in (tmp_path / "upgrade").read_text()


def test_a_release_says_which_model_its_store_is_asked_for(
    cluster: Cluster, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim.pod = "x-bridge-0"  # type: ignore[attr-defined]
    values = json.loads(cluster.helm("get", "values"))
    values["global"]["model"] = "mnist"
    monkeypatch.setattr(cluster, "values", lambda _: values)
    called: list[str] = []
    monkeypatch.setattr(cluster, "command", lambda *words: called.extend(words) or ["true"])
    assert release.models(cluster, ROOT, "mnist-nas", ["list"]) == 0
    assert called[-3:] == ["list", "--model", "mnist"]


@pytest.mark.usefixtures("cluster")
def test_files_are_listed_and_copied_by_their_place_here_and_on_the_claim(claim: Claim, tmp_path: Path) -> None:
    def said(*words: str) -> str:
        result = CliRunner().invoke(cli.app, ["artifacts", *words, "--release", "iris-nas", "--target", "cluster"])
        assert result.exit_code == 0, result.exception
        return result.output

    assert said("list") == "what is in ''\n"
    assert said("copy", "iris/versions", str(tmp_path / "new")) == (f"2 files in {tmp_path}/new, checksums compared\n")
    assert f"2 files in {tmp_path}/iris" in said("copy", "", str(tmp_path)), "an existing folder gets it inside"
    assert said("put", str(tmp_path / "helm"), "iris/helm") == "1 file in iris/helm, checksums compared\n"
    assert claim.moved == [
        ("iris/versions", tmp_path / "new"),
        (f"/model/iris/versions/{DIGEST}", tmp_path / "iris"),
        (tmp_path / "helm", "iris/helm"),
    ]

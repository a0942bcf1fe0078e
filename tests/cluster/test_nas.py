"""What a user types, against a real cluster: `make iris TARGET=…`, and the nas commands for what it leaves."""

import csv
import hashlib
import json
import random
import re
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commandline import SMALL, Nas, write_katib
from release import Cluster, Release, holds, until

import images

ROWS = "sepal_length,sepal_width,petal_length,petal_width\n5.1,3.5,1.4,0.2\n"


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What the commands that made `release` said."""
    return {}


@pytest.fixture(scope="module")
def release(
    nas: Nas, cluster: Cluster, said: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Release]:
    """What `make iris TARGET=…` leaves in a namespace that `nas cluster setup` prepared."""
    made = Release(cluster, "nas-made-by-setup", "iris-nas")
    nas.environment["NAS_NAMESPACE"] = made.namespace
    manifests = write_katib(tmp_path_factory.mktemp("katib")) if nas.target == "microk8s" else []
    said["setup"] = nas("nas", "cluster", "setup", *manifests).stdout
    said["setup again"] = nas("nas", "cluster", "setup").stdout
    said["make iris"] = nas.make_iris()
    yield made
    cluster.kubectl("delete", "namespace", "--wait=false", made.namespace)


@pytest.mark.usefixtures("release")
def test_setup_prepares_katib_and_the_namespace_and_can_be_called_again(said: dict[str, str]) -> None:
    lines = said["setup"].splitlines()
    assert lines[-1] == "the cluster is ready for searches"
    assert "namespace: nas-made-by-setup is there and labelled" in lines
    assert [line for line in lines if line.startswith("katib: waiting for ")]
    assert "katib: it is there already" in said["setup again"]


def test_make_iris_ends_with_a_promoted_model_and_what_to_type_next(
    nas: Nas, release: Release, said: dict[str, str]
) -> None:
    lines = said["make iris"].splitlines()
    current = release.run("cat", "/model/iris/CURRENT").strip()
    first = next(line for line in lines if not line.startswith("setting up"))  # make may bring .venv up to date
    assert first.startswith(f"target: {nas.target} (")
    assert sum(line.startswith("image docker.io/library/") for line in lines) >= 2
    assert [line for line in lines if re.match(r"\[\d+:\d\d\] trial [12]/2 \w+ (Succeeded|EarlyStopped) after", line)]
    assert [line for line in lines if line.startswith("model ") and f"{current[:12]} promoted" in line]
    assert [line for line in lines if re.match(r"epochs +\d+ of at most 16 ", line)]
    assert f"next    make serve MODEL=iris TARGET={nas.target}" in lines


def test_a_search_that_is_over_is_shown_and_not_repeated(nas: Nas, release: Release) -> None:
    before = [trial["metadata"]["uid"] for trial in release.trials]
    again = nas.make_iris()
    assert "this search was over already" in again
    assert "\nbest    " in again
    assert [trial["metadata"]["uid"] for trial in release.trials] == before
    assert "this search was over already" in nas("nas", "watch", release.name).stdout


def test_interrupting_the_view_leaves_the_search_running_and_watch_comes_back_to_it(nas: Nas, release: Release) -> None:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    process = nas.start("nas", "run", "iris", "--run", "2", "--no-build", *settings)
    assert process.stdout
    assert any("trial 1/2" in line for line in iter(process.stdout.readline, ""))
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    back = f"nas watch {release.name} --target {nas.target} --namespace {release.namespace}"
    assert f"the search goes on; to come back to it: {back}" in rest
    assert "\nbest    " in nas(*back.split()).stdout
    assert holds(release.experiment, "Succeeded")
    assert len(release.trials) == 2


def test_the_doctor_finds_a_missing_label_and_a_missing_image_and_says_what_mends_them(
    nas: Nas, release: Release, new_namespace: Callable[..., str], tmp_path: Path
) -> None:
    assert release.namespace in nas("nas", "doctor").stdout
    values = tmp_path / "other.yaml"
    trainer = "{image: {repository: gone}}"
    values.write_text(f"experiment: {{parameters: {{lr: {{type: double, min: 0, max: 1}}}}, trainer: {trainer}}}")
    namespace = new_namespace("a=b")
    found = nas("nas", "doctor", str(values), "--namespace", namespace, check=False)
    wrong = [line for line in found.stdout.splitlines() if line.startswith("WRONG")]
    assert (found.returncode, len(wrong)) == (1, 2), found.stdout
    assert "has no metrics-collector label" in wrong[0]
    assert "gone:latest is not on the nodes" in wrong[1]
    nas("sh", "-c", found.stdout.partition("-> ")[2].splitlines()[0])
    assert nas("nas", "doctor", "--namespace", namespace).returncode == 0


@pytest.mark.usefixtures("release")
def test_an_image_that_the_node_lacks_is_imported_and_then_skipped(nas: Nas, cluster: Cluster) -> None:
    if cluster.node is None:
        pytest.skip("images aren't taken from the nodes of a cluster that was there")
    nas("microk8s", "ctr", "images", "remove", images.reference("batch"))
    assert re.search(r"microk8s: imported in [\d.]+ s", nas("nas", "images", "import", "batch").stdout)
    assert "microk8s: there already" in nas("nas", "images", "import", "batch").stdout
    assert images.reference("batch") in nas("microk8s", "ctr", "images", "list", "--quiet").stdout


def test_the_promoted_model_comes_home_whole(nas: Nas, release: Release, tmp_path: Path) -> None:
    nas("nas", "artifacts", "copy", "", str(tmp_path), "--release", release.name)
    current = release.run("cat", "/model/iris/CURRENT").strip()
    assert nas("sha256sum", str(tmp_path / "iris/model.onnx")).stdout.split()[0] == current
    assert (tmp_path / "iris/manifest.json").is_file()


@pytest.mark.parametrize("way", ["put", "copy"])
def test_a_copy_whose_bridge_pod_is_deleted_in_the_middle_goes_on(
    nas: Nas, release: Release, tmp_path: Path, way: str
) -> None:
    data = random.Random(2).randbytes(120_000_000)
    (tmp_path / "here").write_bytes(data)
    if way == "copy":
        nas("nas", "artifacts", "put", str(tmp_path / "here"), "big", "--release", release.name)

    def part() -> object:
        if way == "copy":
            return list(tmp_path.glob(".back.*.part"))
        return release.run("sh", "-c", "ls /model/.big.*.part 2>/dev/null || true")

    words = {"put": [str(tmp_path / "here"), "big"], "copy": ["big", str(tmp_path / "back")]}[way]
    process = nas.start("nas", "artifacts", way, *words, "--release", release.name)
    until(part, "a part of the file")
    release.kubectl("delete", "pod", release.bridge, "--grace-period=0", "--force")
    process.communicate(timeout=120)
    assert process.returncode == 0
    came = nas("sha256sum", str(tmp_path / "back")).stdout if way == "copy" else release.run("sha256sum", "/model/big")
    assert came.split()[0] == hashlib.sha256(data).hexdigest()
    assert not part()
    release.run("rm", "/model/big")


def test_a_full_claim_is_told_and_holds_no_half_file(
    nas: Nas, cluster: Cluster, new_release: Callable[..., Release], tmp_path: Path
) -> None:
    if cluster.node is None:
        pytest.skip("only the throw-away cluster has claims that are as small as they say")
    small = new_release().install(
        experiment__enabled=False, serving__enabled=False, storage__storageClass="limited", storage__size="5Mi"
    )
    (tmp_path / "big").write_bytes(bytes(20_000_000))
    where = ["--release", small.name, "--namespace", small.namespace]
    result = nas("nas", "artifacts", "put", str(tmp_path / "big"), "iris/big", *where, check=False)
    assert (result.returncode, "no space left on the claim" in result.stderr) == (1, True), result.stderr
    assert "big" not in nas("nas", "artifacts", "list", *where).stdout
    (tmp_path / "little").write_text("fits")
    nas("nas", "artifacts", "put", str(tmp_path / "little"), "iris/little", *where)
    assert small.run("cat", "/model/iris/little") == "fits"
    assert small.run("sh", "-c", "find /model -name '*.part'") == ""


def test_without_a_bridge_a_temporary_pod_is_made_and_removed(nas: Nas, release: Release) -> None:
    release.upgrade(bridge__enabled=False)
    try:
        until(lambda: not release.pods("bridge"), "the bridge to go away")
        assert "iris/CURRENT" in nas("nas", "artifacts", "list", "iris", "--release", release.name).stdout
        until(lambda: not release.pods("bridge"), "the temporary pod to go away")
    finally:
        release.upgrade(bridge__enabled=True)


def test_models_roll_back_and_the_server_follows(nas: Nas, release: Release) -> None:
    store = ["--release", release.name]
    first, second = re.findall(r" ([0-9a-f]{12}) ", nas("nas", "models", "list", *store).stdout)[:2]
    for digest in (first, second):
        nas("nas", "models", "promote", digest, *store)
    assert f"{first} is current again" in nas("nas", "models", "rollback", *store).stdout
    with release.forwarded() as ask:
        until(lambda: ask("/model")["digest"].startswith(first), "the server to follow")
    nas("nas", "models", "unpin", *store)
    assert nas("nas", "models", "show", "ffff", *store, check=False).returncode == 1


def test_batch_scores_files_of_this_machine_once_and_brings_the_result_home(
    nas: Nas, release: Release, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    words = ["nas", "batch", "--release", release.name, str(tmp_path / "rows.csv"), "--format", "csv"]
    words += ["--output", str(tmp_path / "out")]
    assert "it goes on" in nas(*words, "--no-follow").stdout
    assert not (tmp_path / "out").exists()
    jobs = set()
    for _ in range(2):
        assert "Sample 0: predicted class = 0 (setosa)" in nas(*words, "--follow").stdout
        (predictions,) = (tmp_path / "out").rglob("*.csv")
        assert list(csv.reader(predictions.open()))[1] == ["0", "0", "setosa"]
        jobs |= {job["metadata"]["uid"] for job in release.get("jobs", "--selector=app.kubernetes.io/name=batch")}
    assert len(jobs) == 1


def test_serve_brings_the_server_to_this_machine_until_ctrl_c(nas: Nas, release: Release) -> None:
    process = nas.start("nas", "serve", "--release", release.name, "--port", "0")
    assert process.stdout
    line = next(line for line in iter(process.stdout.readline, "") if line.startswith("Forwarding from"))
    port = re.search(r":(\d+) ->", line)
    assert port
    with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/model", timeout=10) as answer:
        assert answer.status == 200
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)  # to the end of its output: nothing that could print is left
    assert process.returncode == 130


def test_someone_who_may_not_read_namespaces_searches_all_the_same(
    nas: Nas, cluster: Cluster, new_release: Callable[..., Release], tmp_path: Path
) -> None:
    theirs = new_release("theirs")
    theirs.kubectl("apply", "--filename", str(Path(__file__).parent / "manifests/someone.yaml"))
    token = theirs.kubectl("create", "token", "someone").strip()
    config = cluster.kubectl("config", "view", "--raw", "--minify", "--flatten", "--output=json").stdout
    changed = json.loads(config)
    changed["users"][0]["user"] = {"token": token}
    (tmp_path / "config").write_text(json.dumps(changed))
    words = ["nas", "run", "iris", "--no-build", "--release", theirs.name, "--namespace", theirs.namespace]
    words += [word for setting in SMALL for word in ("--set", setting)]
    said = nas("env", f"KUBECONFIG={tmp_path}/config", *words, "--target", "cluster").stdout
    assert f"this user may not read namespace {theirs.namespace}" in said
    assert re.search(r"^model +iris \w+ promoted", said, re.MULTILINE)


def test_what_is_not_there_is_told(nas: Nas, release: Release) -> None:
    for words, message in (
        (["watch", "other"], "no search of release other"),
        (["artifacts", "list", "--release", "other"], f"(there: {release.name})"),
        (["models", "list", "--model", "iris", "--release", "other"], "no release other"),
    ):
        result = nas("nas", *words, check=False)
        assert (result.returncode, message in result.stderr) == (1, True), result.stderr

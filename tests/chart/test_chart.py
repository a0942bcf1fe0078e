import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

ROOT = Path(__file__).parents[2]
Render = Callable[..., list[dict[str, Any]]]
VALUES = sorted(str(path.relative_to(ROOT / "values").with_suffix("")) for path in (ROOT / "values").glob("**/*.yaml"))
EVERYTHING = ("batch.enabled=true",)


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [item for item in objects if item["kind"] == kind]
    return found


def experiment(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return one(objects, "Experiment")


def trial_pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = experiment(objects)["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]
    return pod


def pods(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield trial_pod(objects)
    for item in objects:
        if item["kind"] == "Pod":
            yield item["spec"]
        elif "template" in item["spec"]:
            yield item["spec"]["template"]["spec"]


@pytest.mark.parametrize("values", VALUES)
def test_every_values_file_passes_helm_lint(helm: str, values: str) -> None:
    command = [helm, "lint", "--strict", str(ROOT / "charts/nas"), "--values", str(ROOT / f"values/{values}.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("version", ["1.28", "1.34"])
@pytest.mark.parametrize("values", VALUES)
def test_every_object_is_valid_kubernetes(render: Render, values: str, version: str) -> None:
    objects = render(values, *EVERYTHING)
    job = experiment(objects)["spec"]["trialTemplate"]["trialSpec"] | {"metadata": {"name": "trial"}}
    for item in [*objects, job]:
        if item["kind"] != "Experiment":
            kubernetes_validate.validate(item, version, strict=True)


def test_one_values_file_makes_all_five_parts(render: Render) -> None:
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
def test_a_part_that_is_off_leaves_nothing(render: Render, part: str) -> None:
    left = render("iris", f"{part}.enabled=false")
    assert not [item for item in left if item["metadata"]["labels"]["app.kubernetes.io/name"] == part]


def test_batch_is_off_until_it_is_asked_for(render: Render) -> None:
    assert "Job" not in [item["kind"] for item in render("iris")]


def test_the_experiment_is_what_katib_users_know(render: Render) -> None:
    spec = experiment(render("mnist"))["spec"]
    assert (spec["maxTrialCount"], spec["parallelTrialCount"], spec["maxFailedTrialCount"]) == (5, 2, 3)
    assert spec["objective"] == {
        "type": "maximize",
        "goal": 0.99,
        "objectiveMetricName": "accuracy",
        "additionalMetricNames": ["loss"],
        "metricStrategies": [{"name": "accuracy", "value": "max"}, {"name": "loss", "value": "min"}],
    }
    assert spec["algorithm"]["algorithmName"] == "random"
    settings = {s["name"]: s["value"] for s in spec["earlyStopping"]["algorithmSettings"]}
    assert settings == {"min_trials_required": "1", "start_step": "2"}
    assert spec["resumePolicy"] == "LongRunning"
    assert spec["trialTemplate"]["retain"] is True
    spaces = {p["name"]: (p["parameterType"], p["feasibleSpace"]) for p in spec["parameters"]}
    assert spaces == {
        "layers": ("int", {"min": "1", "max": "4"}),
        "units": ("int", {"min": "64", "max": "256"}),
        "lr": ("double", {"min": "0.0005", "max": "0.01"}),
    }


def test_each_trial_exports_to_a_folder_of_its_own_on_the_claim(render: Render) -> None:
    found = experiment(render("iris"))
    template, pod = found["spec"]["trialTemplate"], trial_pod(render("iris"))
    references = {p["name"]: p["reference"] for p in template["trialParameters"]}
    assert references.pop("trialName") == "${trialSpec.Name}"
    container = pod["containers"][0]
    assert (container["name"], container["command"]) == (template["primaryContainerName"], ["python3", "/app/train.py"])
    assert (
        f"--export-path=/model/iris/trials/{found['metadata']['name']}/${{trialParameters.trialName}}"
        in container["args"]
    )
    for name, reference in references.items():
        assert reference == name
        assert f"--{name}=${{trialParameters.{name}}}" in container["args"]
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes[mounts["/model"]]["persistentVolumeClaim"] == {"claimName": "x-models"}


def test_a_trial_is_a_job_that_never_starts_again_and_ends(render: Render) -> None:
    job = experiment(render("iris"))["spec"]["trialTemplate"]["trialSpec"]
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["activeDeadlineSeconds"] == 3600
    assert job["spec"]["ttlSecondsAfterFinished"] == 60
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def empties(node: Any, path: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from empties(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from empties(value, f"{path}[{index}]")
    if node in ("", None) or node == [] or node == {}:
        yield path


@pytest.mark.parametrize("values", VALUES)
def test_nothing_in_a_trial_is_empty_since_katib_refuses_it(render: Render, values: str) -> None:
    assert list(empties(experiment(render(values))["spec"]["trialTemplate"])) == []


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("epoch=7 loss=0.0712 accuracy=0.978", ["0.978", "0.0712"]),
        ("epoch=7 loss=7.1e-05 accuracy=1.0", ["1.0", "7.1e-05"]),
        ("INFO accuracy=1.5 loss=0.1", [None, None]),
        ("epoch=7 loss=nan accuracy=nan", [None, None]),
        ("epoch=7 val-loss=0.1 my_accuracy=0.5", [None, None]),
    ],
)
def test_katib_reads_the_epoch_line_and_no_other(render: Render, line: str, read: list[str | None]) -> None:
    formats = experiment(render("iris"))["spec"]["metricsCollectorSpec"]["source"]["filter"]["metricsFormat"]
    matches = [re.search(pattern, line) for pattern in formats]
    assert [match and match[2] for match in matches] == read
    assert [match[1] for match in matches if match] == ["accuracy", "loss"][: sum(map(bool, matches))]


def test_a_metrics_format_has_two_outer_groups_as_katib_asks(render: Render) -> None:
    for pattern in experiment(render("iris"))["spec"]["metricsCollectorSpec"]["source"]["filter"]["metricsFormat"]:
        depth = outer = 0
        for character in re.sub(r"\\.|\[[^]]*\]", "", pattern):
            outer += character == "(" and depth == 0
            depth += (character == "(") - (character == ")")
        assert outer == 2


def name_and_seeds(objects: list[dict[str, Any]]) -> tuple[str, str, str]:
    found = experiment(objects)
    settings = {s["name"]: s["value"] for s in found["spec"]["algorithm"]["algorithmSettings"]}
    (seed,) = [a for a in trial_pod(objects)["containers"][0]["args"] if a.startswith("--seed=")]
    return found["metadata"]["name"], settings["random_state"], seed


@pytest.mark.parametrize(
    "setting",
    [
        "experiment.run=2",
        "experiment.parameters.units.max=33",
        "experiment.trainer.args.epochs=51",
        "experiment.algorithm.name=tpe",
        "experiment.objective.goal=0.98",
        "global.image.tag=v2",
    ],
)
def test_another_search_has_another_name_and_another_seed(render: Render, setting: str) -> None:
    assert not set(name_and_seeds(render("iris"))) & set(name_and_seeds(render("iris", setting)))


@pytest.mark.parametrize("setting", ["maxTrials=20", "parallelTrials=1", "maxFailedTrials=5"])
def test_what_katib_lets_one_edit_keeps_the_name(render: Render, setting: str) -> None:
    assert name_and_seeds(render("iris", f"experiment.{setting}")) == name_and_seeds(render("iris"))


def test_a_newer_chart_changes_neither_the_search_nor_any_pod(render: Render, tmp_path: Path) -> None:
    newer = tmp_path / "nas"
    shutil.copytree(ROOT / "charts/nas", newer)
    for path in newer.glob("**/Chart.yaml"):
        path.write_text(path.read_text().replace("0.1.0", "9.9.9"))
    before, after = render("iris", *EVERYTHING), render("iris", *EVERYTHING, chart=newer)
    assert experiment(before)["spec"] == experiment(after)["spec"]
    assert [item["metadata"]["name"] for item in before] == [item["metadata"]["name"] for item in after]
    assert [item["spec"] for item in before] == [item["spec"] for item in after]


def test_two_releases_in_one_namespace_share_no_name(render: Render) -> None:
    one_release, other = (
        {(item["kind"], item["metadata"]["name"]) for item in render("iris", *EVERYTHING, release=release)}
        for release in ("nas", "iris-nas")
    )
    assert not one_release & other


def test_names_fit_into_katibs_forty_characters(render: Render) -> None:
    assert len(experiment(render("iris", release="a" * 31))["metadata"]["name"]) == 40


def test_a_name_and_seeds_that_are_given_are_taken(render: Render) -> None:
    settings = (
        "experiment.name=mine",
        "experiment.trainer.args.seed=5",
        "experiment.algorithm.settings.random_state=7",
    )
    assert name_and_seeds(render("iris", *settings)) == ("mine", "7", "--seed=5")


def test_a_batch_job_is_a_new_one_when_its_spec_is(render: Render) -> None:
    names = {
        one(render("iris", *EVERYTHING, *more), "Job")["metadata"]["name"]
        for more in ([], ["experiment.maxTrials=20"], ["batch.print=5"])
    }
    assert len(names) == 2


def test_the_claim_is_a_gigabyte_and_stays_on_uninstall(render: Render) -> None:
    claim = one(render("iris"), "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    fast = one(render("iris", "storage.storageClass=fast"), "PersistentVolumeClaim")
    assert fast["spec"]["storageClassName"] == "fast"


def test_an_existing_claim_is_used_by_all_and_none_is_made(render: Render) -> None:
    objects = render("iris", *EVERYTHING, "global.claim.existing=theirs")
    assert "PersistentVolumeClaim" not in [item["kind"] for item in objects]
    claims = [
        v["persistentVolumeClaim"]["claimName"]
        for pod in pods(objects)
        for v in pod.get("volumes", [])
        if "persistentVolumeClaim" in v
    ]
    assert claims == ["theirs"] * 4


def test_no_pod_has_more_rights_than_it_needs(render: Render) -> None:
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


def test_pods_of_a_claim_that_one_node_mounts_are_kept_together(render: Render) -> None:
    terms = [
        pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"]
        for pod in pods(render("iris", *EVERYTHING))
        if pod.get("volumes")
    ]
    assert terms == [{"matchLabels": {"nas/claim": "x-models"}}] * 4
    for free in ("global.claim.colocate=false", "global.claim.accessMode=ReadWriteMany"):
        assert not [pod for pod in pods(render("iris", free)) if "affinity" in pod]


def test_serving_and_batch_never_write_to_the_models(render: Render) -> None:
    objects = render("iris", *EVERYTHING)
    for kind in ("Deployment", "Job"):
        mounts = one(objects, kind)["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        assert next(m for m in mounts if m["mountPath"] == "/model")["readOnly"] is True


def test_large_numbers_stay_as_a_person_writes_them(render: Render) -> None:
    settings = ("experiment.trainer.args.samples=1000000", "experiment.parameters.units.max=3000000")
    objects = render("iris", *settings)
    assert "--samples=1000000" in trial_pod(objects)["containers"][0]["args"]
    (units,) = [p for p in experiment(objects)["spec"]["parameters"] if p["name"] == "units"]
    assert units["feasibleSpace"]["max"] == "3000000"


@pytest.mark.parametrize(
    "setting",
    [
        "experimnt.maxTrials=3",
        "experiment.maxTrails=3",
        "experiment.trainer.imgae.repository=x",
        "experiment.parameters.lr.mim=0.1",
        "batch.inputz=x",
        "global.modle=iris",
        "experiment.maxTrials=many",
        "experiment.maxTrials=0",
        "experiment.algorithm.name=magic",
        "experiment.parameters.lr.type=real",
        "experiment.parameters.lr.step=-1",
        "experiment.trainer.args.note=$(reboot)",
        "experiment.trainer.args.note=a b",
        "experiment.trainer.args.note=a;b",
        "global.model=../x",
        "serving.service.port=70000",
    ],
)
def test_a_value_that_is_mistyped_or_of_a_wrong_type_is_refused(refusal: Callable[..., str], setting: str) -> None:
    assert "values don't meet the specifications of the schema" in refusal(setting)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["experiment.parallelTrials=13"], "experiment.parallelTrials (13) is above experiment.maxTrials (12)"),
        (["experiment.maxFailedTrials=13"], "experiment.maxFailedTrials (13) is above experiment.maxTrials (12)"),
        (["experiment.parameters.lr.min=1"], "experiment.parameters.lr has min (1) above max (0.05)"),
        (["experiment.parameters.decay.type=double"], "experiment.parameters.decay is a double: give it min and max"),
        (["experiment.parameters.lr.step=1"], "experiment.parameters.lr has a step (1) wider than its range"),
        (["experiment.parameters.lr.list={a}"], "experiment.parameters.lr is a double and has a list"),
        (["experiment.parameters.lr.type=categorical"], "experiment.parameters.lr is categorical: give it a list"),
        (
            ["experiment.parameters.lr.type=categorical", "experiment.parameters.lr.list={a}"],
            "experiment.parameters.lr is categorical and has min, max or step",
        ),
        (
            ["experiment.parameters.lr.distribution=logUniform", "experiment.parameters.lr.min=0"],
            "experiment.parameters.lr is logUniform: its min must be above 0",
        ),
        (["experiment.algorithm.name=grid"], "algorithm grid needs a step for the double lr"),
        (["experiment.trainer.args.lr=1"], "lr is in experiment.parameters and in experiment.trainer.args"),
        (["experiment.trainer.image.repository="], "experiment.trainer.image.repository is empty"),
    ],
)
def test_values_that_contradict_each_other_are_refused_in_a_sentence(
    refusal: Callable[..., str], settings: list[str], sentence: str
) -> None:
    assert f"ERROR: {sentence}" in refusal(*settings)


def test_a_release_name_that_leaves_no_room_for_the_hash_is_refused(refusal: Callable[..., str]) -> None:
    assert "ERROR: the release name" in refusal(release="a" * 32)


def test_a_search_without_parameters_is_refused(refusal: Callable[..., str]) -> None:
    assert "ERROR: experiment.parameters is empty" in refusal(values="")

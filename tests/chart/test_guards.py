"""Values the chart refuses: by the schema, by a sentence of validate.yaml, or after a look at the cluster."""

import re
from pathlib import Path
from typing import Any

import pytest
from cluster import namespace, serving
from rendering import CHART, Object, experiment, notes, one, refusal, render, run_helm, words


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("experimnt.maxTrials=3", "experimnt"),
        ("experiment.maxTrails=3", "maxTrails"),
        ("experiment.trainer.imgae.repository=x", "imgae"),
        ("experiment.parameters.lr.mim=0.1", "mim"),
        ("batch.inputz=x", "inputz"),
        ("global.modle=iris", "modle"),
        ("serving.ingress.host=x", "host"),
        ("experiment.maxTrials=many", "/experiment/maxTrials"),
        ("experiment.maxTrials=0", "/experiment/maxTrials"),
        ("experiment.algorithm.name=Magic Wand", "/experiment/algorithm/name"),
        ("experiment.parameters.lr.type=real", "/experiment/parameters/lr/type"),
        ("experiment.trainer.args.note=$(reboot)", "/experiment/trainer/args/note"),
        ("experiment.trainer.args.note=a b", "/experiment/trainer/args/note"),
        ("experiment.trainer.args.note=a;b", "/experiment/trainer/args/note"),
        ("experiment.trainer.image.digest=sha256:12", "/experiment/trainer/image/digest"),
        ("experiment.name=Capital", "/experiment/name"),
        (f"experiment.name={'a' * 41}", "/experiment/name"),
        ("global.model=../x", "/global/model"),
        ("global.claim.accessMode=ReadOnlyMany", "/global/claim/accessMode"),
        ("serving.service.port=70000", "/serving/service/port"),
        ("storage.size=big", "/storage/size"),
        ("batch.shards=0", "/batch/shards"),
        ("experiment.schedule=each night", "/experiment/schedule"),
        ("experiment.schedule=0 2 * *", "/experiment/schedule"),
    ],
)
def test_the_schema_refuses_a_value_and_names_its_key(setting: str, path: str) -> None:
    said = refusal(setting)
    assert "values don't meet the specifications of the schema" in said
    assert path in said or path.strip("/").replace("/", ".") in said  # Helm 4, Helm 3


def test_a_part_that_is_off_is_checked_all_the_same() -> None:
    assert "inputz" in refusal("batch.enabled=false", "batch.inputz=x")


def job(**container: Any) -> Object:
    trial = {"name": "trial", "image": "x", "command": ["x"], "args": ["${trialParameters.lr}"], **container}
    return {"template": {"spec": {"containers": [trial]}}}


def trial(**changed: Any) -> Object:
    """Values of a search with a trial of one's own."""
    spec = {"apiVersion": "batch/v1", "kind": "Job", "spec": job(), **changed}
    parameters = {"lr": {"type": "double", "min": 0, "max": 1}}
    return {"experiment": {"parameters": parameters, "trialTemplate": {"trialSpec": spec}}}


def shared_memory(size: Any) -> Object:
    """Values of a search whose trials have a disk in memory."""
    volume = {"mountPath": "/dev/shm", "source": {"emptyDir": {"medium": "Memory", "sizeLimit": size}}}
    parameters = {"lr": {"type": "double", "min": 0, "max": 1}}
    trainer = {"image": {"repository": "x"}, "extraVolumes": {"shm": volume}}
    return {"experiment": {"parameters": parameters, "trainer": trainer}}


DAILY = "@daily"
NAS = {"nasConfig": {"graphConfig": {"numLayers": 1}}}
CASES: list[tuple[str | Object, list[str], str]] = [
    # the release and its claim
    ("iris", ["storage.enabled=false"], "experiment needs a claim for the models"),
    ("iris", ["storage.enabled=false", "experiment.enabled=false", "bridge.enabled=false"], "serving needs a claim"),
    (
        "iris",
        ["global.claim.accessMode=ReadWriteOncePod"],
        "global.claim.accessMode ReadWriteOncePod lets a single",
    ),
    ("iris", ["global.claim.existing=c", "storage.storageClass=fast"], "storage.storageClass is set, but the claim c"),
    # the schedule
    (trial(), ["storage.enabled=false", f"experiment.schedule={DAILY}"], "experiment needs a claim for the models"),
    (
        "iris",
        [f"experiment.name={'a' * 27}", f"experiment.schedule={DAILY}"],
        "aaa has more than 26 characters, and Katib allows 40 for the name of a scheduled search",
    ),
    (trial(), ["experiment.onlyWhenDataChanges=true"], "experiment.onlyWhenDataChanges asks the trainer"),
    # serving
    ("iris", ["serving.replicas=2", "global.claim.colocate=false"], "serving has 2 replicas on a ReadWriteOnce claim"),
    (
        "iris",
        ["serving.autoscaling.enabled=true", "serving.autoscaling.minReplicas=9"],
        "serving.autoscaling.minReplicas (9) is above maxReplicas (4)",
    ),
    (
        "iris",
        ["serving.autoscaling.enabled=true", "serving.resources.requests.cpu=null"],
        "serving.autoscaling measures CPU against the request, and there is none",
    ),
    ("iris", ["serving.route.enabled=true"], "serving.route has no Gateway to belong to"),
    (
        "iris",
        ["serving.enabled=false", "serving.ingress.enabled=true"],
        "serving.ingress is enabled, but serving",
    ),
    # batch
    ("iris", ["batch.enabled=true", "batch.parallelism=2"], "batch.parallelism (2) is above batch.shards (1)"),
    # volumes
    (
        "iris",
        ["serving.extraVolumes.tmp.mountPath=/x", "serving.extraVolumes.tmp.source.emptyDir.medium=Memory"],
        "serving.extraVolumes.tmp takes a name or a path of the chart's own",
    ),
    (
        "iris",
        [
            "experiment.trainer.extraVolumes.more.mountPath=/more",
            "experiment.trainer.extraVolumes.more.source.persistentVolumeClaim.claimName=more",
            "experiment.trainer.extraVolumes.more.source.persistentVolumeClaim.readOnly=false",
        ],
        "experiment.trainer.extraVolumes.more.source.persistentVolumeClaim.readOnly is empty (or false, or 0)",
    ),
    (
        shared_memory("1024Mi"),
        [],
        "experiment.trainer.extraVolumes.shm.source.emptyDir.sizeLimit isn't a quantity as Kubernetes writes it",
    ),
    # the search's size
    ("iris", ["experiment.parallelTrials=13"], "experiment.parallelTrials (13) is above experiment.maxTrials (12)"),
    ("iris", ["experiment.maxFailedTrials=13"], "experiment.maxFailedTrials (13) is above experiment.maxTrials (12)"),
    # the objective
    (
        "iris",
        ["experiment.objective.additionalMetrics={accuracy}"],
        "experiment.objective.additionalMetrics holds the objective's own metric accuracy",
    ),
    (
        "iris",
        ["experiment.objective.strategies.accuracy=min"],
        "experiment.objective.type is maximize, but strategies takes the min of accuracy",
    ),
    ("iris", ["experiment.objective.type=minimize"], "experiment.objective would minimize the accuracy"),
    ("iris", ["experiment.objective.goal=98"], "experiment.objective.goal (98) is no accuracy"),
    # the algorithm
    ("iris", ["experiment.algorithm.name=magic"], "experiment.algorithm.name magic is none of Katib's"),
    ("iris", ["experiment.algorithm.name=enas"], "experiment.algorithm.name enas searches architectures"),
    ({"experiment": {**trial()["experiment"], **NAS}}, [], "experiment.nasConfig and experiment.parameters are both"),
    ("iris", ["experiment.algorithm.name=hyperband"], "algorithm hyperband needs experiment.algorithm.settings.r_l"),
    (
        "iris",
        ["experiment.algorithm.name=hyperband", "experiment.algorithm.settings.resource_name=epochs"],
        "algorithm hyperband spends the parameter that experiment.algorithm.settings.resource_name names, and there is",
    ),
    (
        "iris",
        [f"experiment.algorithm.{s}" for s in ("name=hyperband", "settings.resource_name=units", "settings.r_l=9")],
        "algorithm hyperband starts a bracket of 9 trials at a time, and experiment.parallelTrials is 3",
    ),
    (trial(), ["experiment.algorithm.name=cmaes"], "algorithm cmaes needs at least two parameters"),
    ("iris", ["experiment.algorithm.name=grid"], "algorithm grid needs a step for the double lr"),
    # stopping and metrics
    (
        "iris",
        ["experiment.metricsCollector.kind=PrometheusMetric"],
        "experiment.earlyStopping reads metrics while a trial runs, which the collector PrometheusMetric can't show",
    ),
    (
        "iris",
        ["experiment.metricsCollector.kind=Custom", "experiment.earlyStopping.enabled=false"],
        "experiment.metricsCollector.kind is Custom: give experiment.metricsCollector.customCollector",
    ),
    (
        "iris",
        [
            "experiment.metricsCollector.kind=File",
            "experiment.metricsCollector.source.fileSystemPath.format=JSON",
            "experiment.metricsCollector.formats={(a) (b)}",
        ],
        "experiment.metricsCollector.formats are for text, and the file is JSON",
    ),
    (
        "iris",
        ["experiment.metricsCollector.kind=File", "experiment.metricsCollector.source.fileSystemPath.path=log"],
        "experiment.metricsCollector.source.fileSystemPath.path (log) must be absolute",
    ),
    ("iris", ["experiment.metricsCollector.formats={(a);(b)}"], "takes (a);(b) apart at the semicolon"),
    ("iris", ["experiment.metricsCollector.formats={(a)=b}"], "experiment.metricsCollector.formats: (a)=b needs two"),
    # the search space
    (None, [], "experiment.parameters is empty"),
    ("iris", ["experiment.trainer.args.lr=1"], "lr is in experiment.parameters and in experiment.trainer.args"),
    ("iris", ["experiment.parameters.lr.list={a}"], "experiment.parameters.lr is a double and has a list"),
    (
        "iris",
        ["experiment.parameters.decay.type=double"],
        "experiment.parameters.decay is a double: give it min",
    ),
    ("iris", ["experiment.parameters.lr.min=1"], "experiment.parameters.lr has min (1) above max (0.03)"),
    (
        {"experiment": {"parameters": {"lr": {"type": "double", "min": 0, "max": 1, "step": "-1"}}}},
        [],
        "experiment.parameters.lr has a step (-1) that leads nowhere",
    ),
    ("iris", ["experiment.parameters.lr.step=1"], "experiment.parameters.lr has a step (1) wider than its range"),
    (
        "iris",
        ["experiment.parameters.lr.distribution=logUniform", "experiment.parameters.lr.min=0"],
        "experiment.parameters.lr is logUniform: its min must be above 0",
    ),
    (
        "iris",
        ["experiment.parameters.units.max=32.5"],
        "experiment.parameters.units is an int, but its max (32.5) is no whole number",
    ),
    ("iris", ["experiment.parameters.lr.type=categorical"], "experiment.parameters.lr is categorical: give it a list"),
    (
        "iris",
        ["experiment.parameters.lr.type=categorical", "experiment.parameters.lr.list={a}"],
        "experiment.parameters.lr is categorical and has min, max or step",
    ),
    (
        "iris",
        [f"experiment.parameters.trialName.{s}" for s in ("type=int", "min=1", "max=2")],
        "experiment.parameters.trialName takes a name by which trials are told where to write",
    ),
    (
        "iris",
        ["experiment.metricsCollector.kind=File", "experiment.metricsCollector.source.fileSystemPath.kind=Directory"],
        "experiment.metricsCollector.kind is File, but source.fileSystemPath.kind is Directory",
    ),
    (
        "iris",
        ["experiment.metricsCollector.source.httpGet.path=metrics"],
        "experiment.metricsCollector.source.httpGet.path (metrics) must start with a slash",
    ),
    # the trial
    (
        "iris",
        ["experiment.trialTemplate.trialParameters.lr.reference=lr"],
        "experiment.trialTemplate.trialParameters belong to a trialSpec or a configMap of your own",
    ),
    (
        "iris",
        [f"experiment.trialTemplate.configMap.{key}=c" for key in ("configMapName", "configMapNamespace")],
        "experiment.trialTemplate.configMap: Katib doesn't look into it to tell when a trial is done",
    ),
    (trial(spec=job(args=["${trialParameters.lr}", 1])), [], "containers[0].args[1] isn't text"),
    (trial(spec=job(env=[])), [], "experiment.trialTemplate.trialSpec.spec.template.spec.containers[0].env is empty"),
    (trial(spec=job(args=["--lr=1"])), [], "experiment.parameters.lr is used by no trial"),
    (
        trial(kind="PyTorchJob", apiVersion="kubeflow.org/v1", spec={"pytorchReplicaSpecs": {}}),
        [],
        "experiment.trialTemplate.trialSpec has no container named trial",
    ),
    (
        trial(spec=job(args=["${trialParameters.a}"])),
        ["experiment.trialTemplate.trialParameters.a.reference=${trialSpec.Nmae}"],
        "experiment.trialTemplate.trialParameters.a refers to ${trialSpec.Nmae}, which is no parameter of the search",
    ),
    ("iris", ["experiment.trainer.image.repository="], "experiment.trainer.image.repository is empty"),
    (
        trial(),
        ["experiment.trialTemplate.configMap.configMapName=c"],
        "experiment.trialTemplate has a trialSpec and a configMap",
    ),
    (
        "iris",
        ["experiment.trialTemplate.configMap.configMapName=c"],
        "experiment.trialTemplate.configMap.templatePath is missing",
    ),
    (
        {"experiment": {**NAS, "algorithm": {"name": "enas"}, "trialTemplate": trial()["experiment"]["trialTemplate"]}},
        [],
        "experiment.trialTemplate.trialParameters are missing",
    ),
    (trial(apiVersion=""), [], "experiment.trialTemplate.trialSpec needs apiVersion and kind"),
    (trial(metadata={"name": "x"}), [], "experiment.trialTemplate.trialSpec.metadata has a name or a namespace"),
    (trial(kind="Workflow"), [], "experiment.trialTemplate.trialSpec is a Workflow, and Katib can't tell"),
    (trial(spec=job(name="main")), [], "experiment.trialTemplate.trialSpec has no container named trial"),
    (trial(spec=job(command=[])), [], "the container trial has no command, and Katib would ask a registry for it"),
    (trial(spec=job(args=["${trialParameters.rate}"])), [], "holds ${trialParameters.rate}, which resolves to nothing"),
    (trial(spec=job(args=["${trialSpec.Name}"])), [], "holds ${trialSpec.Name}, which resolves to nothing"),
    (
        trial(),
        ["experiment.trialTemplate.trialParameters.rate.reference=lr"],
        "experiment.trialTemplate.trialParameters.rate is used nowhere in the trialSpec",
    ),
    (
        trial(spec=job(args=["${trialParameters.a} ${trialParameters.b}"])),
        [f"experiment.trialTemplate.trialParameters.{name}.reference=lr" for name in "ab"],
        "experiment.trialTemplate.trialParameters: a and b refer both to lr",
    ),
    (
        trial(spec=job(args=["${trialParameters.a}"])),
        ["experiment.trialTemplate.trialParameters.a.reference=units"],
        "experiment.trialTemplate.trialParameters.a refers to units, which is no parameter of the search: there are lr",
    ),
]


@pytest.mark.parametrize(("values", "settings", "sentence"), CASES, ids=[case[2][:60] for case in CASES])
def test_values_that_can_not_work_are_refused_in_a_sentence(
    values: str | Object | None, settings: list[str], sentence: str
) -> None:
    said = refusal(*settings, values=values)
    assert sentence in said
    assert all(line.endswith((".", "enabled")) for line in said.splitlines() if line.startswith("ERROR: "))


@pytest.mark.parametrize(
    ("release", "sentence"),
    [("a" * 32, "has more than 31 characters"), ("my.nas", "isn't letters, digits and hyphens with a letter first")],
)
def test_a_release_name_that_katib_would_not_take_is_refused(release: str, sentence: str) -> None:
    assert sentence in refusal(release=release)


def test_what_is_the_trials_shells_is_left_to_it() -> None:
    render(trial(spec=job(args=["${HOME}/x", "${trialParameters.lr}"])))


# Parts of a container, as Katib 0.19's webhook answers to a Job that has them: where in it, and what is told.
REFUSED: list[tuple[Object, str, str]] = [
    ({"stdin": False}, "stdin", "is empty"),
    ({"stdinOnce": False}, "stdinOnce", "is empty"),
    ({"tty": False}, "tty", "is empty"),
    ({"resources": {"requests": {}}}, "resources.requests", "is empty"),
    *[
        ({"livenessProbe": {"exec": {"command": ["x"]}, key: 0}}, f"livenessProbe.{key}", "is empty")
        for key in ("initialDelaySeconds", "timeoutSeconds", "successThreshold", "failureThreshold")
    ],
    ({"workingDir": ""}, "workingDir", "is empty"),
    ({"env": []}, "env", "is empty"),
    ({"env": [None]}, "env[0]", "is empty"),
    ({"env": [{"name": "A", "value": ""}]}, "env[0].value", "is empty"),
    ({"env": [{"name": "A", "value": 1}]}, "env[0].value", "isn't text"),
    ({"env": [{"name": "A", "value": True}]}, "env[0].value", "isn't text"),
    ({"args": ["a", 1]}, "args[1]", "isn't text"),
    ({"args": ["a", None]}, "args[1]", "is empty"),
    ({"command": ["x", False]}, "command[1]", "isn't text"),
    ({"ports": [{"containerPort": 80, "hostPort": 0}]}, "ports[0].hostPort", "is empty"),
    ({"livenessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 0}}, "livenessProbe.periodSeconds", "is empty"),
    (
        {"livenessProbe": {"httpGet": {"port": 80, "httpHeaders": [{"name": "a", "value": 1}]}}},
        "livenessProbe.httpGet.httpHeaders[0].value",
        "isn't text",
    ),
    ({"resources": {"limits": {}}}, "resources.limits", "is empty"),
    ({"securityContext": {"capabilities": {"drop": []}}}, "securityContext.capabilities.drop", "is empty"),
    ({"volumeMounts": [{"name": "a", "mountPath": "/a", "readOnly": False}]}, "volumeMounts[0].readOnly", "is empty"),
]
TAKEN: list[Object] = [
    {"args": ["", "x y"]},
    {"resources": {}},
    {"resources": {"limits": {"cpu": 0.5, "memory": "1024Mi", "nvidia.com/gpu": 1}}},
    {"securityContext": {"privileged": False, "readOnlyRootFilesystem": False, "runAsUser": 0}},
    {"envFrom": [{"secretRef": {"name": "x", "optional": False}}]},
    {"livenessProbe": {"httpGet": {"port": 80, "httpHeaders": [{"name": "a", "value": ""}]}}},
    {"livenessProbe": {"grpc": {"port": 80, "service": ""}}},
    {"volumeMounts": [{"name": "a", "mountPath": "/a", "mountPropagation": ""}]},
    {"lifecycle": {"preStop": {"sleep": {"seconds": 0}}}},
]
PODS_REFUSED: list[tuple[Object, str, str]] = [
    ({"hostNetwork": False}, "hostNetwork", "is empty"),
    ({"hostPID": False}, "hostPID", "is empty"),
    ({"hostIPC": False}, "hostIPC", "is empty"),
    ({"overhead": {}}, "overhead", "is empty"),
    ({"volumes": [{"name": "a", "csi": {"volumeAttributes": {}}}]}, "volumes[0].csi.volumeAttributes", "is empty"),
    (
        {"affinity": {"x": {"matchFields": [{"key": "a", "operator": "In", "values": [1]}]}}},
        "affinity.x.matchFields[0].values[0]",
        "isn't text",
    ),
    ({"nodeSelector": {}}, "nodeSelector", "is empty"),
    ({"nodeSelector": {"gpu": True}}, "nodeSelector.gpu", "isn't text"),
    ({"tolerations": [{"key": "a", "value": True}]}, "tolerations[0].value", "isn't text"),
    ({"tolerations": [{"key": ""}]}, "tolerations[0].key", "is empty"),
    ({"initContainers": []}, "initContainers", "is empty"),
    ({"dnsConfig": {"options": [{"name": "ndots", "value": 2}]}}, "dnsConfig.options[0].value", "isn't text"),
    ({"volumes": [{"name": "a", "nfs": {"readOnly": False}}]}, "volumes[0].nfs.readOnly", "is empty"),
    ({"volumes": [{"name": "a", "csi": {"volumeAttributes": {"b": 1}}}]}, "volumes[0].csi.volumeAttributes.b", "isn't"),
]
PODS_TAKEN: list[Object] = [
    {"shareProcessNamespace": False, "enableServiceLinks": False, "priority": 0, "terminationGracePeriodSeconds": 0},
    {"nodeSelector": {"node-role.kubernetes.io/worker": ""}, "securityContext": {"fsGroup": 0}, "dnsConfig": {}},
    {"affinity": {"nodeAffinity": {}}, "tolerations": [{"operator": "Exists", "tolerationSeconds": 0}, {}]},
    {"volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "hostPath": {"path": "/x", "type": ""}}]},
    {"volumes": [{"name": "labels", "configMap": {"name": "x", "optional": False, "defaultMode": 0}}]},
    {"volumes": [{"name": "a", "csi": {"driver": "x", "readOnly": False, "volumeAttributes": {"b": ""}}}]},
    {"volumes": [{"name": "a", "azureDisk": {"diskName": "x", "diskURI": "y", "readOnly": False}}]},
    {"volumes": [{"name": "a", "csi": {"driver": "x", "fsType": ""}}, {"name": "b", "projected": {"sources": []}}]},
    {"volumes": [{"name": "a", "iscsi": {"targetPortal": "x", "iqn": "y", "lun": 0, "initiatorName": ""}}]},
    {"securityContext": {"fsGroupChangePolicy": ""}, "dnsConfig": {"options": [{"name": "a", "value": ""}]}},
    {"volumes": [{"name": "a", "ephemeral": {"volumeClaimTemplate": {"spec": {"storageClassName": ""}}}}]},
    {"volumes": [{"name": "a", "ephemeral": {"volumeClaimTemplate": {"spec": {"dataSource": {"apiGroup": ""}}}}}]},
]
POD = "experiment.trialTemplate.trialSpec.spec.template.spec"


def test_what_kubernetes_types_do_not_keep_is_told_before_katib_refuses_it() -> None:
    spec = job()
    spec["template"]["spec"]["containers"] += [{"name": "other", **part} for part, _, _ in REFUSED]
    said = refusal(values=trial(spec=spec))
    for number, (_, path, why) in enumerate(REFUSED, 1):
        assert f"{POD}.containers[{number}].{path} {why}" in said


def test_what_they_keep_though_it_is_empty_is_taken() -> None:
    spec = job()
    spec["template"]["spec"]["containers"] += [{"name": "other", **part} for part in TAKEN]
    spec["template"]["metadata"] = {"labels": {"team": ""}, "annotations": {"note": ""}}
    assert experiment(render(trial(spec=spec)))["spec"]["trialTemplate"]["trialSpec"]["spec"] == spec


@pytest.mark.parametrize(("part", "path", "why"), PODS_REFUSED, ids=[path for _, path, _ in PODS_REFUSED])
def test_what_they_do_not_keep_of_a_pod_is_told(part: Object, path: str, why: str) -> None:
    spec = job()
    spec["template"]["spec"] |= part
    assert f"{POD}.{path} {why}" in refusal(values=trial(spec=spec))


@pytest.mark.parametrize("part", PODS_TAKEN, ids=str)
def test_what_they_keep_of_a_pod_is_taken(part: Object) -> None:
    spec = job()
    spec["template"]["spec"] |= part
    assert experiment(render(trial(spec=spec)))["spec"]["trialTemplate"]["trialSpec"]["spec"] == spec


@pytest.mark.parametrize("size", ["1024Mi", "2048Ki", "0.5Gi", "1.5G", "1000M", "2000", "1 Gi", 512, 0])
def test_a_size_that_kubernetes_writes_otherwise_is_refused_for_katib_would(size: Any) -> None:
    said = refusal(values=shared_memory(size))
    assert "extraVolumes.shm.source.emptyDir.sizeLimit isn't a quantity as Kubernetes writes it" in said


@pytest.mark.parametrize("size", ["1Gi", "512Mi", "1500M", "1100Mi", "1", "0", "2k", "1e3", "-1Gi"])
def test_a_size_that_kubernetes_writes_alike_is_taken(size: str) -> None:
    search = experiment(render(shared_memory(size)))
    volumes = search["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["volumes"]
    assert size in [volume.get("emptyDir", {}).get("sizeLimit") for volume in volumes]


def test_an_annotation_that_is_no_text_is_told_by_its_whole_name() -> None:
    spec = job()
    spec["template"]["metadata"] = {"annotations": {"sidecar.istio.io/inject": False, "two words": 1}}
    said = refusal(values=trial(spec=spec))
    for name in ("sidecar.istio.io/inject", "two words"):
        assert f"trialSpec.spec.template.metadata.annotations.{name} isn't text" in said
    assert said.count("ERROR: ") == 2


@pytest.mark.parametrize(("api", "kind"), [("argoproj.io/v1alpha1", "Workflow"), ("batch.volcano.sh/v1alpha1", "Job")])
def test_a_kind_that_katib_does_not_convert_may_hold_anything(api: str, kind: str) -> None:
    values = trial(apiVersion=api, kind=kind, spec=job(stdinOnce=False, env=[{"name": "THREADS", "value": 1}]))
    values["experiment"]["trialTemplate"] |= {"successCondition": "done", "failureCondition": "failed"}
    render(values)


def test_a_volume_and_a_variable_may_have_the_name_of_a_key() -> None:
    volume = {"mountPath": "/labels", "source": {"configMap": {"name": "x"}}}
    trainer = {"extraVolumes": {"labels": volume}, "extraEnv": {"value": {"fieldRef": {"fieldPath": "metadata.name"}}}}
    render({"experiment": {**shared_memory("1Gi")["experiment"], "trainer": {"image": {"repository": "x"}, **trainer}}})


def test_containers_that_are_none_are_told_in_a_sentence() -> None:
    for containers in ([None], ["x"], "x", [{"name": 7}]):
        spec = {"template": {"spec": {"containers": containers}}}
        assert "experiment.trialTemplate.trialSpec has no container named trial" in refusal(values=trial(spec=spec))


def test_limits_that_are_all_taken_away_leave_nothing_empty() -> None:
    limits = {"cpu": None, "memory": None}
    trainer = {"image": {"repository": "x"}, "resources": {"limits": limits, "requests": {"cpu": 1, "memory": "1Gi"}}}
    search = experiment(render({"experiment": {**shared_memory("1Gi")["experiment"], "trainer": trainer}}))
    (container,) = search["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {"requests": {"cpu": 1, "memory": "1Gi"}}


def test_every_parameter_of_the_search_has_its_place_in_the_trial() -> None:
    values = trial()
    values["experiment"]["parameters"]["depth"] = {"type": "int", "min": 1, "max": 3}
    assert "experiment.parameters.depth is used by no trial" in refusal(values=values)
    own = {name: {"reference": name} for name in ("lr", "depth")}
    values["experiment"]["trialTemplate"]["trialParameters"] = own
    assert "trialParameters.depth is used nowhere in the trialSpec" in refusal(values=values)
    values["experiment"]["trialTemplate"]["trialSpec"]["spec"] = job(
        args=["${trialParameters.lr} ${trialParameters.depth}"]
    )
    render(values)


def test_what_our_own_trials_pass_on_is_looked_through_too() -> None:
    pods = [{"podAffinityTerm": {"labelSelector": {"matchLabels": {}}}}]
    given: Object = {
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": pods}},
        "tolerations": [{"key": ""}],
        "topologySpreadConstraints": [{"labelSelector": {"matchLabels": {"job": 7}}}],
        "extraEnv": {"CPUS": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": 1}}},
    }
    said = refusal(values={"experiment": {"trainer": given}})
    term = "podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm"
    assert f"experiment.trainer.affinity.{term}.labelSelector.matchLabels is empty" in said
    assert "experiment.trainer.tolerations[0].key is empty" in said
    assert "experiment.trainer.topologySpreadConstraints[0].labelSelector.matchLabels.job isn't text" in said
    assert "experiment.trainer.extraEnv.CPUS.resourceFieldRef.divisor isn't a quantity" in said


def test_a_long_release_name_is_taken_where_the_search_has_a_name_of_its_own() -> None:
    render("iris", "experiment.name=mine", release="a" * 40)


def test_all_that_is_wrong_is_told_at_once() -> None:
    said = refusal("experiment.parallelTrials=13", "experiment.parameters.lr.min=1", "storage.enabled=false")
    assert said.count("ERROR: ") >= 3


def test_what_was_not_given_is_not_missed_again_as_nil() -> None:
    assert "nil" not in refusal("experiment.algorithm.name=hyperband")


def test_every_guard_has_a_case_here() -> None:
    source = (CHART / "templates/validate.yaml").read_text()
    sentences = re.findall(r'append \$errors (?:\(printf )?"((?:[^"\\]|\\.)*)"', source)
    said = [refusal(*settings, values=values) for values, settings, _ in CASES]
    said += [refusal(release=release) for release in ("a" * 32, "my.nas")]
    said.append(refusal("experiment.name=mine", f"experiment.schedule={DAILY}", release="a" * 44))
    patterns = [re.sub("%[a-z]", ".*", re.escape(sentence)) for sentence in sentences]
    untested = [p for p in patterns if not any(re.search(p, text) for text in said)]
    assert len(patterns) > 50
    assert [p for p in untested if "cluster" not in p and "namespace" not in p] == []


# What is unwise is told, and done.


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        (["experiment.algorithm.name=tpe"], "tpe suggests the same parameters to all trials of a batch"),
        (
            ["experiment.algorithm.name=sobol", "experiment.seed=false"],
            "sobol repeats the same sequence in every",
        ),
        (
            ["experiment.algorithm.name=bayesianoptimization", "experiment.maxTrials=8"],
            "the first 10 trials of bayesianoptimization are random, and there are 8",
        ),
        (["experiment.resumePolicy=Never"], "Katib's early stopping ends when the goal is reached"),
        (["experiment.trialTemplate.retain=false"], "an early-stopped trial's Job may be gone before Katib sees it"),
        (["experiment.maxFailedTrials=null"], "a search whose trials all fail ends as a success"),
        (["experiment.maxTrials=null", "experiment.objective.goal=null"], "the search never ends"),
        (["batch.enabled=true"], "batch.enabled while the search may be running"),
        (["experiment.enabled=false"], "serving has a new, empty claim and no search to fill it"),
    ],
)
def test_what_is_only_unwise_is_a_warning(settings: list[str], warning: str) -> None:
    assert "WARNING" not in notes("iris")
    told = [line for line in notes("iris", *settings).splitlines() if line.startswith("WARNING: ")]
    assert any(warning in line for line in told)


# The cluster, when there is one


def installed(folder: Path, objects: list[Object], *settings: str, katib: bool = True, forbidden: bool = False) -> str:
    """What `helm install` says in a cluster that has `objects`."""
    given, _ = words("iris", settings)
    with serving(objects, folder, katib, forbidden) as kubeconfig:
        result = run_helm.__wrapped__(
            "install", "x", str(CHART), "--namespace", "team", "--dry-run=server", "--disable-openapi-validation",
            "--kubeconfig", str(kubeconfig), *given,
        )  # fmt: skip
    return result.stderr


def test_a_cluster_without_katib_is_told_how_to_get_it(tmp_path: Path) -> None:
    said = installed(tmp_path, [namespace("team")], katib=False)
    assert "ERROR: the cluster has no Katib" in said
    assert "kubectl apply -k 'github.com/kubeflow/katib.git/" in said


def test_a_namespace_without_katibs_label_is_told_the_command_that_sets_it(tmp_path: Path) -> None:
    said = installed(tmp_path, [namespace("team", labelled=False)])
    assert "kubectl label namespace team katib.kubeflow.org/metrics-collector-injection=enabled" in said


PASSED = (
    'no matches for kind "StatefulSet"'  # the guards let it pass: what follows is the test's API, which has few kinds
)


def test_a_namespace_with_the_label_is_let_pass(tmp_path: Path) -> None:
    assert PASSED in installed(tmp_path, [namespace("team")])


def test_serving_alone_needs_neither_katib_nor_its_label(tmp_path: Path) -> None:
    said = installed(tmp_path, [namespace("team", labelled=False)], "experiment.enabled=false", katib=False)
    assert PASSED in said


def test_without_the_right_to_look_helm_names_the_switch_that_leaves_the_look_out(tmp_path: Path) -> None:
    there = [namespace("team", labelled=False)]
    assert "--set global.checkCluster=false leaves out" in installed(tmp_path, there, forbidden=True)
    assert PASSED in installed(tmp_path, there, "global.checkCluster=false", forbidden=True)


def edited(folder: Path, *settings: str, status: Object, policy: str = "LongRunning") -> str:
    """What `helm upgrade` says to settings when the iris search is there with `status`."""
    there = experiment(render("iris", "experiment.name=mine", f"experiment.resumePolicy={policy}"))
    there["status"] = status
    wanted = ("experiment.name=mine", f"experiment.resumePolicy={policy}", *settings)
    return installed(folder, [namespace("team"), there], *wanted)


RUNNING = {"trials": 4, "conditions": [{"type": "Running", "status": "True"}]}
DONE = {"trials": 12, "conditions": [{"type": "Succeeded", "status": "True", "reason": "ExperimentMaxTrialsReached"}]}
GOAL = {"trials": 5, "conditions": [{"type": "Succeeded", "status": "True", "reason": "ExperimentGoalReached"}]}


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ([], RUNNING),
        ([], GOAL),
        (["experiment.maxTrials=20"], RUNNING),
        (["experiment.parallelTrials=1"], RUNNING),
        (["experiment.maxTrials=20"], DONE),
        (["experiment.maxTrials=null", "experiment.parallelTrials=2"], RUNNING),
    ],
)
def test_an_edit_that_katib_takes_is_let_pass(tmp_path: Path, settings: list[str], status: Object) -> None:
    assert PASSED in edited(tmp_path, *settings, status=status)


@pytest.mark.parametrize(
    ("settings", "status", "sentence"),
    [
        (["experiment.parameters.units.max=99"], RUNNING, "experiment.name mine belongs to another search"),
        (["experiment.maxTrials=4"], RUNNING, "the search mine has 4 trials, and Katib changes nothing in it unless"),
        (["experiment.parallelTrials=1"], DONE, "the search mine has 12 trials"),
        (["experiment.maxTrials=20"], GOAL, "the search mine is done and Katib doesn't go on with it"),
    ],
)
def test_an_edit_that_katib_would_refuse_is_told_before_it_is_tried(
    tmp_path: Path, settings: list[str], status: Object, sentence: str
) -> None:
    assert f"ERROR: {sentence}" in edited(tmp_path, *settings, status=status)


def test_a_search_that_is_done_for_good_can_not_get_more_trials(tmp_path: Path) -> None:
    said = edited(tmp_path, "experiment.maxTrials=20", status=DONE, policy="Never")
    assert "the search mine is done and Katib doesn't go on with it, so that experiment.maxTrials can't change" in said


@pytest.mark.parametrize(
    ("mode", "said"), [("ReadWriteOnce", PASSED), ("ReadWriteMany", "ERROR: the claim x-models in")]
)
def test_an_access_mode_that_a_claim_can_not_change_to_is_told(tmp_path: Path, mode: str, said: str) -> None:
    claim = one(render("iris"), "PersistentVolumeClaim")
    there = [namespace("team"), claim]
    assert said in installed(tmp_path, there, f"global.claim.accessMode={mode}")

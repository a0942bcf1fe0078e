"""Claim, bridge, server and batch Job: what is there, how it is secured, what a value turns on."""

import json
import re

import pytest
from rendering import EVERYTHING, PRESETS, Object, label, notes, one, pod_of, pods, render


@pytest.mark.parametrize("part", ["experiment", "storage", "bridge", "serving"])
def test_a_part_that_is_off_leaves_nothing(part: str) -> None:
    claim = ("global.claim.existing=theirs",) if part == "storage" else ()
    assert part in map(label, render("iris", *claim[1:]))
    assert part not in map(label, render("iris", f"{part}.enabled=false", *claim))


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
    assert set(claims) == {"theirs"}
    assert len(claims) == len(list(pods(objects)))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_pod_passes_pod_security_restricted(preset: str) -> None:
    settings = (*EVERYTHING, "global.claim.fixPermissions=false")
    for pod in pods(render(preset, *settings)):
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (1000, True)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is ("serviceAccountName" in pod)
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
        assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= allowed
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]["cpu"]
            assert not [port for port in container.get("ports", []) if "hostPort" in port]


def test_the_claims_folder_is_given_to_the_pods_user_only_when_asked() -> None:
    objects = render("iris", *EVERYTHING, "global.claim.fixPermissions=true")
    writers = [pod_of(objects, part) for part in ("experiment", "bridge", "batch")]
    for pod in writers:
        (container,) = pod["initContainers"]
        assert container["securityContext"]["runAsUser"] == 0
        assert container["volumeMounts"] == [{"name": "models", "mountPath": "/model"}]
    assert "initContainers" not in pod_of(objects, "serving")


def test_pods_of_a_claim_that_one_node_mounts_are_kept_together() -> None:
    terms = [
        pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"]
        for pod in pods(render("iris", *EVERYTHING))
    ]
    assert terms == [{"matchLabels": {"nas/claim": "x-models"}}] * len(terms)
    for free in ("global.claim.colocate=false", "global.claim.accessMode=ReadWriteMany"):
        assert not [pod for pod in pods(render("iris", free)) if "affinity" in pod]


def test_serving_and_batch_never_write_to_the_models() -> None:
    objects = render("iris", *EVERYTHING)
    for kind in ("Deployment", "Job"):
        mounts = one(objects, kind)["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        assert next(m for m in mounts if m["mountPath"] == "/model")["readOnly"] is True


def test_a_pod_affinity_of_ones_own_replaces_the_one_that_keeps_pods_together() -> None:
    term = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}}
    wanted = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    values = {**IRIS, "bridge": {"affinity": wanted}}
    assert pod_of(render(values), "bridge")["affinity"] == wanted


IRIS: Object = {
    "experiment": {
        "parameters": {"lr": {"type": "double", "min": 0, "max": 1}},
        "trainer": {"image": {"repository": "tabular-trainer"}},
    }
}


@pytest.mark.parametrize("part", ["experiment", "schedule", "bridge", "serving", "batch"])
def test_every_workload_takes_what_a_pod_can_be_told(part: str) -> None:
    pod = pod_of(render("all-options"), part)
    (container,) = pod["containers"]
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["LOG_LEVEL"]["value"] == "debug"
    assert env["TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "tokens", "key": part}}
    (volume,) = [v for v in pod["volumes"] if v["name"] == "extra"]
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "extra"]
    assert volume == {"name": "extra", "configMap": {"name": "extra"}}
    assert mount == {"name": "extra", "mountPath": "/extra", "subPath": part, "readOnly": True}
    assert pod["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    assert pod["tolerations"][0]["key"] == "dedicated"
    assert "nodeAffinity" in pod["affinity"]
    assert pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"] == {"app.kubernetes.io/name": part}
    assert (pod["priorityClassName"], pod["runtimeClassName"]) == (f"nas-{part}", "gvisor")
    assert pod["imagePullSecrets"] == [{"name": "registry-login"}]


def test_a_default_of_a_part_is_taken_away_by_null() -> None:
    values = {**IRIS, "serving": {"resources": {"limits": None}}}
    assert set(pod_of(render(values), "serving")["containers"][0]["resources"]) == {"requests"}


@pytest.mark.parametrize(
    ("settings", "image"),
    [
        ([], "server:latest"),
        (["global.image.tag=1.2"], "server:1.2"),
        (["global.image.tag=1.2", "serving.image.tag=1.3"], "server:1.3"),
        (["global.image.registry=r.example.com/a"], "r.example.com/a/server:latest"),
        ([f"serving.image.digest=sha256:{'0' * 64}", "serving.image.tag=v1"], f"server@sha256:{'0' * 64}"),
    ],
)
def test_an_image_is_named_by_registry_tag_and_digest(settings: list[str], image: str) -> None:
    assert pod_of(render("iris", *settings), "serving")["containers"][0]["image"] == image


# Network policies


def policy(part: str, *settings: str) -> Object:
    spec: Object = one(render("iris", *EVERYTHING, *settings), "NetworkPolicy", part)["spec"]
    return spec


@pytest.mark.parametrize("part", ["experiment", "bridge", "serving", "batch"])
def test_a_network_policy_selects_the_releases_own_pods_and_no_other(part: str) -> None:
    selected = policy(part)["podSelector"]["matchLabels"]
    assert selected == {"app.kubernetes.io/name": part, "app.kubernetes.io/instance": "x"}
    assert "NetworkPolicy" not in [o["kind"] for o in render("iris", "global.networkPolicy.enabled=false")]


def test_trials_reach_a_name_server_katib_and_what_values_add() -> None:
    rules = policy("experiment")["egress"]
    assert [port["port"] for rule in rules for port in rule["ports"]] == [53, 53, 6789, 6788]
    assert rules[1]["to"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "kubeflow"}
    added = one(render("all-options"), "NetworkPolicy", "experiment")["spec"]["egress"][-1]
    assert added["ports"] == [{"port": 443, "protocol": "TCP"}]


def test_the_server_is_called_by_all_or_by_those_that_values_name_and_calls_no_one() -> None:
    assert policy("serving")["egress"] == []
    assert policy("serving")["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    named = one(render("all-options"), "NetworkPolicy", "serving")["spec"]["ingress"][0]["from"]
    assert named[0]["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}
    assert named[1]["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "nas", "helm test's pod"


@pytest.mark.parametrize("part", ["bridge", "batch"])
def test_bridge_and_batch_talk_to_no_one(part: str) -> None:
    assert (policy(part)["ingress"], policy(part)["egress"]) == ([], [])


# Serving


def container(*settings: str) -> Object:
    found: Object = pod_of(render("iris", *settings), "serving")["containers"][0]
    return found


def test_the_server_is_probed_and_drained() -> None:
    server = container()
    assert {p: server[p]["httpGet"]["path"] for p in ("startupProbe", "livenessProbe", "readinessProbe")} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    assert server["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "3"]
    assert pod_of(render("iris"), "serving")["terminationGracePeriodSeconds"] == 30


def test_a_pod_is_ready_with_the_first_model_or_with_the_process() -> None:
    assert "--ready=model" in container()["args"]
    assert "--ready=process" in container("serving.ready=process")["args"]


def test_an_autoscaler_takes_the_replicas_over() -> None:
    assert one(render("iris", "serving.replicas=3"), "Deployment")["spec"]["replicas"] == 3
    objects = render("production")
    assert "replicas" not in one(objects, "Deployment")["spec"]
    scaler = one(objects, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x-serving"}
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 6)


def test_a_disruption_budget_keeps_no_node_from_being_drained_for_an_unready_server() -> None:
    budget = one(render("production"), "PodDisruptionBudget")["spec"]
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert (budget["maxUnavailable"], budget["selector"]["matchLabels"]["app.kubernetes.io/name"]) == (1, "serving")


def test_ways_in_from_outside_lead_to_the_servers_service() -> None:
    objects = render("all-options")
    service = one(objects, "Service", "serving")
    assert (service["spec"]["type"], service["spec"]["ports"][0]["port"]) == ("NodePort", 80)
    ingress = one(objects, "Ingress")["spec"]
    assert [rule["host"] for rule in ingress["rules"]] == ["models.example.com", "models.example.org"]
    assert {rule["http"]["paths"][0]["backend"]["service"]["name"] for rule in ingress["rules"]} == {"x-serving"}
    assert ingress["tls"] == [{"secretName": "models-tls", "hosts": ["models.example.com", "models.example.org"]}]
    route = one(objects, "HTTPRoute")["spec"]
    assert route["rules"] == [{"backendRefs": [{"name": "x-serving", "port": 80}]}]
    monitor = one(objects, "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["endpoints"] == [{"port": "http", "path": "/metrics", "interval": "15s"}]


def test_an_ingress_without_hosts_takes_any() -> None:
    (rule,) = one(render("iris", "serving.ingress.enabled=true"), "Ingress")["spec"]["rules"]
    assert set(rule) == {"http"}


# Batch


def test_a_batch_job_ignores_disruptions_and_counts_failures_by_shard() -> None:
    spec = one(render("iris", *EVERYTHING, "batch.shards=4", "batch.parallelism=2"), "Job")["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 2)
    assert spec["backoffLimitPerIndex"] == 2
    disrupted, refused = spec["podFailurePolicy"]["rules"]
    assert (disrupted["action"], disrupted["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (refused["action"], refused["onExitCodes"]["values"]) == ("FailJob", [2, 3])
    assert "ttlSecondsAfterFinished" not in spec


def batch_arguments(*settings: str) -> tuple[str, list[str]]:
    """The batch Job's name, and the arguments of its program."""
    job = one(render("iris", *EVERYTHING, *settings), "Job")
    return job["metadata"]["name"], job["spec"]["template"]["spec"]["containers"][0]["args"]


def test_each_batch_job_has_a_folder_of_its_own_for_its_output() -> None:
    places = set()
    for setting in ("batch.run=1", "batch.run=2", "batch.probabilities=true", "batch.inputs={/model/inbox/*.csv}"):
        name, arguments = batch_arguments(setting)
        assert arguments[-1] == f"--output=/output/iris/predictions/{name.removeprefix('x-batch-')}"
        places.add(arguments[-1])
    assert len(places) == 4


def test_a_batch_job_without_shards_is_one_pod_that_scores_them_all() -> None:
    _, arguments = batch_arguments()
    assert not [word for word in arguments if word.startswith("--shard")]
    _, arguments = batch_arguments("batch.shards=3")
    assert {"--shards=3", "--shard-index=$(JOB_COMPLETION_INDEX)"} <= set(arguments)


def test_a_batch_job_says_what_its_values_ask_for() -> None:
    _, arguments = batch_arguments(
        "batch.format=jsonl", "batch.keep={id,day}", "batch.onError=skip", "batch.waitForModel=5", "batch.digest=abc"
    )
    assert {"--format=jsonl", "--on-error=skip", "--wait=5", "--digest=abc", "--workers=1"} <= set(arguments)
    assert arguments[arguments.index("--keep") + 1 :][:2] == ["id", "day"]


# What a user is told


@pytest.mark.parametrize("preset", PRESETS)
def test_the_notes_name_this_releases_commands(preset: str) -> None:
    text = notes(preset)
    for command in ("kubectl -n team get experiments,trials", "port-forward service/x-serving", "helm test x -n team"):
        assert command in text
    for image in ("server", "trainer"):
        assert re.search(rf"docker (build|pull) .*{image}", text)


def test_the_notes_speak_of_what_is_on_alone() -> None:
    text = notes("iris", "experiment.enabled=false", "bridge.enabled=false", "global.claim.existing=theirs")
    assert "trials" not in text
    assert "x-bridge-0" not in text
    assert "helm test x" in text


# What finds what


def test_services_monitor_and_budget_find_the_pods_they_are_for() -> None:
    objects = render("production")
    for kind, part in (("Service", "serving"), ("Service", "bridge"), ("PodDisruptionBudget", "serving")):
        (labels,) = [
            o["spec"]["template"]["metadata"]["labels"]
            for o in objects
            if label(o) == part and o["kind"] in ("Deployment", "StatefulSet")
        ]
        selector = one(objects, kind, part)["spec"]["selector"]
        assert (selector.get("matchLabels") or selector).items() <= labels.items()
    found = one(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    assert found.items() <= one(objects, "Service", "serving")["metadata"]["labels"].items()
    assert not found.items() <= one(objects, "Service", "bridge")["metadata"]["labels"].items()


@pytest.mark.parametrize("part", ["experiment", "bridge", "serving", "batch"])
def test_a_network_policy_holds_both_ways(part: str) -> None:
    assert policy(part)["policyTypes"] == ["Ingress", "Egress"]


def test_trials_reach_the_early_stopping_service_in_their_own_namespace_alone() -> None:
    assert policy("experiment")["egress"][2]["to"] == [{"podSelector": {}}]


def test_a_rollout_never_has_fewer_servers_than_asked_for() -> None:
    strategy = one(render("iris"), "Deployment")["spec"]["strategy"]
    assert strategy == {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def test_the_permissions_container_gives_the_folder_to_the_pods_user() -> None:
    (container,) = pod_of(render("iris", "global.claim.fixPermissions=true"), "bridge")["initContainers"]
    assert container["command"] == ["sh", "-c", "chown 1000:1000 /model && chmod 2775 /model"]


def test_helm_test_asks_this_releases_server_for_its_model_and_an_answer() -> None:
    (container,) = one(render("iris"), "Pod")["spec"]["containers"]
    script = container["command"][2]
    compile(script, "test", "exec")
    assert 'server = "http://x-serving:8000"' in script
    assert re.findall(r'ask\("([^"]+)"', script) == ["/model", "/predict/", "/model"]


def test_dashboards_are_json_and_those_of_two_releases_differ() -> None:
    boards = [
        json.loads(next(iter(one(render("production", release=release), "ConfigMap")["data"].values())))
        for release in ("x", "y")
    ]
    assert [board["uid"] for board in boards] == ["x-serving", "y-serving"]
    assert boards[0]["panels"]

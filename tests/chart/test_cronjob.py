"""The CronJob that runs the search again: what it creates, with which rights, and what it looks at first."""

import json

from rendering import CHART, Object, experiment, label, notes, one, pod_of, render, run_helm, words

NIGHTLY = "experiment.schedule=0 2 * * *"


def template(*settings: str) -> Object:
    """The Experiment that the CronJob's pod creates, as it stands in its ConfigMap."""
    found: Object = json.loads(one(render("iris", NIGHTLY, *settings), "ConfigMap")["data"]["experiment.json"])
    return found


def cron(*settings: str) -> Object:
    found: Object = one(render("iris", NIGHTLY, *settings), "CronJob")["spec"]
    return found


def test_nothing_of_a_schedule_is_there_without_one() -> None:
    assert "schedule" not in map(label, render("iris"))


def test_what_is_scheduled_is_the_releases_search_but_for_its_name_and_seed() -> None:
    ours = experiment(render("iris"))
    name = ours["metadata"]["name"]
    (setting,) = [s["value"] for s in ours["spec"]["algorithm"]["algorithmSettings"] if s["name"] == "random_state"]
    text = json.dumps(ours["spec"]).replace(name, "@NAME@").replace(setting, "@SEED@")
    assert json.loads(text) == template()["spec"]
    assert template()["metadata"]["name"] == "@NAME@"


def test_a_schedule_changes_nothing_in_the_search_that_is_there() -> None:
    assert experiment(render("iris", NIGHTLY)) == experiment(render("iris"))


def test_a_scheduled_search_belongs_to_its_job_and_goes_with_it() -> None:
    assert template()["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "@JOB@", "uid": "@UID@"}
    ]
    assert template()["metadata"]["labels"]["nas/job"] == "@UID@"
    env = {e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in schedule_pod()["containers"][0]["env"]}
    assert env == {
        "NAS_JOB": "metadata.labels['batch.kubernetes.io/job-name']",
        "NAS_JOB_UID": "metadata.labels['batch.kubernetes.io/controller-uid']",
    }


def schedule_pod(*settings: str) -> Object:
    return pod_of(render("iris", NIGHTLY, *settings), "schedule")


def test_the_pod_may_create_and_read_experiments_of_its_namespace_and_nothing_else() -> None:
    objects = render("iris", NIGHTLY)
    assert one(objects, "Role")["rules"] == [
        {"apiGroups": ["kubeflow.org"], "resources": ["experiments"], "verbs": ["create", "get", "list"]}
    ]
    account = one(objects, "ServiceAccount")["metadata"]
    (subject,) = one(objects, "RoleBinding")["subjects"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    assert one(objects, "RoleBinding")["roleRef"]["name"] == one(objects, "Role")["metadata"]["name"]
    assert schedule_pod()["serviceAccountName"] == account["name"]
    assert not [o for o in objects if o["kind"].startswith("Cluster")]


def test_one_search_at_a_time_and_old_ones_are_forgotten() -> None:
    asked = cron("experiment.cronJob.successfulJobsHistoryLimit=2", "experiment.cronJob.failedJobsHistoryLimit=0")
    assert asked["concurrencyPolicy"] == "Forbid"
    assert (asked["successfulJobsHistoryLimit"], asked["failedJobsHistoryLimit"]) == (2, 0)
    assert (asked["schedule"], asked["suspend"], asked["startingDeadlineSeconds"]) == ("0 2 * * *", False, 3600)
    assert "timeZone" not in asked
    assert asked["jobTemplate"]["spec"]["activeDeadlineSeconds"] == 86400


def test_a_schedule_can_be_suspended_and_has_a_time_zone() -> None:
    asked = cron("experiment.cronJob.suspend=true", "experiment.cronJob.timeZone=Europe/Berlin")
    assert (asked["suspend"], asked["timeZone"]) == (True, "Europe/Berlin")


def test_the_data_are_looked_at_first_only_when_asked() -> None:
    assert "initContainers" not in schedule_pod()
    pod = schedule_pod(
        "experiment.onlyWhenDataChanges=true",
        "experiment.trainer.args.data=/model/inbox",
        "experiment.trainer.extraVolumes.inbox.mountPath=/inbox",
        "experiment.trainer.extraVolumes.inbox.source.emptyDir.sizeLimit=1Gi",
        "experiment.trainer.nodeSelector.disk=ssd",
        "experiment.trainer.resources.limits.gpu\\.vendor/gpu=1",
    )
    (look,) = pod["initContainers"]
    assert look["image"] == "tabular-trainer:latest"
    assert look["command"][4:6] == ["python3", "/app/train.py"]
    assert "--data=/model/inbox" in look["command"]
    assert look["command"][-1] == "--data-digest"
    assert look["resources"] == {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "2Gi"}}
    assert pod["nodeSelector"] == {"disk": "ssd"}  # where the trainer's data are
    assert {mount["name"] for mount in look["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
    assert "--data-digest=/tmp/data-digest" in pod["containers"][0]["command"]


def test_a_search_tells_the_local_engine_whether_it_needs_new_data() -> None:
    told = experiment(render("iris", "experiment.onlyWhenDataChanges=true"))["metadata"]["annotations"]
    assert told["nas/only-when-data-changes"] == "true"
    assert "nas/only-when-data-changes" not in experiment(render("iris"))["metadata"]["annotations"]


def test_scheduled_names_begin_with_the_release_or_the_fixed_name() -> None:
    assert "--base=x" in schedule_pod()["containers"][0]["command"]
    assert "--base=nightly" in schedule_pod("experiment.name=nightly")["containers"][0]["command"]


def test_the_notes_tell_how_to_run_it_now() -> None:
    assert "create job --from=cronjob/x-schedule" in notes("iris", NIGHTLY)
    assert "cronjob" not in notes("iris")


def test_helm_lint_takes_a_schedule() -> None:
    given, stdin = words("iris", (NIGHTLY, "experiment.onlyWhenDataChanges=true"))
    assert run_helm("lint", "--strict", str(CHART), *given, stdin=stdin).returncode == 0

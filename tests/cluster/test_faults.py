"""What goes wrong on a cluster: pods that go away, images that aren't there, namespaces that lack a label."""

import re
from collections.abc import Callable

import pytest
from release import ROOT, Cluster, Object, Release, ended, holds, until

LONG = {"epochs": 100_000, "patience": 100_000}  # a trial that doesn't end by itself
ONE = {"experiment__maxTrials": 1, "experiment__parallelTrials": 1, "experiment__maxFailedTrials": 1}


def trial_with_a_model(release: Release) -> Object:
    """The pod of the release's trial, once it has reported some epochs."""

    def reporting() -> list[Object]:
        lines = release.kubectl(
            "logs", "--selector=katib.kubeflow.org/trial", "--container=metrics-logger-and-collector", check=False
        )
        return release.pods("experiment") if "epoch=" in lines else []

    return until(reporting, "a trial's first epochs")[-1]


def test_a_deleted_trial_leaves_its_model_and_the_next_offer_adopts_it(new_release: Callable[..., Release]) -> None:
    release = new_release().install(**ONE, experiment__trainer__args=LONG)
    pod = trial_with_a_model(release)
    release.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
    release.wait_for_search()
    killed = release.trials[0]["metadata"]["name"]
    assert holds(release.trials[0], "Failed")
    assert release.history == []
    release.upgrade(experiment__trainer__args={"epochs": 2, "patience": 2})
    release.wait_for_search()
    adopted = release.history[0]
    assert adopted["trial"].split("/")[-1] == killed
    assert adopted["event"] == "promoted"


def test_a_restarted_trial_goes_on_from_its_checkpoint(new_release: Callable[..., Release]) -> None:
    release = new_release().install(**ONE, experiment__backoffLimit=1, experiment__trainer__args=LONG)
    first = trial_with_a_model(release)
    release.kubectl("delete", "pod", first["metadata"]["name"], "--grace-period=0", "--force")
    until(lambda: [p for p in release.pods("experiment") if p["metadata"]["uid"] != first["metadata"]["uid"]], "a pod")
    trial_with_a_model(release)
    name = release.pods("experiment")[-1]["metadata"]["name"]

    def said() -> list[str]:
        lines = release.kubectl("logs", name, "--container=metrics-logger-and-collector").splitlines()
        return [re.sub(r"^\S+Z (?=epoch=)", "", line.split("] ", 1)[1]) for line in lines]

    words = "going on after epoch "
    start = next(i for i, line in enumerate(said()) if line.startswith(words))
    last = int(said()[start].removeprefix(words))
    assert last > 0
    until(lambda: any(line.startswith(f"epoch={last + 1} ") for line in said()), "the epoch after the checkpoint")
    epochs = [line.split()[0] for line in said()[start:] if line.startswith("epoch=")]
    assert epochs[: last + 1] == [f"epoch={number}" for number in range(1, last + 2)]


def test_a_missing_trial_image_fails_the_trial_and_says_so(new_release: Callable[..., Release]) -> None:
    release = new_release().install(
        **ONE,
        experiment__trainer__image={"repository": "no-such-trainer"},
        experiment__activeDeadlineSeconds=12,
        global__image__pullPolicy="Never",
    )
    state = until(lambda: waiting(release), "the reason why the trial waits")
    assert state["reason"] == "ErrImageNeverPull"
    assert "no-such-trainer" in state["message"]
    experiment = release.wait_for_search()
    assert holds(experiment, "Failed")
    assert release.pods("serving")  # the rest of the release lives on


def waiting(release: Release) -> Object | None:
    statuses = [s for p in release.pods("experiment") for s in p["status"].get("containerStatuses", [])]
    found = [s["state"]["waiting"] for s in statuses if s["name"] == "trial" and "waiting" in s["state"]]
    return next((state for state in found if state["reason"] == "ErrImageNeverPull"), None)


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ("true", "lacks the label by which Katib collects metrics. Set it: kubectl label namespace"),
        ("false", "the namespace lacks label"),  # Katib's own words
    ],
)
def test_a_namespace_without_the_label_is_refused(
    cluster: Cluster, new_namespace: Callable[..., str], check: str, reason: str
) -> None:
    words = ["--values", str(ROOT / "values/iris.yaml"), "--set", f"global.checkCluster={check}"]
    namespace = new_namespace("purpose=none")
    result = cluster.helm("install", "x", str(ROOT / "charts/nas"), "--namespace", namespace, *words, check=False)
    assert result.returncode != 0
    assert reason in result.stderr


def test_two_searches_at_once_share_a_claim(new_release: Callable[..., Release]) -> None:
    quick = {**ONE, "experiment__maxTrials": 2, "experiment__parallelTrials": 2, "experiment__objective__goal": None}
    one = new_release("one").install(**quick, experiment__trainer__args__epochs=10)
    two = new_release("two", namespace=one.namespace).install(
        **quick,
        experiment__trainer__args__epochs=10,
        experiment__run=2,
        global__claim__existing=one.claim,
        storage__storageClass="",
    )
    until(lambda: ended(one.experiment) and ended(two.experiment), "both searches")
    assert holds(one.experiment, "Succeeded")
    assert holds(two.experiment, "Succeeded")
    from_experiments = {event["trial"].split("/")[0] for event in one.history}
    assert from_experiments == {one.experiment["metadata"]["name"], two.experiment["metadata"]["name"]}
    assert len(one.history) == 4
    assert "all whole" in one.store("verify")
    for release in (one, two):
        release.wait("condition=Available", f"deployment/{release.name}-serving")
        with release.forwarded() as ask:
            assert ask("/model")["digest"] in two.store("show")

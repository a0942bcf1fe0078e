"""From `helm install` to answers: the search, the store on the claim, the server."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from release import Object, Release, holds, until

SETOSA = [5.1, 3.5, 1.4, 0.2]
POOR = {"experiment__maxTrials": 1, "experiment__parallelTrials": 1, "experiment__maxFailedTrials": 1}


class Course:
    """What was seen of a release whose first search was an epoch under a penalty that lets nothing be learnt, and whose
    second was a proper one."""

    release: Release
    before: Object  # the server's pod when there was no model
    first: Object  # the answer of the first model
    first_pod: str
    seconds: float  # from helm install to it
    second: Object
    second_pod: str


@pytest.fixture(scope="module")
def course(shared_release: Release) -> Course:
    seen = Course()
    release = seen.release = shared_release
    start = time.monotonic()
    release.install(
        **POOR,
        experiment__trainer__args__epochs=1,
        experiment__trainer__args__alpha=100,
        experiment__objective__goal=None,
    )
    until(lambda: release.pods("serving") and running(release.pods("serving")[0]), "the server's start")
    seen.before = release.pods("serving")[0]
    release.wait("condition=Available", "deployment/iris-nas-serving")
    with release.forwarded() as ask:
        seen.first = ask("/predict/", SETOSA)
    seen.seconds = time.monotonic() - start
    print(f"\nfrom helm install to the first prediction: {seen.seconds:.1f} s")
    seen.first_pod = release.pods("serving")[0]["metadata"]["uid"]
    release.upgrade(
        experiment__maxTrials=3,
        experiment__parallelTrials=3,
        experiment__trainer__args__epochs=20,
        experiment__trainer__args__alpha=0.5,
    )
    release.wait_for_search()
    current = release.store("show")
    with release.forwarded() as ask:
        until(lambda: ask("/model")["digest"] in current, "the better model")
        seen.second = ask("/predict/", SETOSA)
    seen.second_pod = release.pods("serving")[0]["metadata"]["uid"]
    return seen


def running(pod: Object) -> bool:
    return "running" in pod["status"].get("containerStatuses", [{"state": {}}])[0]["state"]


def test_serving_is_not_ready_before_there_is_a_model(course: Course) -> None:
    assert holds(course.before, "PodScheduled")
    assert not holds(course.before, "Ready")


def test_serving_answers_once_the_first_model_is_promoted(course: Course) -> None:
    assert len(course.first["probabilities"]) == 3
    assert course.release.history[0]["event"] == "promoted"
    assert course.first["digest"] == course.release.history[0]["digest"]


def test_the_server_swaps_to_a_better_model_without_a_restart(course: Course) -> None:
    assert course.second["digest"] != course.first["digest"]
    assert course.second["label"] == "setosa"
    assert course.second_pod == course.first_pod
    assert course.release.pods("serving")[0]["status"]["containerStatuses"][0]["restartCount"] == 0


def test_a_search_ends_with_its_best_trial_as_the_current_model(course: Course) -> None:
    status = course.release.experiment["status"]
    best = status["currentOptimalTrial"]
    accuracy = next(m["max"] for m in best["observation"]["metrics"] if m["name"] == "accuracy")
    promoted = [e for e in course.release.history if e["event"] == "promoted"][-1]
    assert float(accuracy) == promoted["accuracy"] > 0.9
    assert (status["trials"], status["trialsSucceeded"]) == (3, 3)


def test_a_deleted_server_comes_back_with_the_same_model(course: Course) -> None:
    old = course.release.pods("serving")[0]["metadata"]
    course.release.kubectl("delete", "pod", old["name"], "--wait=false")
    until(lambda: [p for p in course.release.pods("serving") if holds(p, "Ready")], "the new pod")
    assert course.release.pods("serving")[0]["metadata"]["uid"] != old["uid"]
    with course.release.forwarded() as ask:
        assert ask("/model")["digest"] == course.second["digest"]


def test_more_trials_go_on_with_a_finished_search(course: Course) -> None:
    name = course.release.experiment["metadata"]["name"]
    course.release.upgrade(experiment__maxTrials=4)
    until(lambda: course.release.experiment["status"]["trials"] == 4, "the fourth trial")
    experiment = course.release.wait_for_search()
    assert experiment["metadata"]["name"] == name
    assert experiment["status"]["trialsSucceeded"] + experiment["status"].get("trialsEarlyStopped", 0) == 4


def test_an_early_stopped_trial_offers_its_best_model(new_release: Callable[..., Release]) -> None:
    release = new_release().install(Path(__file__).parent / "values/stopping.yaml")
    release.wait_for_search()
    good, bad = release.trials
    assert holds(good, "Succeeded")
    assert holds(bad, "EarlyStopped")
    assert "completionTime" not in bad["status"]
    offered = {event["trial"].split("/")[-1]: event["event"] for event in release.history}
    assert offered == {good["metadata"]["name"]: "promoted", bad["metadata"]["name"]: "kept"}

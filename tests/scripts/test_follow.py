"""Following a search on a cluster, by what kubectl would say of it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from nas import follow
from nas.cluster import ClusterError
from nas.errors import NasError
from nas.follow import EXPERIMENT, TRIAL, Follower
from nas.progress import Trial
from nas.view import View

Object = dict[str, Any]
BEGAN = "2026-11-25T04:00:00Z"


class FakeCluster:
    """A cluster whose state is in its attributes. After each look, the next of `then` happens."""

    def __init__(self, experiment: Object) -> None:
        self.experiment: Object | None = experiment
        self.trials: list[Object] = []
        self.pods: list[Object] = []
        self.logs: dict[str, str] = {}  # by the pod's name
        self.then: list[Callable[[], object]] = []
        self.asked: list[str] = []
        self.lost = False

    def get(self, kind: str, name: str) -> Object | None:
        assert (kind, name) == ("Experiment", "toy")
        if self.lost:
            raise ClusterError("the connection is lost")
        return self.experiment

    def objects(self, kinds: str, selector: str) -> list[Object]:
        assert (kinds, selector) == ("trials.kubeflow.org,pods", f"{EXPERIMENT}=toy")
        return [*self.pods, *self.trials]

    def call(self, verb: str, pod: str, *_: str) -> str:
        assert verb == "logs"
        self.asked.append(pod)
        if pod not in self.logs:
            raise ClusterError("container is waiting to start: ContainerCreating")
        return self.logs[pod]

    # What happens in it

    def trial(self, name: str, state: str = "Running", values: tuple[float, ...] = (), **status: Any) -> None:
        """Make a trial or change one."""
        keys = {"min": min, "max": max, "latest": lambda values: values[-1]}
        metrics = [{"name": "accuracy", **{key: str(of(values)) for key, of in keys.items()}}] if values else []
        conditions = [{"type": state, "status": "True", "lastTransitionTime": "2026-11-25T04:00:30Z"}]
        known = {"startTime": BEGAN, "conditions": conditions, "observation": {"metrics": metrics}}
        metadata = {"name": f"toy-{name}", "creationTimestamp": BEGAN}
        spec = {"parameterAssignments": [{"name": "value", "value": "0.5"}]}
        others = [found for found in self.trials if found["metadata"]["name"] != f"toy-{name}"]
        self.trials = [*others, {"kind": "Trial", "metadata": metadata, "spec": spec, "status": known | status}]

    def pod(self, name: str, trial: str, number: int = 0, **status: Any) -> None:
        labels = {EXPERIMENT: "toy", TRIAL: f"toy-{trial}"}
        metadata = {"name": name, "labels": labels, "creationTimestamp": f"2026-11-25T04:00:0{number}Z"}
        self.pods.insert(0, {"kind": "Pod", "metadata": metadata, "status": status})

    def end(self, state: str = "Succeeded", message: str = "all trials are done") -> None:
        assert self.experiment
        condition = {"type": state, "status": "True", "message": message, "lastTransitionTime": "2026-11-25T04:01:00Z"}
        self.experiment["status"] = {"startTime": BEGAN, "conditions": [condition]}


@pytest.fixture
def cluster(manifest: Callable[..., Object], monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    experiment = manifest()
    experiment["metadata"]["creationTimestamp"] = BEGAN
    made = FakeCluster(experiment)
    monkeypatch.setattr(follow, "time", SimpleNamespace(sleep=lambda _: made.then.pop(0)()))
    return made


def following(cluster: Any) -> Follower:
    return Follower(cluster, cluster.experiment)


def printed(*values: float) -> str:
    """What Katib's collector shows of a trial that prints these accuracies."""
    lines = [f"epoch={epoch} loss=0.5 accuracy={value}" for epoch, value in enumerate(values, 1)]
    return "".join(f"I1125 04:00:01.000000      12 main.go:139] {line}\n" for line in lines)


def test_trials_are_told_as_they_begin_wait_and_end_until_the_last_is_over(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    def begins() -> None:
        cluster.trial("a")
        cluster.pod("a-1", "a", containerStatuses=[{"image": "toy-trainer:1", "state": {"waiting": NO_IMAGE}}])

    def prints() -> None:
        cluster.pods = []
        cluster.pod("a-1", "a")
        cluster.logs["a-1"] = printed(0.25, 0.75)

    def ends() -> None:
        cluster.logs["a-1"] = printed(0.25, 0.75, 0.5)
        cluster.trial("a", "Succeeded", (0.25, 0.75, 0.5), completionTime="2026-11-25T04:00:30Z")
        cluster.trial("b")
        cluster.end()

    def stops() -> None:
        cluster.trial("b", "EarlyStopped", (0.125,))

    search = following(cluster)
    cluster.then = [begins, prints, ends, stops]
    search.follow(View(search))
    told = [line.split("] ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert told == [
        "trial 1/3 a waits: ErrImagePull: no such thing (nas images import toy-trainer)",
        "trial 1/3 a epoch 2/4: accuracy 0.7500",
        "trial 1/3 a Succeeded after 3 epochs: accuracy 0.7500 (best so far)",
        "trial 2/3 b started: value=0.5",
        "trial 2/3 b EarlyStopped: accuracy 0.1250",
    ]
    assert (search.state, search.reason, search.over) == ("Succeeded", "all trials are done", True)


NO_IMAGE = {"reason": "ErrImagePull", "message": "no such thing"}


def test_what_a_trial_printed_is_kept_when_its_pod_is_gone_and_its_object_says_the_rest(cluster: FakeCluster) -> None:
    for name in ("seen", "cut", "unseen"):
        cluster.trial(name)
        cluster.pod(f"{name}-1", name)
    cluster.logs = {"seen-1": printed(0.25, 0.75), "cut-1": printed(0.25)}
    search = following(cluster)
    assert observed(search) == {"toy-seen": [0.25, 0.75], "toy-cut": [0.25], "toy-unseen": []}
    cluster.pods, cluster.logs = [], {}
    for name in ("seen", "cut", "unseen"):
        cluster.trial(name, "Succeeded", (0.25, 0.75))
    search._look()
    assert [search.value(trial) for trial in search.trials] == [0.75] * 3
    assert [trial.epochs("accuracy") for trial in search.trials] == [2, 0, 0], "only those that were seen are counted"


def observed(search: Follower) -> dict[str, list[float]]:
    return {trial.name: trial.observation.get("accuracy", []) for trial in search.trials}


def test_of_a_trial_that_starts_again_only_the_new_pod_counts(cluster: FakeCluster) -> None:
    cluster.trial("a")
    cluster.pod("a-1", "a", number=1)
    cluster.pod("a-2", "a", number=2)
    cluster.logs = {"a-1": printed(0.99), "a-2": printed(0.25)}
    assert observed(following(cluster)) == {"toy-a": [0.25]}


def test_the_output_of_a_trial_that_is_over_is_not_asked_for_again(cluster: FakeCluster) -> None:
    cluster.trial("a", "Succeeded", (0.5,))
    cluster.pod("a-1", "a")
    cluster.logs = {"a-1": printed(0.5)}
    search = following(cluster)
    search._look()
    assert cluster.asked == ["a-1"]
    assert observed(search) == {"toy-a": [0.5]}


def test_a_lost_connection_is_tried_again_and_a_removed_experiment_is_told(cluster: FakeCluster) -> None:
    cluster.trial("a")
    search = following(cluster)
    seen: list[Trial] = []
    view: Any = type("Watching", (), {"changed": seen.append})
    cluster.then = [lambda: setattr(cluster, "lost", True), lambda: setattr(cluster, "lost", False)]
    cluster.then.append(lambda: setattr(cluster, "experiment", None))
    with pytest.raises(NasError, match="experiment toy was removed; the models on the claim stay"):
        search.follow(view)
    assert [trial.name for trial in seen] == ["toy-a", "toy-a"]


def test_a_trial_that_was_removed_leaves_the_list(cluster: FakeCluster) -> None:
    cluster.trial("a")
    cluster.trial("b")
    search = following(cluster)
    cluster.trials.pop()
    search._look()
    assert [trial.name for trial in search.trials] == ["toy-a"]


def test_a_cluster_that_cannot_be_read_is_told_before_anything_is_shown(cluster: FakeCluster) -> None:
    cluster.lost = True
    with pytest.raises(ClusterError, match="connection is lost"):
        following(cluster)

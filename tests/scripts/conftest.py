"""A project of its own with a small real trainer, and an Experiment in the shape the chart renders."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nas.engine import Places, Search
from nas.experiment import Experiment
from nas.progress import Trial

TRAINER = """
import os, signal, sys, time, pathlib
if sys.argv[-1] == "--data-digest":
    print("reading", file=sys.stderr)
    sys.exit(print("sha256:" + "a" * 64))
args = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(args["export-path"])
folder.mkdir(parents=True, exist_ok=True)
(folder / "pid.part").write_text(str(os.getpid()))
(folder / "pid.part").rename(folder / "pid")  # whole, should a signal come in between
mode, value = args.get("mode", "fine"), float(args["value"])
def show(epoch, accuracy):
    print(f"epoch={epoch} loss={1 - accuracy} accuracy={accuracy}", flush=True)
if mode == "crash":
    sys.exit("something broke")
if mode == "silent":
    print("INFO accuracy=1.5")
    sys.exit()
if mode == "nan":
    print("epoch=1 loss=nan accuracy=nan")
    sys.exit()
if mode.startswith("odd"):
    if value == 0.1:
        sys.exit(print("step=1"))
    if mode == "odd":
        show(1, value)
    (folder.parent / "gate").read_text()  # until the other one has ended
if mode == "first odd" and value < 0.5:
    if value == 0.2:
        (folder.parent / "gate").read_text()
    sys.exit(print("step=1"))
if mode == "once" and not (folder / "again").exists():
    (folder / "again").touch()
    show(1, 0.99)
    sys.exit(3)
if mode == "killed":
    show(1, value)
    os.kill(os.getpid(), signal.SIGKILL)
def stop(*_):
    (folder / "stopped").touch()
    show(99, 0.999)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
for epoch in range(1, int(args["epochs"]) + 1):
    if mode == "hang" and epoch == 2:
        while True:
            signal.pause()
    show(epoch, value * epoch / int(args["epochs"]))
"""


@pytest.fixture
def places(tmp_path: Path) -> Places:
    root = tmp_path / "a project"  # the space is on purpose
    (root / "images/toy-trainer").mkdir(parents=True)
    (root / "images/toy-trainer/train.py").write_text(TRAINER)
    return Places(root, root / ".nas")


@pytest.fixture
def manifest() -> Callable[..., dict[str, Any]]:
    """The Experiment; keyword arguments replace keys of its spec, `args` are further arguments of the trainer."""

    def make(name: str = "toy", args: tuple[str, ...] = (), job: dict[str, Any] | None = None, **spec: Any) -> Any:
        trainer = {
            "name": "trial",
            "image": "somewhere.example/team/toy-trainer:1",
            "command": ["python3", "/app/train.py"],
            "args": [
                "--value=${trialParameters.value}",
                "--epochs=4",
                *args,
                f"--export-path=/model/toy/trials/{name}/${{trialParameters.trialName}}",
            ],
            "volumeMounts": [{"name": "models", "mountPath": "/model"}],
        }
        claim = {"name": "models", "persistentVolumeClaim": {"claimName": "x-models"}}
        pod = {"restartPolicy": "Never", "containers": [trainer], "volumes": [claim]}
        number = r"([+-]?[0-9]*\.?[0-9]+([Ee][+-]?[0-9]+)?)"
        return copy.deepcopy(
            {
                "apiVersion": "kubeflow.org/v1beta1",
                "kind": "Experiment",
                "metadata": {"name": name, "annotations": {"nas/model": "toy"}},
                "spec": {
                    "maxTrialCount": 3,
                    "parallelTrialCount": 2,
                    "maxFailedTrialCount": 2,
                    "objective": {
                        "type": "maximize",
                        "objectiveMetricName": "accuracy",
                        "additionalMetricNames": ["loss"],
                        "metricStrategies": [{"name": "accuracy", "value": "max"}, {"name": "loss", "value": "min"}],
                    },
                    "algorithm": {
                        "algorithmName": "random",
                        "algorithmSettings": [{"name": "random_state", "value": "1"}],
                    },
                    "metricsCollectorSpec": {
                        "collector": {"kind": "StdOut"},
                        "source": {
                            "filter": {
                                "metricsFormat": [
                                    rf"^[0-9TZ:.-]* ?epoch=[0-9]+.* (accuracy)={number}",
                                    rf"^[0-9TZ:.-]* ?epoch=[0-9]+.* (loss)={number}",
                                ]
                            }
                        },
                    },
                    "parameters": [
                        {
                            "name": "value",
                            "parameterType": "double",
                            "feasibleSpace": {"min": "0.1", "max": "0.9"},
                        }
                    ],
                    "trialTemplate": {
                        "primaryContainerName": "trial",
                        "trialParameters": [
                            {"name": "value", "reference": "value"},
                            {"name": "trialName", "reference": "${trialSpec.Name}"},
                        ],
                        "trialSpec": {
                            "apiVersion": "batch/v1",
                            "kind": "Job",
                            "spec": {"backoffLimit": 0, **(job or {}), "template": {"spec": pod}},
                        },
                    },
                    **spec,
                },
            }
        )

    return make


@pytest.fixture
def search(places: Places, manifest: Callable[..., dict[str, Any]]) -> Callable[..., Search]:
    """Run an Experiment to its end."""

    def run(*, start: bool = True, changed: Callable[[Trial], object] = print, **changes: Any) -> Search:
        made = Search(Experiment(manifest(**changes)), places)
        if start:
            made.run(changed)
        return made

    return run

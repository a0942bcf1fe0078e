import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from modelkit.store import Store
from nas import chart, local
from nas.engine import Places, Search
from nas.errors import NasError
from nas.experiment import Experiment

Manifest = Callable[..., dict[str, Any]]


@pytest.fixture
def values(places: Places, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A values file that renders the small Experiment, to be run when the data changes only."""

    def render(*_: Any) -> list[Any]:
        made = manifest(name=f"toy-{len(list((places.home / 'runs').glob('*')))}", maxTrialCount=1)
        made["metadata"]["annotations"]["nas/only-when-data-changes"] = "true"
        return [made]

    monkeypatch.setattr(chart, "render", render)
    path = places.root / "toy.yaml"
    path.touch()
    return path


def run(places: Places, values: Path) -> int:
    return local.run(places.root, places.home, str(values), None, False, [])


@pytest.mark.parametrize(("seen", "runs"), [("a" * 64, 0), ("b" * 64, 1)])
def test_data_that_was_learned_from_already_starts_no_search(
    places: Places,
    values: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seen: str,
    runs: int,
) -> None:
    monkeypatch.setattr(Store, "has_seen", lambda _, digest: digest == seen)
    assert run(places, values) == 0
    assert ("nothing to do: the data is what" in capsys.readouterr().out) == (runs == 0)
    assert len(list((places.home / "runs").glob("*"))) == runs
    assert not (places.store / "toy/trials/toy-0/data-digest").exists(), "nothing was trained for the question"


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (2, "trainer that knows --data-digest; toy-trainer says: a word too many"),
        (1, "toy-trainer can't read its data: a word too many"),
    ],
)
def test_a_trainer_that_tells_no_digest_is_told_and_not_run(
    places: Places, values: Path, status: int, told: str
) -> None:
    program = f"import sys; sys.stderr.write('a word too many'); sys.exit({status})"
    (places.root / "images/toy-trainer/train.py").write_text(program)
    with pytest.raises(NasError, match=told):
        run(places, values)
    assert not (places.home / "runs").exists()


def test_resume_goes_on_with_the_latest_interrupted_run_though_others_came_after_it(
    places: Places, values: Path
) -> None:
    for name, state in (("old", "Running"), ("interrupted", "Running"), ("done", "Succeeded")):
        folder = places.home / "runs" / f"{chart.release_name(values)}-{name}"
        folder.mkdir(parents=True)
        manifest = {"metadata": {"name": name}, "spec": {}, "status": {"conditions": [{"type": state}]}}
        (folder / "experiment.yaml").write_text(yaml.safe_dump(manifest))
        moment = {"old": 1, "interrupted": 2, "done": 3}[name]
        os.utime(folder / "experiment.yaml", (moment, moment))
        os.utime(folder, (moment, moment))
    assert local._interrupted(places, values)["metadata"]["name"] == "interrupted"


@pytest.mark.parametrize("number", [None, 2])
def test_a_name_that_an_earlier_run_has_is_told(
    places: Places, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    monkeypatch.setattr(chart, "render", lambda *_: [manifest(name="mine")])
    places.run("mine").mkdir(parents=True)
    (places.root / "toy.yaml").touch()
    with pytest.raises(NasError, match=r"runs/mine is there already: .* leave --run and experiment.name out"):
        local.run(places.root, places.home, str(places.root / "toy.yaml"), number, False, [])


@pytest.mark.parametrize(
    ("algorithm", "value", "tried"), [("random", "0.5", True), ("random", "1.5", False), ("grid", "0.5", False)]
)
def test_the_current_models_parameters_are_told_of_where_the_first_trial_has_them(
    places: Places,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    algorithm: str,
    value: str,
    tried: bool,
) -> None:
    model = SimpleNamespace(manifest=SimpleNamespace(parameters={"value": value}))
    monkeypatch.setattr(Store, "find", lambda _: model)
    experiment = Experiment(manifest(algorithm={"algorithmName": algorithm}))
    found = local._current_parameters(Store(places.store, "toy"), experiment)
    assert found == ({"value": value} if tried else None)
    assert capsys.readouterr().out == ("the first trial has the current model's parameters\n" if tried else "")


def test_the_digest_is_asked_for_with_the_trials_own_command(places: Places, manifest: Manifest) -> None:
    assert local.data_digest(Experiment(manifest()), places) == "a" * 64


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("values/iris.yaml", "iris-nas"),
        ("values/tutorial/mnist.yaml", "tutorial-mnist-nas"),
        ("My_Own.yaml", "my-own-nas"),
    ],
)
def test_a_release_is_named_by_its_values_file(path: str, name: str) -> None:
    assert chart.release_name(Path(path)) == name


def test_a_failed_search_ends_with_the_last_words_of_a_failed_trial(
    places: Places, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = manifest(args=("--mode=crash",), maxTrialCount=5, maxFailedTrialCount=2)
    monkeypatch.setattr(chart, "render", lambda *_: [made])
    (places.root / "toy.yaml").touch()
    monkeypatch.chdir(places.root)
    with pytest.raises(NasError) as caught:
        local.run(places.root, places.home, "toy.yaml", None, False, [])
    what, said = str(caught.value).splitlines()
    assert what == "the search failed: too many trials failed (maxFailedTrials is 2)"
    assert re.fullmatch(r"\w+: exit status 1: something broke \(\.nas/runs/toy/logs/toy-\w+\.log\)", said)


def test_an_interrupted_run_says_how_to_go_on_by_hand_and_by_make(
    places: Places, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chart, "render", lambda *_: [manifest()])
    monkeypatch.setattr(Search, "run", lambda search, *_: setattr(search, "interrupted", 2))
    (places.root / "toy.yaml").touch()
    monkeypatch.chdir(places.root)
    assert local.run(places.root, places.home, "toy.yaml", None, False, []) == 130
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == "interrupted; to go on: .venv/bin/nas run toy.yaml --resume, or make with ARGS=--resume"

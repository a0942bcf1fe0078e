import base64
import contextlib
import copy
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from modelkit import artifact
from modelkit.store import Event, Store
from nas import artifacts
from nas.engine import Places, Search, recorded
from nas.errors import NasError
from nas.experiment import Experiment
from nas.report import history, page
from PIL import Image

ROOT = Path(__file__).parents[3]
Manifest = Callable[..., dict[str, Any]]
MEDIANSTOP = {
    "algorithmName": "medianstop",
    "algorithmSettings": [{"name": "min_trials_required", "value": "1"}, {"name": "start_step", "value": "2"}],
}


@pytest.fixture
def documented(places: Places, manifest: Manifest) -> Search:
    """A search with the trainer that docs/trainers.md shows, run to its end."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/trainers.md").read_text(), re.DOTALL)
    assert code
    (places.root / "images/wine-trainer").mkdir()
    (places.root / "images/wine-trainer/train.py").write_text(code[1])
    made = manifest(name="wine-search", maxTrialCount=4, parallelTrialCount=1, earlyStopping=MEDIANSTOP)
    made["metadata"]["annotations"]["nas/model"] = "wine"
    made["spec"]["parameters"] = [
        {"name": "alpha", "parameterType": "double", "feasibleSpace": {"min": "0.0001", "max": "3"}}
    ]
    template = made["spec"]["trialTemplate"]
    template["trialParameters"][0] = {"name": "alpha", "reference": "alpha"}
    container = template["trialSpec"]["spec"]["template"]["spec"]["containers"][0]
    container["image"] = "wine-trainer:latest"
    container["args"] = [
        "--alpha=${trialParameters.alpha}",
        "--epochs=6",
        "--seed=5",
        "--export-path=/model/wine/trials/wine-search/${trialParameters.trialName}",
    ]
    search = Search(Experiment(made), places)
    search.run(print)
    return search


def test_a_trainer_as_documented_is_searched_stopped_and_offered_and_its_best_can_be_trained_again(
    documented: Search, places: Places
) -> None:
    assert {trial.state for trial in documented.trials} <= {"Succeeded", "EarlyStopped"}
    told = history.here(places, "wine", None)
    assert documented.best
    assert told.best
    assert told.best.name == documented.best.name
    assert (told.value(told.best) or 0) > 0.8
    assert told.lineage()[0][0].digest == told.manifest.digest
    words = shlex.split(told.reproduce())
    settings, command = words[:2], [sys.executable, *words[3:]]
    environment = dict(word.split("=", 1) for word in settings)
    subprocess.run(command, cwd=places.root, env=environment, check=True, capture_output=True, timeout=60)
    assert artifact.read(places.root / "reproduced")[0].digest == told.manifest.digest


def test_a_page_needs_no_network_and_shows_every_part(documented: Search, places: Places, tmp_path: Path) -> None:
    page.write(history.here(places, "wine", "wine-search"), "html", tmp_path / "report.html", tmp_path)
    text = (tmp_path / "report.html").read_text()
    body = text[text.rindex("<body>") :]
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", body), "nothing is fetched"
    titles = re.findall(r"<h2>(.*?)</h2>", body)
    assert titles[:6] == [
        "Best trial",
        "Learning curves",
        "Accuracy against epochs spent",
        "Parameters",
        "What mattered",
        "Cost",
    ]
    assert {"Lineage", "Trials", "The same model again"} <= set(titles)
    for trial in documented.trials:
        assert trial.name.rsplit("-", 1)[-1] in body


def facts(told: history.History) -> Any:
    """What the report says as JSON, but for the object itself."""
    return {**msgspec.to_builtins(told.facts()), "experiment": None}


def objects(places: Places) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The Experiment and the Trials of the one search there is."""
    ((folder, experiment),) = recorded(places)
    return experiment, [yaml.safe_load(path.read_text()) for path in (folder / "trials").glob("*.yaml")]


@pytest.fixture
def searched(search: Callable[..., Search]) -> Search:
    """One trial at a time with the values 0.8, 0.2 and 0.9, those behind stopped."""
    space = {"name": "value", "parameterType": "categorical", "feasibleSpace": {"list": ["0.8", "0.2", "0.9"]}}
    return search(
        earlyStopping=MEDIANSTOP,
        algorithm={"algorithmName": "grid"},
        parallelTrialCount=1,
        parameters=[space],
    )


@pytest.mark.usefixtures("searched")
def test_what_was_spent_and_saved_adds_up(places: Places) -> None:
    told = history.here(places, "toy", None)
    states = {trial.assignments["value"]: (trial.state, len(told.values(trial))) for trial in told.trials}
    assert states == {"0.8": ("Succeeded", 4), "0.2": ("EarlyStopped", 2), "0.9": ("Succeeded", 4)}
    spent = told.spent()
    assert (spent["epochs"], spent["epochs_limit"], spent["epochs_saved_between_trials"]) == (10, 12, 2)
    assert spent["trial_seconds_saved"] == pytest.approx(spent["trial_seconds"] * 2 / 10, abs=0.1)
    assert told.best
    assert told.best.assignments == {"value": "0.9"}
    assert told.value(told.best) == pytest.approx(0.9)


def test_of_equally_good_trials_the_promoted_is_the_best_and_the_one_to_train_again(
    search: Callable[..., Search], places: Places
) -> None:
    space = {"name": "value", "parameterType": "categorical", "feasibleSpace": {"list": ["0.8", "0.80", "0.800"]}}
    done = search(algorithm={"algorithmName": "grid"}, parallelTrialCount=1, parameters=[space])
    first, second, _ = done.trials
    told = history.here(places, "toy", None)
    assert (told.best and told.best.name) == first.name
    (places.store / "toy/history.jsonl").write_bytes(
        b"".join(
            msgspec.json.encode(Event("", event, "", "", trial=f"toy/{trial.name}")) + b"\n"
            for event, trial in (("promoted", second), ("kept", first))
        )
    )
    told = history.here(places, "toy", None)
    assert told.facts()["best"] == second.name
    assert "--value=0.80 " in str(told.reproduce())


@pytest.mark.usefixtures("searched")
def test_a_report_is_told_by_its_path_from_here_and_a_page_with_how_to_open_it(
    places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(places.root)
    for form in ("html", "md"):
        page.write(history.here(places, "toy", None), form, None, places.home / "report")
    address = (places.home / "report/toy.html").as_uri()
    told = capsys.readouterr().out.splitlines()[-3:]
    assert told == [
        "report    .nas/report/toy.html",
        f"open it   {address} in a browser",
        "report    .nas/report/toy.md",
    ]


@pytest.mark.usefixtures("searched")
def test_a_model_that_is_gone_leaves_a_report_without_it(places: Places, tmp_path: Path) -> None:
    for form in ("html", "md", "json"):
        page.write(history.here(places, "toy", None), form, tmp_path / form, tmp_path)
    facts = json.loads((tmp_path / "json").read_text())
    assert (facts["model"], facts["evaluation"]["confusion"]) == (None, [])
    assert [trial["observation"]["accuracy"][0] for trial in facts["trials"]] == pytest.approx([0.2, 0.05, 0.225])
    assert "kept no evaluation" in (tmp_path / "html").read_text()
    assert "| Succeeded | 0.9 | 4 |" in (tmp_path / "md").read_text()


@pytest.mark.usefixtures("searched")
def test_katibs_own_objects_tell_the_same_story(places: Places) -> None:
    """Katib keeps each condition a trial had, gives an early-stopped one no completionTime, and writes times with Z."""
    experiment, trials = objects(places)
    for seen in trials:
        status = seen["status"]
        last = status["conditions"][-1]
        ended = status["completionTime"].replace("+00:00", "Z")
        earlier = [{"type": kind, "status": "True"} for kind in ("Created", "Running")]
        earlier[1]["status"] = "True" if last["type"] == "EarlyStopped" else "False"
        status["conditions"] = [*earlier, {**last, "lastTransitionTime": ended}]
        status["startTime"] = status["startTime"].replace("+00:00", "Z")
        status["completionTime"] = ended
        if last["type"] == "EarlyStopped":
            del status["completionTime"]
    printed = {path.stem: path.read_text() for path in (places.run("toy") / "logs").glob("*.log")}
    katib = history.History(experiment, trials, printed, Store(places.store, "toy"))
    assert facts(katib) == facts(history.here(places, "toy", None))


@pytest.mark.usefixtures("documented")
def test_a_release_on_a_cluster_is_told_from_its_objects_and_its_claim(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, trials = objects(places)

    class Stand:  # for the cluster and for its claim
        namespace = "nas"

        def objects(self, kind: str, selector: str) -> list[dict[str, Any]]:
            assert selector in ("app.kubernetes.io/instance=wine-nas", "katib.kubeflow.org/experiment=wine-search")
            made = {**experiment["metadata"], "creationTimestamp": "2026-11-01T00:00:00Z"}
            return [{**experiment, "metadata": made}] if kind == "Experiment" else trials

        def copy(self, source: str, destination: Path, *_: Any) -> int:
            shutil.copytree(places.store / source, destination)
            return 1

    stand: Any = Stand()
    monkeypatch.setattr(artifacts, "opened", lambda *_: contextlib.nullcontext(stand))
    assert facts(history.there(stand, places, "wine-nas", None)) == facts(history.here(places, "wine", None))
    with pytest.raises(NasError, match="no search other of release wine-nas in namespace nas"):
        history.there(stand, places, "wine-nas", "other")


def test_worst_mistakes_are_pictures_of_what_the_model_saw() -> None:
    takes = artifact.Input(dtype="uint8", shape=[4], image=[2, 2])
    mistake = artifact.Mistake(row=[0, 255, 7, 0], label=1, predicted=0, probability=0.97)
    assert takes.image
    address = page.picture(mistake, takes.image)
    shown = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))
    assert (shown.size, shown.mode, list(shown.tobytes())) == ((2, 2), "L", [0, 255, 7, 0])


def test_lineage_begins_with_the_searchs_own_best_and_goes_on_with_what_it_was_compared_with(
    documented: Search, places: Places
) -> None:
    store = Store(places.store, "wine")
    first = store.current()
    other = copy.deepcopy(documented.experiment.manifest)
    other["metadata"]["name"] = "wine-other"
    other["spec"]["parameters"][0]["feasibleSpace"] = {"min": "5", "max": "9"}  # so much decay that it can't be better
    container = other["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["containers"][0]
    container["args"] = [word.replace("wine-search", "wine-other") for word in container["args"]]
    Search(Experiment(other), places).run(print)
    assert store.current() == first
    told = history.here(places, "wine", "wine-other")
    assert [manifest.digest for manifest, _ in told.lineage()][:2] == [told.manifest.digest, first]
    assert told.lineage()[0][1].startswith("kept: ")
    store.promote(str(first))
    store.unpin()
    assert told.lineage()[1][1].startswith("promoted: "), "what came later made it current no more than it was"
    store.promote(told.manifest.digest)
    assert told.lineage()[0][1] == "pinned: promoted by hand"


@pytest.mark.usefixtures("documented")
def test_the_sentence_says_how_the_figure_was_estimated(places: Places) -> None:
    told = history.here(places, "wine", None)
    assert "on the validation split" in page.page(told, "md")
    assert told.manifest
    scores = msgspec.structs.replace(told.manifest.metrics.validation, estimator="cv")
    told.manifest = msgspec.structs.replace(told.manifest, metrics=artifact.Metrics(validation=scores))
    assert "by cross-validation" in page.page(told, "md")
    assert "accuracy, by cross-validation" in page.page(told, "html")


@pytest.mark.usefixtures("searched")
def test_a_search_that_is_not_there_is_told_with_those_that_are(places: Places) -> None:
    with pytest.raises(NasError, match=r"no search of model 'mnist' .*there: toy\)"):
        history.here(places, "mnist", None)

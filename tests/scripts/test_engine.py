import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from nas import engine
from nas.engine import Places, Search
from nas.errors import NasError
from nas.experiment import Experiment, Rule
from nas.progress import Trial

Run = Callable[..., Search]
MEDIANSTOP = {
    "algorithmName": "medianstop",
    "algorithmSettings": [{"name": "min_trials_required", "value": "1"}, {"name": "start_step", "value": "2"}],
}


def folder(places: Places, trial: Trial) -> Path:
    return places.store / "toy/trials/toy" / trial.name


def gone(pid: int) -> bool:
    """Whether a process has ended; one that waits for its parent to look has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came true"


def test_every_trial_runs_and_the_best_is_named(search: Run, places: Places) -> None:
    done = search()
    assert (done.state, [t.state for t in done.trials]) == ("Succeeded", ["Succeeded"] * 3)
    assert done.best
    assert float(done.best.assignments["value"]) == max(float(t.assignments["value"]) for t in done.trials)
    assert all(folder(places, t).is_dir() for t in done.trials), "the claim's path became the store's"


def test_no_more_trials_run_at_once_than_the_experiment_says(search: Run) -> None:
    running: set[str] = set()
    most = []

    def changed(trial: Trial) -> None:
        (running.discard if trial.ended else running.add)(trial.name)
        most.append(len(running))

    done = search(maxTrialCount=6, parallelTrialCount=2, changed=changed)
    assert (max(most), len(done.trials)) == (2, 6)


def test_a_full_disk_ends_the_search_with_one_error_and_no_traceback_beside_it(
    search: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = engine._write

    def full(path: Path, manifest: dict[str, Any]) -> None:
        if path.parent.name == "trials" and "completionTime" in manifest["status"]:
            raise OSError(28, "No space left on device")
        write(path, manifest)

    monkeypatch.setattr(engine, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        search(parallelTrialCount=3)
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_the_record_is_what_kubectl_would_show(search: Run, places: Places) -> None:
    done = search()
    record = yaml.safe_load((places.run("toy") / "experiment.yaml").read_text())
    assert record["status"]["conditions"][-1]["type"] == "Succeeded"
    assert record["status"]["trialsSucceeded"] == 3
    best = done.best
    assert best
    assert record["status"]["currentOptimalTrial"]["bestTrialName"] == best.name
    trial = yaml.safe_load((places.run("toy") / f"trials/{best.name}.yaml").read_text())
    value = float(best.assignments["value"])
    assert trial["spec"]["parameterAssignments"] == [{"name": "value", "value": best.assignments["value"]}]
    metrics = {metric["name"]: metric for metric in trial["status"]["observation"]["metrics"]}
    assert float(metrics["accuracy"]["max"]) == pytest.approx(value)
    assert float(metrics["accuracy"]["min"]) == pytest.approx(value / 4)
    assert f"--export-path=/model/toy/trials/toy/{best.name}" in str(trial["spec"]["runSpec"])


@pytest.mark.parametrize(
    ("mode", "state", "message"),
    [
        ("crash", "Failed", "exit status 1: something broke"),
        ("killed", "Failed", "killed by signal 9"),
        ("silent", "MetricsUnavailable", "no number for accuracy: INFO accuracy=1.5"),
        ("nan", "MetricsUnavailable", "accuracy=nan"),
    ],
)
def test_a_broken_trainer_fails_the_trial_with_its_last_words_and_then_the_search(
    search: Run, mode: str, state: str, message: str
) -> None:
    done = search(args=(f"--mode={mode}",), maxTrialCount=5, parallelTrialCount=1)
    assert [t.state for t in done.trials] == [state, state], "the second failure is the limit"
    assert message in done.trials[0].message
    assert done.state == "Failed"


def test_a_mistyped_metric_ends_the_search_after_its_first_trials_and_what_is_printed_is_named(search: Run) -> None:
    objective = {"type": "maximize", "objectiveMetricName": "acc"}
    done = search(objective=objective, maxTrialCount=50, parallelTrialCount=2, maxFailedTrialCount=50)
    assert {trial.state for trial in done.trials} == {"MetricsUnavailable"}
    assert (done.state, len(done.trials) < 50) == ("Failed", True)
    assert done.reason == "trials print no acc, but epoch, loss, accuracy: mend experiment.objective.metric"


@pytest.mark.parametrize("mode", ["odd", "odd-late"])
def test_a_trial_that_prints_other_things_is_one_failure_while_one_beside_it_has_the_metric_or_may_yet(
    search: Run, places: Places, mode: str
) -> None:
    gate = places.store / "toy/trials/toy/gate"
    gate.parent.mkdir(parents=True)
    os.mkfifo(gate)

    def changed(trial: Trial) -> None:
        if trial.state == "MetricsUnavailable":
            gate.write_text("the other one may end")

    points = listed("0.1", "0.9") | {"parallelTrialCount": 2}
    done = search(args=(f"--mode={mode}",), changed=changed, **points)
    assert [trial.state for trial in done.trials] == ["MetricsUnavailable", "Succeeded"]
    assert (done.state, done.reason) == ("Succeeded", "all trials are done")


def test_a_metric_that_a_later_trial_has_is_not_mistyped_when_the_last_of_the_first_ends_without_it(
    search: Run, places: Places
) -> None:
    gate = places.store / "toy/trials/toy/gate"
    gate.parent.mkdir(parents=True)
    os.mkfifo(gate)

    def changed(trial: Trial) -> None:
        if trial.state == "Succeeded":
            gate.write_text("the second one may end")

    points = listed("0.1", "0.2", "0.9") | {"parallelTrialCount": 2, "maxFailedTrialCount": 3}
    done = search(args=("--mode='first odd'",), changed=changed, **points)
    assert [trial.state for trial in done.trials] == ["MetricsUnavailable", "MetricsUnavailable", "Succeeded"]
    assert (done.state, done.reason) == ("Succeeded", "all trials are done")


def test_a_trial_without_a_number_for_a_metric_that_is_named_rightly_is_one_failure(search: Run) -> None:
    done = search(args=("--mode=nan",), maxTrialCount=4, parallelTrialCount=1, maxFailedTrialCount=3)
    assert (len(done.trials), done.reason) == (3, "too many trials failed (maxFailedTrials is 3)")


def test_a_trial_that_hangs_fails_at_its_deadline_and_leaves_no_process(search: Run, places: Places) -> None:
    done = search(args=("--mode=hang",), maxTrialCount=1, maxFailedTrialCount=1, job={"activeDeadlineSeconds": 1})
    assert done.trials[0].state == "Failed"
    assert "activeDeadlineSeconds (1 s)" in done.trials[0].message
    assert gone(int((folder(places, done.trials[0]) / "pid").read_text()))


def test_a_crashed_trial_starts_again_as_often_as_backoff_limit_says_and_only_its_last_run_counts(search: Run) -> None:
    done = search(args=("--mode=once",), maxTrialCount=1, job={"backoffLimit": 1})
    trial = done.trials[0]
    assert trial.state == "Succeeded"
    assert max(trial.observation["accuracy"]) < 0.99


def test_the_goal_ends_the_search_while_running_trials_finish(search: Run, manifest: Callable[..., Any]) -> None:
    objective = manifest()["spec"]["objective"] | {"goal": 0.1}
    done = search(objective=objective, maxTrialCount=50, parallelTrialCount=2)
    assert (done.state, done.reason) == ("Succeeded", "the goal is reached")
    assert len(done.trials) <= 4
    assert {t.state for t in done.trials} == {"Succeeded"}


GRID: dict[str, Any] = {
    "algorithm": {"algorithmName": "grid"},
    "parallelTrialCount": 1,
}


def listed(*values: str) -> dict[str, Any]:
    space = {"name": "value", "parameterType": "categorical", "feasibleSpace": {"list": list(values)}}
    return {**GRID, "parameters": [space], "maxTrialCount": len(values)}


def test_medianstop_stops_a_trial_at_its_report_and_counts_nothing_that_comes_later(
    search: Run, places: Places
) -> None:
    done = search(earlyStopping=MEDIANSTOP, **listed("0.8", "0.2", "0.9"))
    first, *later = done.trials
    assert (first.state, first.rule) == ("Succeeded", None)
    for trial in later:
        earlier = [t for t in done.trials[: done.trials.index(trial)] if t.state == "Succeeded"]
        threshold = sum((t.observation["accuracy"][0] + t.observation["accuracy"][1]) / 2 for t in earlier)
        assert trial.rule == Rule(threshold / len(earlier), 2)
        below = trial.observation["accuracy"][1] < trial.rule.value
        assert trial.state == ("EarlyStopped" if below else "Succeeded")
        assert len(trial.observation["accuracy"]) == (2 if below else 4)
        record = yaml.safe_load((places.run("toy") / f"trials/{trial.name}.yaml").read_text())
        assert float(record["spec"]["earlyStoppingRules"][0]["value"]) == trial.rule.value
    assert "EarlyStopped" in [t.state for t in later] or first.assignments["value"] == "0.2"


def test_an_early_stopped_trial_is_told_to_end_and_may_save(search: Run, places: Places) -> None:
    done = search(
        start=False, earlyStopping=MEDIANSTOP, args=("--mode=hang",), maxTrialCount=1, job={"backoffLimit": 1}
    )
    trial = Trial("toy-x", {"value": "0.1"}, Rule(0.9, 1))
    done.trials.append(trial)
    began = []
    done.run(lambda _: began.append(trial.observation == {}))
    assert (trial.state, began.count(True)) == ("EarlyStopped", 1)
    assert (folder(places, done.trials[0]) / "stopped").exists()
    assert done.trials[0].observation["accuracy"] == [pytest.approx(0.025)]


def test_a_grid_ends_when_every_point_was_tried(search: Run) -> None:
    done = search(**(listed("0.1", "0.2", "0.3") | {"maxTrialCount": 9}))
    assert sorted(t.assignments["value"] for t in done.trials) == ["0.1", "0.2", "0.3"]
    assert done.reason == "the search space is exhausted"


def test_one_experiment_runs_once_at_a_time(search: Run, places: Places) -> None:
    from modelkit import files

    places.run("toy").mkdir(parents=True)
    with files.locked(places.run("toy") / ".lock"), pytest.raises(NasError, match="already running"):
        search()


def test_an_image_that_has_no_folder_is_named(search: Run, places: Places) -> None:
    (places.root / "images/toy-trainer").rename(places.root / "images/other-trainer")
    with pytest.raises(NasError, match=r"'toy-trainer' has no folder .*there: other-trainer"):
        search()


DRIVER = """
import sys, yaml
from pathlib import Path
from nas.engine import Places, Search
from nas.experiment import Experiment
def changed(trial): print("reported" if trial.observation else "started", trial.name, flush=True)
root = Path(sys.argv[1])
search = Search(Experiment(yaml.safe_load(Path(sys.argv[2]).read_text())), Places(root, root / ".nas"))
search.run(changed)
print("interrupted", search.interrupted, flush=True)
"""


@pytest.fixture
def driver(places: Places, manifest: Callable[..., Any], tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a search in a process of its own, and read until two trials have reported."""

    def start(**changes: Any) -> subprocess.Popen[str]:
        (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(manifest(**changes)))
        words = [sys.executable, "-c", DRIVER, str(places.root), str(tmp_path / "experiment.yaml")]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        while sum(process.stdout.readline().startswith("reported") for _ in "1") == 0:
            pass
        return process

    return start


def pids(places: Places) -> list[int]:
    return [int(path.read_text()) for path in places.store.glob("toy/trials/toy/*/pid")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_trials_and_marks_the_run_as_interrupted(
    driver: Callable[..., Any], places: Places, number: signal.Signals
) -> None:
    process = driver(args=("--mode=hang",))
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert f"interrupted {int(number)}" in output
    assert all(gone(pid) for pid in pids(places))
    record = engine.load(places.run("toy") / "experiment.yaml")
    assert record["status"]["conditions"][-1]["reason"] == engine.INTERRUPTED


def test_no_trial_outlives_an_engine_that_was_killed(driver: Callable[..., Any], places: Places) -> None:
    process = driver(args=("--mode=hang",))
    process.kill()
    process.wait()
    eventually(lambda: all(gone(pid) for pid in pids(places)))


def test_a_killed_search_goes_on_with_its_finished_trials_kept_and_its_running_ones_again(
    driver: Callable[..., Any], places: Places
) -> None:
    process = driver(args=("--mode=hang",))
    process.kill()
    process.wait()
    eventually(lambda: all(gone(pid) for pid in pids(places)))
    recorded = {path.stem for path in (places.run("toy") / "trials").glob("*.yaml")}
    trainer = places.root / "images/toy-trainer/train.py"
    trainer.write_text(trainer.read_text().replace('mode == "hang"', 'mode == "never"'))
    manifest = engine.load(places.run("toy") / "experiment.yaml")
    again = Search(Experiment(manifest), places)
    again.resume()
    again.run(print)
    assert (again.state, {t.state for t in again.trials}) == ("Succeeded", {"Succeeded"})
    assert recorded <= {t.name for t in again.trials}
    assert len(again.trials) == 3
    finished = Search(Experiment(manifest), places)
    finished.resume()
    assert [t.observation for t in finished.trials]
    assert finished.best
    assert again.best
    value = again.experiment.value
    assert value(finished.best.observation) == value(again.best.observation)


def test_a_trial_gets_its_share_of_the_processors(
    places: Places, manifest: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "cpus", lambda: 8)
    trial = Trial("toy-x", {"value": "0.5"}, None)
    shares = []
    for limit, parallel in ((None, 2), ("1500m", 2), ("2", 16), ("3", 2)):
        made = manifest(parallelTrialCount=parallel)
        container = made["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["containers"][0]
        container["resources"] = {"limits": {"cpu": limit}} if limit else {}
        _, environment = engine.command_line(Experiment(made), trial, places)
        shares.append(environment["NAS_CPUS"])
        assert environment["OMP_NUM_THREADS"] == environment["NAS_CPUS"]
    assert shares == ["4", "1", "1", "3"]


def test_paths_of_the_image_become_paths_of_this_machine(places: Places, manifest: Callable[..., Any]) -> None:
    made = manifest(args=("--other=/modeling/x", "--data=/app/data"))
    container = made["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "WHERE", "value": "/model/toy"}]
    line, environment = engine.command_line(Experiment(made), Trial("toy-x", {"value": "0.5"}, None), places)
    words = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True).stdout.splitlines()
    image = places.root / "images/toy-trainer"
    assert words[1] == str(image / "train.py")
    assert "--other=/modeling/x" in words
    assert f"--data={image}/data" in words
    assert words[-1] == f"--export-path={places.store}/toy/trials/toy/toy-x"
    assert environment["WHERE"] == str(places.store / "toy")
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)

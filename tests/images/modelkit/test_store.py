import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from modelkit import artifact, files, store
from modelkit.store import Gate, Store
from nas import bridge

Folder = Callable[..., Path]


@pytest.fixture
def home(tmp_path: Path) -> Store:
    return Store(tmp_path, "demo")


def test_the_first_model_offered_is_promoted(home: Store, trial_folder: Folder) -> None:
    event = home.offer(trial_folder("a", 0.8))
    assert event.event == "promoted"
    assert home.current() == event.digest
    assert home.load().manifest.metrics.validation.accuracy == 0.8


def test_a_better_model_replaces_the_current_one_and_names_it_as_parent(home: Store, trial_folder: Folder) -> None:
    first = home.offer(trial_folder("a", 0.8)).digest
    second = home.offer(trial_folder("b", 0.9))
    assert (second.event, second.previous) == ("promoted", first)
    assert home.load().manifest.parent == first


def test_a_model_no_better_than_the_current_one_is_kept_where_it_is(home: Store, trial_folder: Folder) -> None:
    first = home.offer(trial_folder("a", 0.8)).digest
    assert home.offer(trial_folder("b", 0.8)).event == "kept"
    assert home.offer(trial_folder("c", 0.7)).reason == "the current model is still the best"
    assert home.current() == first


def test_a_gain_below_the_minimum_promotes_nothing(home: Store, trial_folder: Folder) -> None:
    home.offer(trial_folder("a", 0.80))
    assert home.offer(trial_folder("b", 0.805, gate=Gate(min_improvement=0.01))).event == "kept"
    assert home.offer(trial_folder("c", 0.81, gate=Gate(min_improvement=0.01))).event == "promoted"


def outcomes(right: int) -> artifact.Outcomes:
    return artifact.Outcomes.of(np.arange(1000) < right)


def test_against_another_searchs_model_a_gain_that_may_be_luck_promotes_nothing(
    home: Store, trial_folder: Folder
) -> None:
    home.offer(trial_folder("a", 0.800))
    unsure = home.offer(trial_folder("b", 0.803, experiment="other"))
    assert (unsure.event, unsure.p_value) == ("kept", 0.125)
    assert unsure.reason == "the gain may be luck (p = 0.12, above 0.05)"
    assert (unsure.accuracy, unsure.current_accuracy) == (0.803, 0.8)
    sure = home.offer(trial_folder("c", 0.805, experiment="other"))
    assert (sure.event, sure.p_value) == ("promoted", 1 / 32)


def test_within_a_search_the_best_so_far_is_promoted_without_a_test(home: Store, trial_folder: Folder) -> None:
    home.offer(trial_folder("a", 0.800))
    event = home.offer(trial_folder("b", 0.801))
    assert (event.event, event.p_value) == ("promoted", None)


def test_the_level_of_the_test_is_the_searchs(home: Store, trial_folder: Folder) -> None:
    home.offer(trial_folder("a", 0.8))
    any_gain = Gate(significance=1)
    assert home.offer(trial_folder("b", 0.801, experiment="other", gate=any_gain)).event == "promoted"


def test_equally_good_models_pass_the_paired_test_at_most_as_often_as_its_level_says() -> None:
    random, level, rows, pairs = np.random.default_rng(5), 0.05, 1000, 400
    passed = 0
    for _ in range(pairs):
        hard = random.random(rows) < 0.3  # rows on which both models guess; they agree on all others
        one, other = (np.where(hard, random.random(rows) < 0.5, True) for _ in range(2))
        passed += artifact.Outcomes.of(one).chance(artifact.Outcomes.of(other)) <= level
    assert passed / pairs <= level + 2 * (level * (1 - level) / pairs) ** 0.5


def test_outcomes_on_other_rows_can_not_be_compared() -> None:
    with pytest.raises(artifact.ArtifactError, match="on 10 and on 1000 rows"):
        artifact.Outcomes.of(np.ones(10, bool)).chance(outcomes(800))


def test_a_model_that_does_not_answer_is_refused(home: Store, trial_folder: Folder, onnx: Callable[..., bytes]) -> None:
    huge = onnx(layers=[(np.full((2, 2), 3e38), np.zeros(2))] * 2)  # its sums overflow
    assert home.offer(trial_folder("a", 0.9, data=huge)).event == "refused"
    assert "doesn't answer with 2 probabilities" in home.history()[-1].reason
    with pytest.raises(artifact.ArtifactError, match="doesn't answer with 2 probabilities"):
        home.promote(artifact.digest(huge))
    assert home.current() is None


def test_of_a_current_version_that_does_not_answer_the_manifest_can_be_read_all_the_same(
    home: Store, trial_folder: Folder, onnx: Callable[..., bytes]
) -> None:
    huge = onnx(layers=[(np.full((2, 2), 3e38), np.zeros(2))] * 2)
    home.version("").mkdir(parents=True)
    trial_folder("a", 0.9, data=huge).replace(home.version(artifact.digest(huge)))
    files.write(home.folder / "CURRENT", artifact.digest(huge).encode())
    with pytest.raises(artifact.ArtifactError, match="doesn't answer"):
        home.load()
    assert bridge.kept(home.root, home.model)["manifest"]["trial"] == "a"
    trial_folder("killed", 0.8)
    assert [event.event for event in home.adopt()] == ["promoted"]


def test_a_damaged_current_version_is_told_and_not_taken_for_the_trial_it_came_from(
    home: Store, trial_folder: Folder
) -> None:
    digest = home.offer(trial_folder("a", 0.9)).digest
    (home.version(digest) / "model.onnx").write_bytes(b"cut")
    with pytest.raises(artifact.ArtifactError, match="is damaged"):
        home.find()
    assert home.find(digest).folder.name == "a"


def test_lineage_goes_back_to_the_first_ancestor(home: Store, trial_folder: Folder) -> None:
    digests = [home.offer(trial_folder(name, accuracy)).digest for name, accuracy in (("a", 0.8), ("b", 0.9))]
    assert [entry.manifest.digest for entry in home.lineage()] == digests[::-1]
    assert [entry.manifest.trial for entry in home.lineage(digests[0][:8])] == ["a"]


def test_lineage_ends_where_an_ancestor_is_gone(home: Store, trial_folder: Folder) -> None:
    first = home.offer(trial_folder("a", 0.8)).digest
    home.offer(trial_folder("b", 0.9))
    shutil.rmtree(home.version(first))
    assert home.lineage()[-1] == first


def test_the_manual_policy_only_records(home: Store, trial_folder: Folder) -> None:
    assert home.offer(trial_folder("a", 0.8, gate=Gate("manual"))).event == "recorded"
    assert home.current() is None


def test_models_measured_on_other_data_are_compared_on_the_challengers(home: Store, trial_folder: Folder) -> None:
    home.offer(trial_folder("a", 0.99, data_digest="e" * 64))
    assert home.offer(trial_folder("b", 0.9)).event == "refused"
    ground = store.Ground("d" * 64, lambda _: outcomes(850))
    event = home.offer(trial_folder("c", 0.9), ground=ground)
    assert (event.event, event.current_accuracy) == ("promoted", 0.85)


def test_a_model_with_other_classes_needs_a_person(
    home: Store, trial_folder: Folder, onnx: Callable[..., bytes]
) -> None:
    home.offer(trial_folder("a", 0.8))
    other = trial_folder("b", 0.9, data=onnx(classes=["yes", "no"]), classes=["yes", "no"])
    event = home.offer(other)
    assert (event.event, home.load().manifest.trial) == ("refused", "a")
    home.promote(event.digest)
    assert home.load().manifest.classes == ["yes", "no"]


def test_data_that_widens_a_features_range_is_the_same_contract(
    home: Store, trial_folder: Folder, onnx: Callable[..., bytes]
) -> None:
    home.offer(trial_folder("a", 0.8))
    wider = msgspec.structs.replace(
        home.load().manifest.input, features=[artifact.Feature("left", -5, 5), artifact.Feature("right", 0, 1)]
    )
    assert home.offer(trial_folder("b", 0.9, data=onnx(input=wider), input=wider)).event == "promoted"


def test_a_broken_challenger_is_refused_and_the_current_model_stays(home: Store, trial_folder: Folder) -> None:
    first = home.offer(trial_folder("a", 0.8)).digest
    folder = trial_folder("b", 0.9)
    (folder / "model.onnx").write_bytes(b"no model")
    assert home.offer(folder).event == "refused"
    assert home.current() == first


def test_a_broken_current_model_gives_way_to_the_next_offer(home: Store, trial_folder: Folder) -> None:
    first = home.offer(trial_folder("a", 0.9)).digest
    (home.version(first) / "model.onnx").write_bytes(b"damaged")
    assert "damaged" in home.verify()[0]
    assert home.offer(trial_folder("b", 0.8)).event == "promoted"


def test_a_broken_version_is_mended_when_its_model_is_promoted_again(home: Store, trial_folder: Folder) -> None:
    digest = home.offer(trial_folder("a", 0.9)).digest
    (home.version(digest) / "model.onnx").write_bytes(b"damaged")
    home.promote(digest)
    assert home.verify() == []


def test_a_killed_trials_model_is_adopted_by_the_next_offer(home: Store, trial_folder: Folder) -> None:
    killed = trial_folder("killed", 0.95)
    event = home.offer(trial_folder("b", 0.9))
    assert event.event == "kept"
    assert home.load().manifest.trial == "killed"
    assert (killed / store.OFFERED).exists()


def test_a_killed_trials_model_is_judged_by_its_own_gate(home: Store, trial_folder: Folder) -> None:
    home.offer(trial_folder("a", 0.8))
    trial_folder("killed", 0.95, gate=Gate("manual"))
    home.offer(trial_folder("b", 0.81))
    assert {event.trial: event.event for event in home.history()[1:]} == {
        "search/killed": "recorded",
        "search/b": "promoted",
    }


def test_a_killed_trials_model_of_other_data_waits_for_an_offer_on_its_data(home: Store, trial_folder: Folder) -> None:
    home.offer(trial_folder("a", 0.8))
    killed = trial_folder("killed", 0.95, data_digest="e" * 64)
    home.offer(trial_folder("b", 0.81))
    assert home.adopt() == []
    assert not (killed / store.OFFERED).exists()
    home.offer(trial_folder("c", 0.9, data_digest="e" * 64), ground=store.Ground("e" * 64, lambda _: outcomes(850)))
    assert home.load().manifest.trial == "killed"


def test_history_tells_that_the_current_model_had_learned_from_the_rows_compared(
    home: Store, trial_folder: Folder
) -> None:
    home.offer(trial_folder("a", 0.8, data_digest="e" * 64))
    event = home.offer(trial_folder("b", 0.9), ground=store.Ground("d" * 64, lambda _: outcomes(950), lambda _: 0.75))
    assert (event.event, event.current_learned) == ("kept", 0.75)
    assert event.reason.endswith("; the current model had learned from about 75% of the rows compared")


def test_a_model_that_was_refused_is_not_adopted_but_can_be_promoted(home: Store, trial_folder: Folder) -> None:
    folder = trial_folder("diverged", 0.9)
    digest = home.refuse(folder, "its trial failed").digest
    home.offer(trial_folder("b", 0.8))
    assert home.load().manifest.trial == "b"
    home.promote(digest)
    assert home.load().manifest.trial == "diverged"


def test_a_relative_folder_is_judged_once(home: Store, trial_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.root)
    home.offer(trial_folder("a", 0.8).relative_to(home.root))
    assert len(home.history()) == 1


def test_gc_removes_what_a_killed_promotion_left(home: Store, trial_folder: Folder) -> None:
    home.offer(trial_folder("a", 0.8))
    left = home.folder / "versions/.new-abc"
    left.mkdir()
    assert home.gc() == []
    assert left in home.gc(older_than=0)


def test_a_running_trial_is_not_adopted(home: Store, trial_folder: Folder) -> None:
    running = trial_folder("running", 0.95)
    with files.locked(running / ".lock"):
        home.offer(trial_folder("b", 0.9))
    assert home.load().manifest.trial == "b"
    assert [event.trial for event in home.adopt()] == ["search/running"]


def test_a_version_promoted_by_hand_stays_until_it_is_unpinned(home: Store, trial_folder: Folder) -> None:
    worse = home.offer(trial_folder("a", 0.8)).digest
    home.offer(trial_folder("b", 0.9))
    home.promote(worse[:10])
    assert home.offer(trial_folder("c", 0.95)).event == "recorded"
    assert home.current() == home.pinned() == worse
    home.unpin()
    assert home.offer(trial_folder("d", 0.96)).event == "promoted"


def test_a_model_that_cannot_be_built_is_never_promoted(
    home: Store, trial_folder: Folder, onnx: Callable[..., bytes]
) -> None:
    first = home.offer(trial_folder("a", 0.8)).digest
    folder = trial_folder("b", 0.9, data=onnx(layers=[(np.zeros((5, 2)), np.zeros(2))]))
    assert home.offer(folder).event == "refused"
    with pytest.raises(artifact.ArtifactError, match="can't be built"):
        home.promote(artifact.read(folder)[0].digest)
    assert home.current() == first


def test_rolling_back_goes_one_version_further_each_time(home: Store, trial_folder: Folder) -> None:
    offered = (trial_folder(name, accuracy) for name, accuracy in (("a", 0.7), ("b", 0.8), ("c", 0.9)))
    digests = [home.offer(folder).digest for folder in offered]
    assert [home.rollback().digest for _ in range(2)] == [digests[1], digests[0]]
    with pytest.raises(store.StoreError, match="no earlier version"):
        home.rollback()


def test_rolling_back_knows_a_promotion_that_a_kill_kept_out_of_the_history(home: Store, trial_folder: Folder) -> None:
    first = home.offer(trial_folder("a", 0.7)).digest
    history = (home.folder / "history.jsonl").read_bytes()
    home.offer(trial_folder("b", 0.8))
    (home.folder / "history.jsonl").write_bytes(history)
    assert home.rollback().digest == first


def test_a_torn_last_line_of_the_history_is_passed_over(home: Store, trial_folder: Folder) -> None:
    home.offer(trial_folder("a", 0.7))
    with (home.folder / "history.jsonl").open("ab") as file:
        file.write(b'{"time": "2026')
    home.offer(trial_folder("b", 0.8))
    assert [event.trial for event in home.history()] == ["search/a", "search/b"]


def test_gc_keeps_what_is_served_pinned_recent_or_running_and_judges_what_was_killed(
    home: Store, trial_folder: Folder
) -> None:
    for name, accuracy in (("a", 0.5), ("b", 0.6), ("c", 0.7), ("d", 0.8)):
        home.offer(trial_folder(name, accuracy))
    trial_folder("killed", 0.9)
    trial_folder("killed on other data", 0.9, data_digest="e" * 64)
    running = trial_folder("running", 0.9)
    with files.locked(running / ".lock"):
        home.gc(keep=2, older_than=0)
    versions = {artifact.read(folder)[0].trial for folder in (home.folder / "versions").iterdir()}
    assert versions == {"d", "killed"}
    assert [path.name for path in running.parent.iterdir()] == ["running"]


def test_gc_never_removes_what_is_served(home: Store, trial_folder: Folder) -> None:
    for name, accuracy in (("a", 0.5), ("b", 0.6)):
        home.offer(trial_folder(name, accuracy))
    home.gc(keep=0, older_than=0)
    assert [folder.name for folder in home.versions()] == [home.current()]


@pytest.mark.parametrize("step", ["version", "CURRENT", "history.jsonl"])
def test_a_promotion_killed_at_any_step_leaves_a_whole_store(
    home: Store, trial_folder: Folder, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    first = home.offer(trial_folder("a", 0.7)).digest
    folder = trial_folder("b", 0.8)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    if step == "version":
        monkeypatch.setattr(Path, "rename", killed)
    else:
        monkeypatch.setattr(Store, "_point" if step == "CURRENT" else "_record", killed)
    with pytest.raises(KeyboardInterrupt):
        home.offer(folder)
    monkeypatch.undo()
    assert home.verify() == []
    assert (home.current() == first) == (step != "history.jsonl")
    assert not list((home.folder / "versions").glob(".new-*"))
    home.adopt()
    assert home.load().manifest.trial == "b"


def test_offers_from_many_processes_leave_the_best_one_current(
    home: Store, trial_folder: Folder, tmp_path: Path
) -> None:
    folders = [trial_folder(f"t{n}", 0.5 + n / 100) for n in range(4)]
    command = [sys.executable, "-m", "modelkit.store", "offer", "--root", str(tmp_path), "--model", "demo"]
    started = [subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL) for folder in folders]
    assert [process.wait() for process in started] == [0] * 4
    assert home.load().manifest.trial == "t3"
    assert home.verify() == []


def test_a_file_system_without_locks_is_a_clear_error(
    home: Store, trial_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(files.LockError, match="no file locks"):
        home.offer(trial_folder("a", 0.8))
    assert home.current() is None


def test_a_model_that_is_not_there_is_named_with_those_that_are(home: Store, trial_folder: Folder) -> None:
    home.offer(trial_folder("a", 0.8))
    with pytest.raises(store.StoreError, match="there: demo"):
        Store(home.root, "iris").load()


def test_current_that_names_nonsense_is_a_clear_error_until_a_promotion_mends_it(
    home: Store, trial_folder: Folder
) -> None:
    home.offer(trial_folder("a", 0.8))
    (home.folder / "CURRENT").write_text("../../etc\n")
    with pytest.raises(store.StoreError, match="damaged"):
        home.load()
    home.promote(home.entries()[0].manifest.digest)
    assert home.load().manifest.trial == "a"


def test_every_pod_of_the_group_can_write_what_one_made(home: Store, trial_folder: Folder) -> None:
    digest = home.offer(trial_folder("a", 0.8)).digest
    for path in (home.folder / "CURRENT", home.folder / ".lock", home.version(digest) / "model.onnx"):
        assert path.stat().st_mode & 0o060 == 0o060
    assert home.version(digest).stat().st_mode & 0o070 == 0o070


def test_a_version_predicts_as_its_trials_file_did(home: Store, trial_folder: Folder) -> None:
    folder = trial_folder("a", 0.8)
    home.offer(folder)
    rows = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    assert (home.load().predict(rows) == artifact.predict((folder / "model.onnx").read_bytes(), rows)).all()


def test_the_command_line_shows_what_is_there(
    home: Store, trial_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    home.offer(trial_folder("a", 0.8))
    home.offer(trial_folder("b", 0.7))
    base = ["--root", str(home.root), "--model", "demo"]
    assert store.main(["list", *base]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["current", "trial"]
    assert store.main(["verify", *base]) == 0
    assert store.main(["unpin", *base]) == 1
    assert capsys.readouterr().err == "error: 'demo' is not pinned\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["promote"], "the following arguments are required: DIGEST"),
        (["unpin", "3f2a"], "unrecognized arguments: 3f2a"),
        (["list", "--dry-run"], "unrecognized arguments: --dry-run"),
        (["destroy"], "invalid choice: 'destroy'"),
        (["lsit"], "there is no action lsit: did you mean list?"),
    ],
)
def test_words_that_do_not_fit_their_command_are_told(
    home: Store, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    with pytest.raises(SystemExit):
        store.main([words[0], "--model", "demo", "--root", str(home.root), *words[1:]])
    assert told in capsys.readouterr().err


def test_history_is_a_line_for_each_decision_with_both_figures_and_its_reason(
    home: Store, trial_folder: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    first = home.offer(trial_folder("a", 0.8))
    kept = home.offer(trial_folder("bee", 0.75))
    home.promote(first.digest)
    home.unpin()
    assert store.main(["history", "--model", "demo", "--root", str(home.root)]) == 0
    head, *lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    assert head == ["TIME", "DECISION", "DIGEST", "ACCURACY", "AGAINST", "REASON"]
    assert [line[1:] for line in lines] == [
        ["promoted", first.digest[:12], "0.8000", "-", "the first model"],
        ["kept", kept.digest[:12], "0.7500", "0.8000", "the current model is still the best"],
        ["pinned", first.digest[:12], "-", "-", "promoted by hand"],
        ["unpinned", first.digest[:12], "-", "-", "offers decide again"],
    ]
    assert lines[0][0] == first.time[:16]


def test_list_and_history_fit_a_terminal_of_80_columns(
    home: Store, trial_folder: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    home.offer(trial_folder("iris-nas-4a575030-wnvqmfrs", 0.8))
    home.refuse(trial_folder("iris-nas-4a575030-o70lact8", 0.7), "a reason of quite some length, which is told in full")
    for action in ("list", "history"):
        assert store.main([action, "--model", "demo", "--root", str(home.root)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
    reason = lines[2][lines[0].index("REASON") :], *(line.strip() for line in lines[3:])
    assert " ".join(reason) == "a reason of quite some length, which is told in full"


def test_a_dry_run_of_gc_tells_what_would_go_and_changes_nothing(
    home: Store, trial_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    home.offer(trial_folder("a", 0.8))
    killed = trial_folder("killed", 0.9)
    before = {path: path.read_bytes() for path in home.root.rglob("*") if path.is_file()}
    words = ["gc", "--older-than=0", "--model", "demo", "--root", str(home.root)]
    assert store.main([*words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"would remove {killed.relative_to(home.root)}\n" in told
    left = {path: path.read_bytes() for path in home.root.rglob("*") if path.is_file() and path.name != ".lock"}
    assert left == {path: data for path, data in before.items() if path.name != ".lock"}
    home.gc(older_than=0)
    assert not killed.exists()
    assert store.main(["gc", "--older-than=0.5", "--model", "demo", "--root", str(home.root)]) == 0
    assert "nothing to remove: all is current, pinned, " in capsys.readouterr().out


def test_a_list_of_a_model_that_is_not_there_is_an_error(
    home: Store, trial_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    home.offer(trial_folder("a", 0.8))
    assert store.main(["list", "--model", "nope", "--root", str(home.root)]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.startswith("error: no model 'nope' in")) == ("", True)


@pytest.mark.parametrize("words", [["gc"], ["rollback"], ["unpin"], ["history"], ["promote", "3f2a"], ["verify"]])
def test_an_action_on_a_model_that_is_not_there_is_an_error_and_creates_nothing(
    home: Store, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert store.main([*words, "--model", "nope", "--root", str(home.root)]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.startswith("error: no model 'nope' in")) == ("", True)
    assert list(home.root.iterdir()) == []


def test_an_offer_of_a_folder_without_a_model_is_an_error_and_creates_nothing(
    home: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert store.main(["offer", "/nonexistent", "--model", "demo", "--root", str(home.root)]) == 1
    assert capsys.readouterr().err.startswith("error: no model.onnx in /nonexistent: ")
    assert list(home.root.iterdir()) == []


@pytest.mark.parametrize("action", store.COMMANDS)
def test_the_example_in_the_help_of_an_action_runs(
    home: Store, trial_folder: Folder, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    folder = trial_folder("a", 0.8)
    for name, accuracy in (("b", 0.9), ("c", 0.95)):
        home.offer(trial_folder(name, accuracy))
    home.promote(home.current() or "")
    with pytest.raises(SystemExit, match="0"):
        store.main([action, "--help"])
    example = capsys.readouterr().out.split("Example: python3 -m modelkit.store ")[1]
    known = {"DIGEST": home.current(), "[DIGEST]": home.current(), "FOLDER": str(folder), "iris": "demo"}
    assert store.main([str(known.get(word, word)) for word in example.split()] + ["--root", str(home.root)]) == 0


def test_a_model_that_is_given_need_not_be_named(
    home: Store, trial_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    home.offer(trial_folder("a", 0.8))
    assert store.main(["verify"], root=home.root, model="demo") == 0
    with pytest.raises(SystemExit, match="0"):
        store.main(["gc", "--help"], model="demo")
    told = capsys.readouterr().out
    assert "[--model MODEL]" in told
    assert "the model's name (default: demo)" in told


@pytest.mark.parametrize("action", ["promote", "show"])
def test_an_empty_digest_names_no_model(
    home: Store, trial_folder: Folder, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    home.offer(trial_folder("a", 0.8))
    assert store.main([action, "", "--model", "demo", "--root", str(home.root)]) == 1
    assert "an empty digest names no model" in capsys.readouterr().err
    assert home.pinned() is None


def test_verify_fails_for_a_store_that_is_not_whole(home: Store, trial_folder: Folder) -> None:
    (home.version(home.offer(trial_folder("a", 0.8)).digest) / "manifest.json").unlink()
    assert store.main(["verify", "--root", str(home.root), "--model", "demo"]) == 1


def test_a_store_without_the_model_is_not_called_whole(home: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert store.main(["verify", "--model", "demo", "--root", str(home.root)]) == 1
    assert "no model 'demo' in" in capsys.readouterr().err


def test_data_that_an_offered_model_learned_from_was_seen_even_when_the_model_is_gone(
    home: Store, trial_folder: Folder
) -> None:
    running = trial_folder("running", 0.7, data_digest="e" * 64)
    assert not home.has_seen("d" * 64)
    with files.locked(running / ".lock"):
        home.offer(trial_folder("a", 0.8))
        refused = home.offer(trial_folder("b", 0.9, data_digest="f" * 64))
    assert refused.event == "refused"
    assert home.has_seen("sha256:" + "d" * 64)
    assert home.has_seen("f" * 64)
    assert not home.has_seen("e" * 64), "it was never offered"
    home.gc(older_than=0)
    assert not [entry for entry in home.entries() if entry.manifest.trial == "b"]
    assert home.has_seen("f" * 64)


def test_data_are_not_seen_by_a_trial_that_failed(home: Store, trial_folder: Folder) -> None:
    home.refuse(trial_folder("diverged", 0.8), "its trial failed: the loss is nan")
    assert not home.has_seen("d" * 64)


def test_a_lineage_is_read_without_looking_at_trials(
    home: Store, trial_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = home.offer(trial_folder("a", 0.7)).digest
    second = home.offer(trial_folder("b", 0.8)).digest
    monkeypatch.setattr(Store, "entries", None)
    assert [entry.manifest.digest for entry in home.lineage() if not isinstance(entry, str)] == [second, first]

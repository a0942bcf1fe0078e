import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from modelkit.store import COMMANDS, Store
from nas import chart

ROOT = Path(__file__).parents[2]
Nas = Callable[..., subprocess.CompletedProcess[str]]
ON_CLUSTERS = [
    ["watch"],
    ["doctor"],
    ["cluster", "setup"],
    ["images", "build"],
    ["images", "import"],
    *(["artifacts", name] for name in ("list", "copy", "put")),
]
QUICK = [
    "--set",
    "experiment.maxTrials=2",
    "--set",
    "experiment.parallelTrials=2",
    "--set",
    "experiment.maxFailedTrials=1",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for runs and models, with the helm of this checkout."""
    folder = tmp_path_factory.mktemp("home")
    (ROOT / ".nas/tools").mkdir(parents=True, exist_ok=True)
    (folder / "tools").symlink_to(ROOT / ".nas/tools")
    return folder


@pytest.fixture
def nas(home: Path) -> Nas:
    """Call the command line; it must not show a traceback, whatever happens."""

    def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("nas")), *words]
        settings = os.environ | {"NAS_HOME": str(home)} | environment
        result = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=120, cwd=ROOT)
        assert "Traceback" not in result.stderr
        return result

    return call


@pytest.fixture(scope="module")
def searched(home: Path) -> subprocess.CompletedProcess[str]:
    """One small real search."""
    command = [str(Path(sys.executable).with_name("nas")), "run", "iris", *QUICK]
    environment = os.environ | {"NAS_HOME": str(home)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result


def test_a_search_leaves_a_promoted_model_and_says_what_to_type_next(
    searched: subprocess.CompletedProcess[str], home: Path
) -> None:
    current = Store(home / "model", "iris").current()
    assert current
    lines = searched.stdout.splitlines()
    assert lines[0].startswith("target: local (")
    (place,) = [line.strip() for line in lines if "/versions/" in line]
    assert place == f"{home}/model/iris/versions/{current[:12]}*"
    assert "the first trial has" not in searched.stdout, "there is no current model yet"
    assert [line for line in lines if line.startswith("model ") and f"{current[:12]} promoted" in line]
    assert [line for line in lines if line.startswith("epochs ") and "of at most 100" in line]
    assert "next    make serve MODEL=iris" in lines
    assert sum("trial 1/2" in line for line in lines) >= 2  # a slow machine hears of it in between


@pytest.mark.usefixtures("searched")
def test_the_next_search_is_a_new_one_that_first_tries_the_current_models_parameters(nas: Nas, home: Path) -> None:
    runs = set((home / "runs").iterdir())
    current = Store(home / "model", "iris").load().manifest
    result = nas("run", "iris", *QUICK)
    assert (result.returncode, "the first trial has the current model's parameters" in result.stdout) == (0, True)
    (new,) = set((home / "runs").iterdir()) - runs
    trials = [yaml.safe_load(path.read_text()) for path in (new / "trials").iterdir()]
    first = min(trials, key=lambda trial: trial["status"]["startTime"])
    tried = {pair["name"]: pair["value"] for pair in first["spec"]["parameterAssignments"]}
    assert tried == {name: current.parameters[name] for name in ("layers", "units", "lr")}


@pytest.mark.usefixtures("searched")
def test_a_run_that_is_there_is_not_run_over(nas: Nas) -> None:
    result = nas("run", "iris", *QUICK, "--run", "1")
    assert (result.returncode, "is there already: for a new run, leave --run" in result.stderr) == (1, True)


@pytest.mark.usefixtures("searched")
def test_resume_without_an_interrupted_run_says_so(nas: Nas) -> None:
    result = nas("run", "iris", "--resume")
    assert (result.returncode, "no interrupted run" in result.stderr) == (1, True)


def test_ctrl_c_interrupts_a_search_and_resume_ends_it(nas: Nas, home: Path, tmp_path: Path) -> None:
    values = tmp_path / "My_Cut.yaml"
    values.write_text((ROOT / "values/iris.yaml").read_text())
    command = [str(Path(sys.executable).with_name("nas")), "run", str(values), *QUICK]
    environment = os.environ | {"NAS_HOME": str(home)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert process.stdout
    while "trial 2/2" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"nas run {values} --resume" in output
    values.write_text(values.read_text() + "# edited\n")
    again = nas("run", str(values), "--resume")
    assert again.returncode == 0, again.stderr
    assert f"{values} has changed since: this run goes on as it began" in again.stdout
    assert "all trials are done" in again.stdout


@pytest.mark.usefixtures("searched")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "iriss"], "no values file"),
        (["run", "iris", "--set", "experiment.maxTrails=3"], "'maxTrails' not allowed: did you mean maxTrials?"),
        (["run", "iris", "--set", "experiment.maxTrails=3"], "docs/values.md tells of every key"),
        (["run", "iris", "--set", "experiment.parameters.lr.stp=3"], "'stp' not allowed: did you mean step?"),
        (["run", "iris", "--set", "experiments.maxTrials=3"], "'experiments' not allowed: did you mean experiment?"),
        (
            ["run", "iris", "--set", "experiment.parameters.lr.min=1"],
            "ERROR: experiment.parameters.lr has min (1) above",
        ),
        (["run", "iris", "--set", "experiment.parallelTrials=99"], "ERROR: experiment.parallelTrials (99) is above"),
        (
            ["run", "iris", "--set", "experiment.algorithm.name=magic"],
            "experiment.algorithm.name magic is none of Katib's",
        ),
        (["run", "iris", "--set", "experiment.algorithm.name=pbt"], "can't run on this machine"),
        (["run", "iris", "--resume", "--set", "experiment.maxTrials=4"], "goes on as it began: leave --set out"),
        (["batch", "--model", "a b"], "model name 'a b': letters, digits"),
        (
            ["batch"],
            "iris takes rows of a table, so name the files: .venv/bin/nas batch -m iris FILE.csv",
        ),
        (["images", "build"], "which images? batch, mnist-trainer, server, tabular-trainer, or --all"),
        (["artifacts", "put", "gone", "x", "--release", "x"], "a file or folder here, which 'gone' isn't"),
        (["run", "iris", "--every", "6"], "a whole number of minutes, hours or days, such as 30m, 6h or 1d"),
        (["run", "iris", "--every", "6h", "--resume"], "leave --resume and --run out"),
        (["run", "iris", "--every", "6h", "--set", "experiment.maxTrails=3"], "'maxTrails' not allowed"),
        (["run", "iris", "--set", "experiment.enabled=false"], "set experiment.enabled to true"),
        (["run", "iris", "--set", "experiment.trainer.image.repository=other"], "'other' has no folder"),
        (["models", "show", "--model", "nothing"], "no model 'nothing'"),
        (["models", "promote", "--model", "iris", "ffffffffffff"], "no model 'ffffffffffff'"),
        (["serve", "--model", "iris", "--port", "99999"], "99999"),
        (["models", "gc", "--model", "nope"], "no model 'nope' in"),
        (["serve", "--model", "nope"], "no model 'nope' in"),
        (["serve", "--model", "nope"], "(there: iris)"),
    ],
)
def test_bad_input_is_told_and_ends_with_status_1(nas: Nas, home: Path, words: list[str], message: str) -> None:
    runs = sorted((home / "runs").iterdir())
    result = nas(*words)
    assert result.returncode == 1
    assert "error: " in result.stderr
    assert message in result.stderr
    assert sorted((home / "runs").iterdir()) == runs


def test_batch_looks_for_the_model_before_it_fetches_data(nas: Nas, tmp_path: Path) -> None:
    result = nas("batch", "--model", "mnist", NAS_HOME=str(tmp_path))
    assert (result.returncode, "no model 'mnist' in" in result.stderr) == (1, True)
    assert not list(tmp_path.iterdir())


def test_an_action_that_models_does_not_know_or_that_lacks_its_digest_is_a_wrong_use(nas: Nas) -> None:
    for words, message in (
        (["promote"], "required: DIGEST"),
        (["unpin", "3f2a"], "unrecognized arguments: 3f2a"),
        (["lsit"], "did you mean list?"),
    ):
        result = nas("models", *words)
        assert (result.returncode, message in result.stderr) == (2, True)


@pytest.mark.usefixtures("searched")
def test_options_of_an_action_are_passed_on(nas: Nas) -> None:
    result = nas("models", "gc", "--keep", "3", "--older-than=1", "-m", "iris")
    assert (result.returncode, result.stdout.startswith("nothing to remove: ")) == (0, True)


def test_the_version_and_short_help_are_told(nas: Nas) -> None:
    assert nas("--version").stdout == f"nas {importlib.metadata.version('nas')}\n"
    assert nas("-h").stdout == nas("--help").stdout
    assert nas("run", "-h").stdout == nas("run", "--help").stdout


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("- at '/experiment': additional properties 'maxTrails', 'qqq' not allowed", "maxTrials"),
        ("- experiment.trainer: Additional property imgae is not allowed", "image"),
        ("- (root): Additional property servng is not allowed", "serving"),
        ("- at '': additional properties 'servng', 'btch' not allowed", "serving, batch"),
    ],
)
def test_a_mistyped_key_is_answered_with_the_nearest_whichever_helm_tells(line: str, told: str) -> None:
    assert chart.reason(line).strip() == f"{line}: did you mean {told}?"


def test_a_key_that_is_like_none_is_told_as_helm_does() -> None:
    for line in ("- at '/batch': additional properties 'qqq' not allowed", "- at '/serving/enabled': got number"):
        assert chart.reason(line).strip() == line


def test_helm_that_cannot_be_had_is_told_with_where_to_get_it(nas: Nas, tmp_path: Path) -> None:
    environment = {"PATH": "/nonexistent", "NAS_HOME": str(tmp_path), "UV_OFFLINE": "1", "UV_CACHE_DIR": str(tmp_path)}
    result = nas("run", "iris", **environment)
    assert result.returncode == 1
    assert "helm is not on PATH, and it could not be fetched" in result.stderr
    assert "install Helm 3.14 or newer" in result.stderr


def test_a_search_is_repeated_by_the_clock_though_one_fails_until_a_signal(home: Path, tmp_path: Path) -> None:
    values = tmp_path / f"often-{'x' * 40}.yaml"
    values.write_text((ROOT / "values/iris.yaml").read_text())
    command = [str(Path(sys.executable).with_name("nas")), "run", str(values), *QUICK, "--every", "6h"]
    environment = os.environ | {"NAS_HOME": str(home)}
    for settings, told, number in (
        (["experiment.trainer.args.epochs=2"], "model ", signal.SIGINT),
        (["experiment.trainer.args.epochs=x"], "", signal.SIGTERM),
    ):
        words = [word for setting in settings for word in ("--set", setting)]
        pipe = subprocess.PIPE
        process = subprocess.Popen([*command, *words], stdout=pipe, stderr=pipe, text=True, env=environment, cwd=ROOT)
        assert process.stdout
        lines = []
        while not lines or not lines[-1].startswith("the next search begins at"):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 128 + number
        assert "Traceback" not in errors
        assert any(line.startswith(told) for line in lines) if told else "error: the search failed" in errors
        assert told or "error: argument --epochs: invalid number value: 'x' (" in errors.splitlines()[-1]
        for path in (home / "runs").glob("*/experiment.yaml"):
            path.parent.rename(tmp_path / f"{path.parent.name}-{len(list(tmp_path.iterdir()))}")  # a minute is a name
    names = [path.name.rsplit("-", 1)[0] for path in tmp_path.iterdir() if path.name.startswith("often")]
    assert any(re.fullmatch(r"often-x{16}-nas-\d{8}-\d{4}", name) for name in names), names


def test_sigterm_ends_a_command_with_143_and_what_the_command_started(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pid")
    (tmp_path / "kubectl").write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid; exec sleep 60\n")
    (tmp_path / "kubectl").chmod(0o755)
    command = [str(Path(sys.executable).with_name("nas")), "watch", "x", "--target", "cluster"]
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    child = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}")
    assert child.exists()
    process.terminate()
    assert process.communicate(timeout=30) == ("", "")
    assert (process.returncode, child.exists()) == (143, False)


def test_a_store_that_cannot_be_written_is_told_before_the_first_trial(nas: Nas, tmp_path: Path) -> None:
    (tmp_path / "tools").symlink_to(ROOT / ".nas/tools")
    (tmp_path / "model").touch()
    result = nas("run", "iris", NAS_HOME=str(tmp_path))
    assert (result.returncode, result.stderr.startswith("error: can't write to")) == (1, True)
    assert "trial 1/" not in result.stdout


@pytest.mark.usefixtures("searched")
def test_a_port_in_use_is_told(nas: Nas) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = nas("serve", "--model", "iris", "--port", str(taken.getsockname()[1]))
    assert result.returncode == 1
    assert "in use" in result.stderr


def test_help_lists_the_commands_in_the_order_of_use_without_cutting_a_line_and_says_where_nas_is(nas: Nas) -> None:
    text = nas("--help").stdout
    order = re.findall(r"^  ([a-z]+)  ", text[text.index("Commands:") :], re.MULTILINE)
    assert " ".join(order) == "run watch serve batch report models data doctor helm images artifacts cluster"
    assert "`nas` is .venv/bin/nas" in text
    for words in ((), ("images",), ("artifacts",), ("cluster",)):
        assert "..." not in re.sub(r"(\[ARGS\]|\[names\]|names)\.\.\.", "", nas(*words, "--help").stdout)


def test_every_command_shows_an_example(nas: Nas) -> None:
    for words in (["run"], ["serve"], ["batch"], ["data", "mnist"], ["models", "list"], ["models", "gc"], *ON_CLUSTERS):
        result = nas(*words, "--help")
        assert result.returncode == 0
        assert f"Example: nas {' '.join(words)}" in " ".join(result.stdout.split())


def test_help_of_an_action_on_models_is_its_own_and_that_of_models_names_all_of_them(nas: Nas) -> None:
    for words in (["gc", "--help"], ["--release", "on-a-cluster", "gc", "-h"]):
        result = nas("models", *words)
        assert (result.returncode, "--older-than DAYS" in result.stdout) == (0, True)
        assert "the model's name (default: iris)" in result.stdout
    assert "--older-than" not in nas("models", "promote", "--help").stdout
    told = nas("models", "--help").stdout
    assert [action for action in COMMANDS if not re.search(rf"\b{action}\b", told)] == []
    assert nas("models", "-h").stdout == told


def test_a_command_for_a_cluster_says_how_to_name_one(nas: Nas, tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "KUBECONFIG": str(tmp_path / "none")}
    for words in (
        ["watch", "iris-nas"],
        ["artifacts", "list", "--release", "x"],
        ["models", "list", "--release", "x"],
        ["doctor"],
    ):
        result = nas(*words, **environment)
        assert (result.returncode, "--target cluster is the current kubeconfig context" in result.stderr) == (1, True)
    result = nas("watch", "iris-nas", "--target", "cluster", **environment)
    assert (result.returncode, "kubectl is not on PATH: install it" in result.stderr) == (1, True)


def test_a_local_command_does_not_load_the_clients_of_a_cluster() -> None:
    check = "import sys, nas.cli; sys.exit(any(m in sys.modules for m in ('kubernetes', 'optuna', 'onnxruntime')))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0

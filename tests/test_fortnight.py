"""A fortnight that is left alone: each night a search on the data of that day, and a server that never stops.

Nights differ: new data, the same data, a trainer that is broken, a model that is corrupted before it is offered, a full
claim, a search that is killed. `pytest tests/test_fortnight.py -s` prints what happened.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from modelkit.store import Store

ROOT = Path(__file__).parents[1]
TRAINER = '''
"""Logistic regression on points of the plane: rows.npz, a quarter of it held out."""
import errno, os, pathlib, signal
import numpy as np
from modelkit import artifact, trial

parser = trial.argument_parser(__doc__)
parser.add_argument("--data", type=pathlib.Path, required=True)
parser.add_argument("--lr", type=float, required=True)
parser.add_argument("--trouble", default="none")
args = parser.parse_args()
rows = np.load(args.data)
x, y = rows["x"], rows["y"]
held = np.arange(len(x)) % 4 == 0
takes, names = artifact.Input(dtype="float32", shape=[2]), ["below", "above"]
data = trial.Data(x, y, [np.flatnonzero(held)])
with trial.Trial(args, model="plane", input=takes, classes=names, data=data) as run:
    if args.trouble == "broken":
        raise SystemExit("ImportError: no module named yesterday")
    if args.trouble == "full":
        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")
        os.fsync = full
    weights = np.zeros((2, 2)) + np.random.default_rng(args.seed).normal(scale=0.01, size=(2, 2))
    for epoch in run.epochs():
        for _ in range(40):
            scores = np.exp(x[~held] @ weights)
            scores /= scores.sum(axis=1, keepdims=True)
            weights = weights - args.lr * x[~held].T @ (scores - np.eye(2)[y[~held]]) / (~held).sum()
        loss = -np.log(scores[np.arange(len(scores)), y[~held]]).mean()
        run.report(loss=float(loss), model=artifact.mlp([(weights, np.zeros(2))], "identity", takes, names))
        if args.trouble == "killed" and epoch == 2:
            signal.pause()
    if args.trouble == "corrupted":
        (args.export_path / "model.onnx").write_bytes(b"half of a model")
'''
VALUES = {
    "global": {"model": "plane"},
    "experiment": {
        "onlyWhenDataChanges": True,
        "maxTrials": 2,
        "parallelTrials": 2,
        "maxFailedTrials": 1,
        "earlyStopping": {"enabled": False},
        "parameters": {"lr": {"type": "double", "min": 0.5, "max": 2}},
        "trainer": {"image": {"repository": "plane-trainer"}, "args": {"epochs": 3, "patience": 3}},
    },
}


@dataclasses.dataclass
class Night:
    """What is arranged for a night, and what is to come of it."""

    degrees: float  # the line that separates the classes has this slope
    draw: int  # another draw of the points is other data
    trouble: str
    decision: str


FORTNIGHT = [
    Night(0, 1, "none", "promoted"),
    Night(0, 1, "none", "nothing new"),
    Night(30, 2, "none", "promoted"),
    Night(30, 2, "none", "nothing new"),
    Night(30, 3, "broken", "failed"),
    Night(30, 3, "none", "kept"),
    Night(60, 4, "corrupted", "refused"),
    Night(60, 5, "none", "promoted"),
    Night(90, 6, "full", "failed"),
    Night(90, 6, "none", "promoted"),
    Night(120, 7, "killed", "killed"),
    Night(120, 7, "none", "promoted"),
    Night(120, 8, "none", "kept"),
    Night(150, 9, "none", "promoted"),
]


def points(night: Night, count: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """Points float32 [count, 2] and their classes, of which one in twenty is wrong."""
    random = np.random.default_rng(draw)
    x = random.normal(size=(count, 2)).astype(np.float32)
    slope = np.radians(night.degrees)
    above = x @ [np.sin(slope), np.cos(slope)] > 0
    return x, np.where(random.random(count) < 0.05, ~above, above).astype(int)


def processes(text: str) -> list[int]:
    """Those whose command line has that text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text in path.read_bytes().decode(errors="replace"):
                found.append(int(path.parent.name))
    return found


class Team:
    """The folder of a team that left it running: its trainer, its data, its store, its server."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(folder / ".nas/model", "plane")
        self.failures: list[str] = []
        self.requests = 0
        self.ready = threading.Event()  # the server has a model
        trainer = folder / "images/plane-trainer"
        trainer.mkdir(parents=True)
        (trainer / "train.py").write_text(TRAINER)
        (folder / "charts").symlink_to(ROOT / "charts")
        (folder / ".nas").mkdir()
        (folder / ".nas/tools").symlink_to(ROOT / ".nas/tools")
        (folder / "plane.yaml").write_text(yaml.safe_dump(VALUES))

    def search(self, trouble: str) -> tuple[int, str]:
        """One night's `nas run`: its exit status, and what it printed. A night of the kind `killed` is."""
        call = "import sys; from pathlib import Path; from nas import local; from nas.errors import TOLD\n"
        call += (
            "try: sys.exit(local.run(Path.cwd(), Path('.nas').absolute(), 'plane.yaml', None, False, sys.argv[1:]))\n"
        )
        call += "except TOLD as error: sys.exit(f'error: {error}')"
        words = [f"experiment.trainer.args.{word}" for word in ("data=/model/rows.npz", f"trouble={trouble}")]
        process = subprocess.Popen(
            [sys.executable, "-c", call, *words],
            cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if trouble == "killed":
            offered = set(self.store.folder.glob("trials/*/*/model.onnx"))
            while offered >= set(self.store.folder.glob("trials/*/*/model.onnx")) and process.poll() is None:
                pass
            process.send_signal(signal.SIGSTOP)  # a lost machine: nothing ends in order
            for pid in processes(f"{self.folder}/images/plane-trainer/train.py"):
                os.kill(pid, signal.SIGKILL)
            process.kill()
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    @contextlib.contextmanager
    def serving(self) -> Iterator["Team"]:
        """The server, asked all the time from the first model on."""
        command = [sys.executable, str(ROOT / "images/server/serve.py"), "--model", "plane", "--port", "0"]
        process = subprocess.Popen(
            [*command, "--store", str(self.store.root), "--host", "127.0.0.1"], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        found = re.search(r"http://localhost:\d+", process.stdout.readline())
        assert found
        self.url, done = found[0], threading.Event()

        def keep_asking() -> None:
            self.ready.wait()
            while not done.wait(0.02):
                try:
                    self.ask([0.5, 0.5])
                    self.requests += 1
                except OSError as error:
                    self.failures.append(str(error))

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            yield self
        finally:
            done.set()
            self.ready.set()
            asking.join()
            process.terminate()
            process.wait(timeout=20)

    def ask(self, body: Any) -> Any:
        request = urllib.request.Request(f"{self.url}/predict", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def accuracy(self, x: np.ndarray, y: np.ndarray, digest: str) -> float:
        """Of what the server answers, once the answers are those of `digest`."""
        while True:
            answer: Any = {"digest": ""}
            unready = [] if self.ready.is_set() else [OSError]  # 503 until the first model is loaded
            with contextlib.suppress(*unready):
                answer = self.ask(x.tolist())
                self.ready.set()
            if answer["digest"] == digest:
                return float(np.mean(np.array(answer["predictions"]) == y))


@pytest.fixture(scope="module")
def fortnight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Team, list[dict[str, Any]]]:
    """A team after its fortnight, and what was seen of each night."""
    team, seen = Team(tmp_path_factory.mktemp("team")), []
    print(f"\n{'night':5} {'slope':5} {'trouble':10} {'champion':8} {'challenger':10} decision")
    with team.serving():
        for number, night in enumerate(FORTNIGHT, 1):
            team.store.root.mkdir(exist_ok=True)
            x, y = points(night, 1200, night.draw)
            np.savez(team.store.root / "rows.npz", x=x, y=y)
            fresh = points(night, 800, 1000 + number)
            champion, past = team.store.current(), len(team.store.history())
            before = team.accuracy(*fresh, champion) if champion else 0.0
            status, said = team.search(night.trouble)
            events = team.store.history()[past:]
            current = team.store.current()
            after = team.accuracy(*fresh, current) if current else 0.0
            kinds = {event.event for event in events}
            decision = next((kind for kind in ("promoted", "refused", "kept") if kind in kinds), "")
            if night.trouble == "killed":
                decision = "killed" if status == -signal.SIGKILL else str(status)
            decision = decision or ("nothing new" if status == 0 and "nothing to do" in said else "failed")
            best = max((event.accuracy or 0 for event in events), default=0.0)
            print(f"{number:5} {night.degrees:4}° {night.trouble:10} {before:8.3f} {best:10.3f} {decision}")
            seen.append({"night": night, "decision": decision, "before": before, "after": after, "said": said,
                         "status": status, "events": events, "changed": current != champion})  # fmt: skip
    return team, seen


Fortnight = tuple[Team, list[dict[str, Any]]]


def test_each_night_is_decided_as_it_should_be(fortnight: Fortnight) -> None:
    _, seen = fortnight
    for night in seen:
        assert night["decision"] == night["night"].decision, night["said"]


def test_only_a_promotion_changes_what_is_served(fortnight: Fortnight) -> None:
    _, seen = fortnight
    assert [night["changed"] for night in seen] == [night["decision"] == "promoted" for night in seen]


def test_what_is_served_is_never_worse_on_the_newest_data_than_the_champion_was(fortnight: Fortnight) -> None:
    _, seen = fortnight
    assert [n["night"] for n in seen if n["after"] < n["before"]] == []
    assert seen[-1]["after"] > 0.9


def test_no_request_fails(fortnight: Fortnight) -> None:
    team, _ = fortnight
    assert team.failures == []
    assert team.requests > 100


def test_a_night_with_trouble_ends_with_an_error_that_names_it(fortnight: Fortnight) -> None:
    _, seen = fortnight
    told = {night["night"].trouble: night for night in seen}
    assert told["broken"]["status"] == 1
    assert "no module named yesterday" in told["broken"]["said"]
    assert told["full"]["status"] == 1
    assert "no space left on the disk" in told["full"]["said"]
    (refusal, *_) = told["corrupted"]["events"]
    assert refusal.event == "refused"


def test_a_killed_search_leaves_its_model_to_the_next_one(fortnight: Fortnight) -> None:
    _, seen = fortnight
    killed = next(index for index, night in enumerate(seen) if night["decision"] == "killed")
    adopted = {event.trial.split("/")[0] for event in seen[killed + 1]["events"] if event.trial}
    assert len(adopted) == 2  # the search that was killed, and its own


def test_every_decision_stands_in_history_with_both_figures(fortnight: Fortnight) -> None:
    _, seen = fortnight
    for night in seen[1:]:
        for event in night["events"]:
            if event.event in ("promoted", "kept"):
                assert event.accuracy is not None
                assert event.current_accuracy is not None
    assert [n["night"].draw for n in seen if n["decision"] in ("nothing new", "failed", "killed") and n["events"]] == []


def test_no_process_is_left(fortnight: Fortnight) -> None:
    team, _ = fortnight
    assert processes(str(team.folder)) == []

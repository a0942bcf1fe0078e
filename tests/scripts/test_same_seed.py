"""One seed gives the same search again: the same suggestions in the same order, and the same models to the byte."""

import os
import subprocess
import sys
from pathlib import Path

from modelkit import artifact
from modelkit.store import Store

ROOT = Path(__file__).parents[2]
SETTINGS = ["maxTrials=2", "maxFailedTrials=1", "parallelTrials=1", "trainer.args.epochs=3"]


def search(home: Path) -> subprocess.Popen[bytes]:
    (ROOT / ".nas/tools").mkdir(parents=True, exist_ok=True)
    home.mkdir()
    (home / "tools").symlink_to(ROOT / ".nas/tools")
    command = [str(Path(sys.executable).with_name("nas")), "run", "iris"]
    command += [word for setting in SETTINGS for word in ("--set", f"experiment.{setting}")]
    environment = os.environ | {"NAS_HOME": str(home), "NAS_CPUS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def trials(store: Store) -> list[tuple[dict[str, str], bytes, str]]:
    """Parameters, model file and the store's decision of each trial, in their order."""
    folders = [(store.folder / "trials" / str(event.trial), event.event) for event in store.history()]
    read = [(*artifact.read(folder), event) for folder, event in folders]
    return [(manifest.parameters, model, event) for manifest, model, event in read]


def test_two_sequential_searches_of_one_seed_suggest_and_keep_the_same(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("one", "two")]
    assert [process.wait(timeout=120) for process in [search(home) for home in homes]] == [0, 0]

    one, two = (trials(Store(home / "model", "iris")) for home in homes)
    assert len({frozenset(parameters.items()) for parameters, _, _ in one}) == 2, "each trial is another"
    assert one == two

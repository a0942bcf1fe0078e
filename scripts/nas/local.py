"""A search on this machine, from a values file to a promoted model."""

import contextlib
import re
import subprocess
import sys
import time
from pathlib import Path

from modelkit import files
from modelkit.store import Store

from nas import bridge, chart, data, fetch, suggest
from nas.engine import Places, Search, command_line, image_folder, recorded
from nas.errors import TOLD, NasError
from nas.experiment import Experiment, Manifest
from nas.progress import Trial
from nas.view import View, next_commands

VALUES = "nas/values-digest"  # annotation: sha256 of the file that a run began with


def run(root: Path, home: Path, values: str, number: int | None, resume: bool, settings: list[str]) -> int:
    """Run the search of a values file (a path, or a name in values/) to its end; the exit status.

    130 or 143 when a signal interrupted it, 1 when it failed. Raises TOLD, OSError.
    """
    places = Places(root, home)
    path = chart.values_file(root, values)
    if resume and settings:
        raise NasError("an interrupted run goes on as it began: leave --set out, or leave --resume out for a new run")
    experiment = Experiment(_interrupted(places, path) if resume else _new(places, path, number, settings))
    if not experiment.model:
        raise NasError(f"the Experiment of {path} doesn't say which model it makes: set global.model")
    image = image_folder(experiment, places)
    fetch.ensure(image)
    _data(experiment, image, places)
    store = Store(places.store, experiment.model)
    store.folder.mkdir(parents=True, exist_ok=True)
    with files.locked(store.folder / ".lock"):  # what can't be written or locked is told before the first trial
        files.write(store.folder / ".probe", b"")
        (store.folder / ".probe").unlink()
    if experiment.only_when_data_changes and not resume:
        digest = data_digest(experiment, places)
        if store.has_seen(digest):
            print(f"nothing to do: the data is what an earlier search learned from (digest {digest[:12]})", flush=True)
            return 0
    search = Search(experiment, places)
    if resume:
        search.resume()
    with View(search) as view:
        search.run(view.changed, None if resume else _current_parameters(store, experiment))
    store.adopt()
    if search.interrupted:
        view.note(f"interrupted; to go on: .venv/bin/nas run {values} --resume, or make with ARGS=--resume")
        return 128 + search.interrupted
    current = store.find().manifest if store.current() else None
    place = f"{files.shown(store.version(current.digest[:12]))}*" if current else ""
    failed = search.state == "Failed" or search.best is None
    after = next_commands(current) if current and not failed else []
    view.summary(current, place, after, bridge.reasons(store, experiment.name))
    if failed:
        said = [f"\n{trial.short}: {trial.message}" for trial in search.trials if trial.failed]
        raise NasError(f"the search failed: {search.reason}{''.join(said[-1:])}")
    return 0


def repeat(root: Path, home: Path, values: str, seconds: int, settings: list[str]) -> int:
    """Run the search of a values file every so many seconds, counted from its start, until a signal; the exit status.

    Each is an Experiment of its own, named by its time. One that fails is told, and the next begins in its time.
    Raises NasError when the first can't even be rendered.
    """
    path = chart.values_file(root, values)
    release = chart.release_name(path)
    chart.render(root, home, release, [path], settings)
    begin = time.time()
    while True:
        name = f"experiment.name={release}-{time.strftime('%Y%m%d-%H%M', time.gmtime())}"
        try:
            status = run(root, home, values, None, False, [*settings, name])
        except (*TOLD, OSError) as error:
            status = 1
            print(f"error: {error}", file=sys.stderr, flush=True)
        if status > 128:
            return status
        begin = max(begin + seconds, time.time() // 60 * 60 + 60)  # names have minutes
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(begin))
        print(f"the next search begins at {when}; Ctrl-C ends", flush=True)
        while (left := begin - time.time()) > 0:  # in steps, by the clock: a machine may sleep meanwhile
            time.sleep(min(left, 60))


def data_digest(experiment: Experiment, places: Places) -> str:
    """The digest of the data that a trial would learn from, as its trainer tells it. Raises NasError."""
    point = {name: str(s["min"] if "min" in s else s["list"][0]) for name, s in experiment.space.items()}
    line, environment = command_line(experiment, Trial("data-digest", point, None), places)
    folder = image_folder(experiment, places)
    command = ["sh", "-c", f"{line} --data-digest"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"^sha256:([0-9a-f]{64})$", result.stdout, re.MULTILINE)
    if result.returncode or not found:
        said = (result.stderr or result.stdout).strip().splitlines()[-1:] or ["it printed nothing"]
        if result.returncode == 1:
            raise NasError(f"{folder.name} can't read its data: {said[0]}")
        raise NasError(f"onlyWhenDataChanges needs a trainer that knows --data-digest; {folder.name} says: {said[0]}")
    return found[1]


def _current_parameters(store: Store, experiment: Experiment) -> dict[str, str] | None:
    """What the current model was trained with, by the search's names, where that can be its first trial; else None."""
    with contextlib.suppress(*TOLD, ValueError):  # no model, a broken one (an offer will mend or tell it), other values
        given = store.find().manifest.parameters
        first = {name: given.get(name.replace("-", "_"), "") for name in experiment.space}
        suggest.frozen(suggest.space(experiment), first, None)
        if experiment.algorithm != "grid":  # it has its own order
            print("the first trial has the current model's parameters", flush=True)
            return first
    return None


def _data(experiment: Experiment, image: Path, places: Places) -> None:
    """See to it that the trial's data is there: fetched where it is known, else put there by the user."""
    given, known = experiment.argument("data"), data.NEEDED_BY.get(image.name)
    if known and given in (None, known):
        data.ensure(known, places.home / "data")
    elif given and given != "iris":
        on_claim = Path(given).is_absolute()
        path = places.store.joinpath(*Path(given).parts[2:]) if on_claim else places.home / "data" / given
        if not path.exists():
            raise NasError(f"the trainer's data is to be at {path}, where nothing is; docs/trainers.md tells how")


def _new(places: Places, path: Path, number: int | None, settings: list[str]) -> Manifest:
    """The Experiment with a run number no earlier run had, so that its seed and, unless given, its name are new."""
    release, taken = chart.release_name(path), None
    chosen = number or len(list((places.home / "runs").glob(f"{release}-*"))) + 1
    while True:
        asked = [*settings, f"experiment.run={chosen}"]
        manifest = chart.experiment(chart.render(places.root, places.home, release, [path], asked), path)
        folder = places.run(manifest["metadata"]["name"])
        if not folder.exists():
            manifest["metadata"]["annotations"][VALUES] = bridge.digest(path)
            return manifest
        if number or folder == taken:
            raise NasError(f"{folder} is there already: for a new run, leave --run and experiment.name out")
        taken, chosen = folder, chosen + 1


def _interrupted(places: Places, path: Path) -> Manifest:
    """The latest run of these values that didn't reach its end."""
    for folder, manifest in recorded(places):
        if folder.name.startswith(f"{chart.release_name(path)}-"):
            if manifest.get("status", {}).get("conditions", [{}])[-1].get("type") != "Running":
                continue
            if manifest["metadata"].get("annotations", {}).get(VALUES) != bridge.digest(path):
                print(f"{path} has changed since: this run goes on as it began; without --resume a new one starts")
            return manifest
    raise NasError(f"no interrupted run of {path} in {places.home / 'runs'}: leave --resume out to start one")

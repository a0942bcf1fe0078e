"""A search on this machine, from a values file to a promoted model."""

import re
from pathlib import Path
from typing import Literal

from modelkit import artifact, files
from modelkit.store import Gate, Store, StoreError, explain
from rich.console import Console

from nas import bridge, chart, data, fetch
from nas.engine import Places, Search, image_folder, load, recorded
from nas.errors import NasError
from nas.experiment import Experiment
from nas.view import View, next_commands


def run(root: Path, home: Path, values: str, number: int | None, resume: bool, settings: list[str]) -> int:
    """Run the search of a values file (a path, or a name in values/) to its end; the exit status.

    130 or 143 when a signal interrupted it, 1 when it failed. Raises NasError, OSError.
    """
    places = Places(root, home)
    path = values_file(root, values)
    if resume and settings:
        raise NasError("an interrupted run goes on as it began: leave --set out, or leave --resume out for a new run")
    manifest = _interrupted(places, path) if resume else _new(places, path, number, settings)
    experiment = Experiment(manifest)
    if not experiment.model:
        raise NasError(f"the Experiment of {path} doesn't say which model it makes: set global.model")
    image = image_folder(experiment, places)
    fetch.ensure(image)
    _data(experiment, image, places)
    store = Store(places.store, experiment.model)
    _check(store)
    gate = gate_of(experiment)
    view = View(Console(highlight=False))
    search = view.search = Search(experiment, places, view)
    if resume:
        search.resume()
    with view:
        search.run()
    try:
        store.adopt(gate)
        if search.interrupted:
            view.console.print(f"interrupted; to go on: .venv/bin/nas run {values} --resume", soft_wrap=True)
            return 128 + search.interrupted
        current = store.load().manifest if store.current() else None
        place = _shown(store.version(current.digest)) if current else ""
        after = next_commands(current) if current else []
        view.summary(current, place, after, bridge.reasons(store, experiment.name))
    except (StoreError, artifact.ArtifactError, files.LockError) as error:
        raise NasError(str(error)) from error
    if search.state == "Failed" or search.best is None:
        raise NasError(f"the search failed: {search.reason}; what each trial printed is in {search.folder / 'logs'}")
    return 0


def gate_of(experiment: Experiment) -> Gate:
    """What the search's trials ask of a model: what a killed one left is judged as it would have been."""
    given = {name: experiment.argument(name) for name in ("min-improvement", "significance")}
    policy: Literal["auto", "manual"] = "manual" if experiment.argument("promotion") == "manual" else "auto"
    return Gate(policy, **{name.replace("-", "_"): float(text) for name, text in given.items() if text})


def _shown(path: Path) -> str:
    """A path as a person in this folder would type it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _data(experiment: Experiment, image: Path, places: Places) -> None:
    """See to it that the trial's data is there: fetched where it is known, else put there by the user."""
    given, known = experiment.argument("data"), data.NEEDED_BY.get(image.name)
    if known and given in (None, known):
        data.ensure(known, places.data)
    elif given and given != "iris":
        path = places.store.joinpath(*Path(given).parts[2:]) if Path(given).is_absolute() else places.data / given
        if not path.exists():
            raise NasError(f"the trainer's data is to be at {path}, where nothing is; docs/trainers.md tells how")


def values_file(root: Path, name: str) -> Path:
    """A values file by its path, or by its name in values/."""

    path = Path(name)
    return path if path.suffix or path.exists() else root / "values" / f"{name}.yaml"


def release_name(path: Path) -> str:
    """The release a values file makes unless told otherwise: by its name, and its folder below values/."""
    *folders, name = path.with_suffix("").parts
    below = folders[folders.index("values") + 1 :] if "values" in folders else []
    name = re.sub("[^a-z0-9]+", "-", "-".join([*below, name]).lower()).strip("-")
    return f"{name[:27]}-nas"  # 31 characters: Katib allows 40, with the hash


def _new(places: Places, path: Path, number: int | None, settings: list[str]) -> dict[str, object]:
    """The Experiment with a run number no earlier run had, so that its name and its seed are new."""
    runs = places.home / "runs"
    chosen = number or len(list(runs.glob(f"{release_name(path)}-*"))) + 1
    while True:
        rendered = chart.render(
            places.root, places.home, release_name(path), [path], [*settings, f"experiment.run={chosen}"]
        )
        manifest = chart.experiment(rendered, path)
        name = manifest["metadata"]["name"]
        if not places.run(name).exists():
            return manifest
        if number:
            raise NasError(
                f"run {number} of {path} is there already: {places.run(name)}; leave --run out for a new one"
            )
        chosen += 1


def _interrupted(places: Places, path: Path) -> dict[str, object]:
    """The latest run of these values that didn't reach its end."""
    for folder, manifest in recorded(places):
        if folder.name.startswith(f"{release_name(path)}-"):
            condition = manifest.get("status", {}).get("conditions", [{}])[-1]
            if condition.get("type") == "Running":
                return load(folder / "experiment.yaml")
            break
    raise NasError(f"no interrupted run of {path} in {places.home / 'runs'}: leave --resume out to start one")


def _check(store: Store) -> None:
    """Fail before the first trial when the store can't be written or locked."""
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        with files.locked(store.folder / ".lock"):
            files.write(store.folder / ".probe", b"")
            (store.folder / ".probe").unlink()
    except (StoreError, files.LockError) as error:
        raise NasError(str(error)) from error
    except OSError as error:
        raise NasError(explain(error, store.folder)) from error

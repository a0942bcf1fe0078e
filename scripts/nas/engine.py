"""Run a Katib Experiment on this machine: its trials as processes, Katib's rules, the same objects as a record."""

import asyncio
import datetime
import os
import random
import re
import shlex
import signal
import string
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from modelkit import cpus, files

from nas.errors import NasError
from nas.experiment import API_VERSION, Experiment, Manifest, Observation
from nas.progress import Progress, State, Trial, read_trials
from nas.suggest import Suggester

INTERRUPTED = "ExperimentInterrupted"
STOP_GRACE = 60.0  # seconds an early-stopped trial has to offer its model, as Katib gives it
INTERRUPT_GRACE = 10.0
LONGEST_LINE = 2**30  # bytes a trial may print without ending a line, such as a progress bar's
LOG_TAIL = 3  # lines of a failed trial's output that its message quotes


@dataclass(frozen=True)
class Places:
    """Where things are on this machine."""

    root: Path  # the project
    home: Path  # .nas

    @property
    def store(self) -> Path:
        return self.home / "model"

    def run(self, experiment: str) -> Path:
        return self.home / "runs" / experiment


class Search(Progress):
    """One run of an Experiment, new or resumed. `run` drives it; the rest is its state."""

    def __init__(self, experiment: Experiment, places: Places) -> None:
        super().__init__(experiment)
        self.places = places
        self.folder = places.run(experiment.name)
        self.interrupted = 0
        self._running: list[asyncio.subprocess.Process] = []
        self._nameless: list[Trial] = []  # those that ended well and printed something, but not even the metric's name

    def resume(self) -> None:
        """Take over what an interrupted run of the same Experiment recorded. Raises NasError for a broken record."""
        self.trials = read_trials(self.experiment, *recorded_trials(self.folder))

    def run(self, changed: Callable[[Trial], object], first: dict[str, str] | None = None) -> None:
        """Run trials, of `first` before all others, until the Experiment is complete or a signal interrupts it.

        `changed` is called with each trial that began, reported or ended. Raises NasError, OSError.
        """
        earlier = [(trial.assignments, self._told(trial)) for trial in self.trials]
        self._changed, self._suggester = changed, Suggester(self.experiment, earlier, first)
        self._queue, handler = self._to_run(), signal.getsignal(signal.SIGTERM)
        for name in ("trials", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        try:
            with files.locked(self.folder / ".lock", wait=0):
                self._judge()
                self._record()
                asyncio.run(self._all())
                if not self.interrupted and self.state == "Running":
                    self.state, self.reason = "Succeeded", "the search space is exhausted"
                self._record()
        except files.LockError as error:
            raise NasError(f"experiment {self.experiment.name} is already running: {error}") from error
        finally:
            signal.signal(signal.SIGTERM, handler)  # asyncio would leave the system's

    async def _all(self) -> None:
        """Keep as many trials running as may be."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._interrupt, number)
        await asyncio.gather(*(self._one_by_one() for _ in range(self.experiment.parallel)))

    async def _one_by_one(self) -> None:
        while self.state == "Running" and not self.interrupted and (trial := next(self._queue, None)):
            await self._one(trial)

    def _to_run(self) -> Iterator[Trial]:
        """The trials that an interrupted run left unfinished, then new ones; each is settled when its turn comes."""
        yield from [trial for trial in self.trials if trial.state == "Running"]
        while len(self.trials) < self.experiment.max_trials and (assignments := self._suggester.ask()):
            suffix = "".join(random.choices(string.ascii_lowercase + string.digits, k=8))
            rule = self.experiment.rule([t.observation for t in self.trials if t.state == "Succeeded"])
            self.trials.append(Trial(f"{self.experiment.name}-{suffix}", assignments, rule))
            yield self.trials[-1]

    def _interrupt(self, number: int) -> None:
        grace = 0 if self.interrupted else INTERRUPT_GRACE
        self.interrupted = number
        for process in self._running:
            _stop(process, grace)

    async def _one(self, trial: Trial) -> None:
        """A trial to its end; one that crashes starts again as often as `backoffLimit` says."""
        log = self.folder / "logs" / f"{trial.name}.log"
        trial.started = time.time()
        for _ in range(self.experiment.backoff_limit + 1):
            trial.observation, trial.reports = {}, None
            log.write_bytes(b"")
            self._record_trial(trial)
            self._changed(trial)
            status = await self._process(trial, log)
            if self.interrupted and status != 0 and trial.state == "Running":
                return  # stays Running in the record: a resumed run starts it again
            if status == 0 or trial.state != "Running":
                break
        if trial.state == "Running":
            trial.state, trial.message = self._verdict(trial, status, log)
        trial.ended = time.time()
        self._suggester.tell(trial.assignments, self._told(trial))
        self._record_trial(trial)
        self._judge()
        self._record()
        self._changed(trial)

    async def _process(self, trial: Trial, log: Path) -> int:
        """Run a trial once by its supervisor and hear what it prints; the exit status."""
        command, environment = command_line(self.experiment, trial, self.places)
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-I", "-S", str(Path(__file__).with_name("supervise.py")), str(log), command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=image_folder(self.experiment, self.places),
            limit=LONGEST_LINE,
            start_new_session=True,  # the terminal's Ctrl-C reaches this process alone, which then tells the trials
        )
        self._running.append(process)
        if self.interrupted:
            _stop(process, INTERRUPT_GRACE)
        try:
            async with asyncio.timeout(self.experiment.deadline):
                await self._hear(trial, process)
        except TimeoutError:
            if trial.state == "Running":
                trial.state = "Failed"
                trial.message = f"it took longer than activeDeadlineSeconds ({self.experiment.deadline} s)"
        finally:
            if process.returncode is None:  # late, or something here broke
                _stop(process, 0)
                await process.communicate()
            self._running.remove(process)
        return await process.wait()

    async def _hear(self, trial: Trial, process: asyncio.subprocess.Process) -> None:
        """Take in what a trial prints, until its process has ended."""
        assert process.stdout is not None
        async for line in process.stdout:
            if trial.state != "Running":
                continue  # Katib's collector reads no further either
            if self.experiment.metric not in self.experiment.observe(line.decode(errors="replace"), trial.observation):
                continue
            if self.experiment.stops(trial.rule, trial.observation):
                trial.state, trial.message = "EarlyStopped", "below the median of the trials that succeeded"
                _stop(process, STOP_GRACE)
            self._changed(trial)
        await process.wait()

    def _verdict(self, trial: Trial, status: int, log: Path) -> tuple[State, str]:
        text = log.read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        tail = lines[-1:] if lines and "error: " in lines[-1] else lines[-LOG_TAIL:]
        said = f"{' | '.join(tail) or 'it printed nothing'} ({files.shown(log)})"
        if status != 0:
            how = f"killed by signal {status - 128}" if status > 128 else f"exit status {status}"
            return "Failed", f"{how}: {said}"
        if self.value(trial) is None:
            metric, printed = self.experiment.metric, dict.fromkeys(re.findall(r"([\w-]+)\s*=", text))
            if printed and not re.search(rf"\b{re.escape(metric)}\b", text):
                self._nameless.append(trial)
                first, values = self.trials[: self.experiment.parallel], map(self.value, self.trials)
                if all(each in self._nameless for each in first) and all(value is None for value in values):
                    wrong = f"trials print no {metric}, but {', '.join(printed)}"  # no other will: it is mistyped
                    self.state, self.reason = "Failed", f"{wrong}: mend experiment.objective.metric"
            return "MetricsUnavailable", f"it printed no number for {metric}: {said}"
        return "Succeeded", ""

    def _told(self, trial: Trial) -> float | None:
        return None if trial.failed or not trial.ended else self.value(trial)

    def _judge(self) -> None:
        """Katib's order: the goal, then too many failures, then enough trials."""
        failed, done = sum(t.failed for t in self.trials), sum(t.state != "Running" for t in self.trials)
        if self.state != "Running":
            return
        if self.best and self.experiment.reached(self.value(self.best)):
            self.state, self.reason = "Succeeded", "the goal is reached"
        elif failed >= (limit := max(1, self.experiment.max_failed)):
            self.state, self.reason = "Failed", f"too many trials failed (maxFailedTrials is {limit})"
        elif done >= self.experiment.max_trials:
            self.state, self.reason = "Succeeded", "all trials are done"

    # The record, as `kubectl get -o yaml` would show it

    def _record_trial(self, trial: Trial) -> None:
        experiment = self.experiment
        spec: Manifest = {
            "objective": experiment.manifest["spec"]["objective"],
            "parameterAssignments": _pairs(trial.assignments),
            "runSpec": experiment.job(trial.name, trial.assignments),
        }
        if rule := trial.rule:
            comparison = "less" if experiment.maximize else "greater"
            told = {"name": experiment.metric, "value": repr(rule.value), "comparison": comparison}
            spec["earlyStoppingRules"] = [{**told, "startStep": rule.start_step}]
        status: Manifest = {"startTime": _stamp(trial.started), "conditions": [_condition(trial.state, trial.message)]}
        if trial.ended is not None:
            status["completionTime"] = _stamp(trial.ended)
            status["observation"] = _metrics(trial.observation)
        metadata = {"name": trial.name, "labels": {"katib.kubeflow.org/experiment": experiment.name}}
        manifest = {"apiVersion": API_VERSION, "kind": "Trial", "metadata": metadata, "spec": spec, "status": status}
        _write(self.folder / "trials" / f"{trial.name}.yaml", manifest)

    def _record(self) -> None:
        status: Manifest = {"startTime": _stamp(self.started), "trials": len(self.trials)}
        for state, count in Counter(trial.state for trial in self.trials).items():
            status[f"trials{state}" if state != "MetricsUnavailable" else "trialMetricsUnavailable"] = count
        if best := self.best:
            status["currentOptimalTrial"] = {
                "bestTrialName": best.name,
                "parameterAssignments": _pairs(best.assignments),
                "observation": _metrics(best.observation),
            }
        reason = INTERRUPTED if self.interrupted and self.state == "Running" else f"Experiment{self.state}"
        status["conditions"] = [{**_condition(self.state, self.reason), "reason": reason}]
        if self.state != "Running":
            status["completionTime"] = _stamp(time.time())
        _write(self.folder / "experiment.yaml", {**self.experiment.manifest, "status": status})


def _stop(process: asyncio.subprocess.Process, grace: float) -> None:
    """Have a trial's supervisor end it within `grace` seconds; one that is gone hears nothing."""
    assert process.stdin is not None
    process.stdin.write(f"{grace}\n".encode())


def image_folder(experiment: Experiment, places: Places) -> Path:
    """The folder that stands for the trial's image. Raises NasError when there is none."""
    folder = places.root / "images" / experiment.image
    if not folder.is_dir():
        there = sorted(p.name for p in folder.parent.glob("*-trainer"))
        raise NasError(f"image {experiment.image!r} has no folder {folder} to run from; there: {', '.join(there)}")
    return folder


def command_line(experiment: Experiment, trial: Trial, places: Places) -> tuple[str, dict[str, str]]:
    """What `sh -c` gets, and the environment: Katib's unquoted joining of words, with this machine's paths."""
    containers = experiment.job(trial.name, trial.assignments)["spec"]["template"]["spec"]["containers"]
    container = next(c for c in containers if c["name"] == experiment.container["name"])
    paths = {"/app": str(image_folder(experiment, places))}
    paths |= {path: str(places.store) for path in experiment.claim_paths}
    words = [str(word) for word in [*container["command"], *container.get("args", [])]]
    share = str(_share(container, experiment.parallel))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "NAS_CPUS": share,
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), share),
        "NAS_DATA": str(places.home / "data"),
        "PYTHONUNBUFFERED": "1",
    }
    for entry in container.get("env", []):
        if "value" in entry:
            environment[entry["name"]] = _here(str(entry["value"]), paths)
    quoted = {path: shlex.quote(local) for path, local in paths.items()}
    return " ".join(_here(word, quoted) for word in words), environment


def _here(word: str, paths: dict[str, str]) -> str:
    """Replace a path of the image, at the start of a word or of a `--name=` value."""
    known = "|".join(map(re.escape, paths))
    return re.sub(rf"(?<![^=])({known})(?=/|$)", lambda match: paths[match[1]], word)


def _share(container: Manifest, parallel: int) -> int:
    """CPUs for one trial: its limit, or its part of the machine if that is less; at least 1."""
    limit = str(container.get("resources", {}).get("limits", {}).get("cpu", cpus()))
    cores = float(limit[:-1]) / 1000 if limit.endswith("m") else float(limit)
    return max(1, min(int(cores), cpus() // parallel))


def _condition(state: str, message: str) -> Manifest:
    now = _stamp(time.time())
    condition = {"type": state, "status": "True", "lastUpdateTime": now, "lastTransitionTime": now}
    return condition | ({"message": message} if message else {})


def _pairs(assignments: dict[str, str]) -> list[Manifest]:
    return [{"name": name, "value": value} for name, value in assignments.items()]


def _metrics(observation: Observation) -> Manifest:
    metrics = [
        {"name": name, "latest": repr(values[-1]), "min": repr(min(values)), "max": repr(max(values))}
        for name, values in observation.items()
    ]
    return {"metrics": metrics}


def _stamp(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds")


def _write(path: Path, manifest: Manifest) -> None:
    text = yaml.dump(manifest, Dumper=yaml.CSafeDumper, sort_keys=False, width=120)
    files.write(path, text.encode(), durable=False)


def load(path: Path) -> Manifest:
    """An object of the record. Raises NasError when it can't be read."""
    try:
        manifest = yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)
    except (OSError, yaml.YAMLError) as error:
        raise NasError(f"{path} can't be read: {error}") from error
    if not isinstance(manifest, dict) or "spec" not in manifest:
        raise NasError(f"{path} is damaged: remove its folder to forget that run")
    return manifest


def recorded(places: Places) -> Iterator[tuple[Path, Manifest]]:
    """Folders and Experiments of all runs, latest first."""
    for path in sorted((places.home / "runs").glob("*/experiment.yaml"), key=lambda p: -p.stat().st_mtime):
        yield path.parent, load(path)


def recorded_trials(folder: Path) -> tuple[list[Manifest], dict[str, str]]:
    """The Trials of a run and, by their names, what each printed. Raises NasError."""
    printed = {path.stem: path.read_text(errors="replace") for path in (folder / "logs").glob("*.log")}
    return [load(path) for path in (folder / "trials").glob("*.yaml")], printed

"""A search as a person sees it: live on a terminal, plain lines elsewhere, a summary at the end."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator

from modelkit import artifact, files
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Meter
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas.progress import Progress, Trial

QUIET = 10.0  # seconds between plain progress lines of one trial
_COLOURS = {"Running": "cyan", "Succeeded": "green", "EarlyStopped": "yellow"}
_HEAD_LINES = 5  # of the live view, above and below its rows


class View:
    """Shows a search: a context manager around its run."""

    def __init__(self, search: Progress) -> None:
        self.search = search
        self.console = Console(highlight=False)
        self._live: Live | None = None
        self._told: dict[str, str] = {}  # of each trial, by its name

    def __enter__(self) -> "View":
        experiment = self.search.experiment
        most = f", {experiment.epochs} epochs each at most" if experiment.epochs else ""
        stopping = f", {experiment.stopping}" if experiment.stopping else ""
        count = files.count(experiment.max_trials, "trial") if experiment.max_trials else "any number of trials"
        how = f"{experiment.algorithm}{stopping}, {count}, {experiment.parallel} at a time{most}"
        self.note(f"experiment {experiment.name}: {how}")
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._live:
            # The summary of a search that is over has the table again; of an interrupted one, this is the last seen.
            self._live.transient = error is None and self.search.state != "Running"
            self._live.stop()

    def changed(self, trial: Trial) -> None:
        """Tell what is new of a trial: that it began, waits for something or ended, and now and then its value."""
        experiment, waits = self.search.experiment, trial.state == "Running" and trial.message
        if self._live and not waits:
            return  # the table has it
        values, period = trial.observation.get(experiment.metric), int((time.time() - trial.started) / QUIET)
        if trial.ended:
            news, text = "ended", self._outcome(trial)
        elif waits:
            news = text = f"waits: {waits}"
        elif values and period:
            news, text = str(period), f"epoch {self._epoch(trial)}: {experiment.metric} {values[-1]:.4f}"
        else:
            news, text = "started", f"started: {_parameters(trial)}"
        if self._told.get(trial.name) == news:
            return
        self._told[trial.name] = news
        which = f"{self.search.trials.index(trial) + 1}/{experiment.max_trials or '?'}"
        self.note(f"[{_clock(self._elapsed)}] trial {which} {trial.short} {text}")

    def _outcome(self, trial: Trial) -> str:
        value = self.search.value(trial)
        if trial.failed or value is None:
            return f"{trial.state}: {trial.message}"
        best = " (best so far)" if trial is self.search.best else ""
        epochs = trial.epochs(self.search.experiment.metric)
        after = f" after {epochs} epochs" if epochs else ""
        return f"{trial.state}{after}: {self.search.experiment.metric} {value:.4f}{best}{self._remaining()}"

    def note(self, text: str) -> None:
        """Something a person should know now."""
        self.console.print(text, markup=False, soft_wrap=True)

    def summary(
        self, current: artifact.Manifest | None, place: str, commands: list[str], reasons: dict[str, str]
    ) -> None:
        """Trials, the best one, epochs spent, the current model and its place, and what to type next.

        `reasons` tell, by a trial's name, why its model was promoted or not.
        """
        search, experiment = self.search, self.search.experiment
        search.promoted = {current.trial} if current else set()
        self.console.print(self._table(search.trials))
        if best := search.best:
            value = f"{experiment.metric} {search.value(best):.4f}"
            self._line("best", f"{best.short}: {value} with {_parameters(best)}")
        spent = sum(trial.epochs(experiment.metric) for trial in search.trials)
        if most := experiment.epochs * experiment.max_trials:
            self._line("epochs", f"{spent} of at most {most} ({spent / most:.0%})")
        self._line("time", f"{_clock(self._elapsed)}; {search.reason}")
        if current is None:
            return
        fate = f"promoted, of trial {current.trial.rpartition('-')[2]}"
        if current.experiment != experiment.name:
            fate = f"stays: {reasons.get(search.best.name if search.best else '', 'nothing was promoted')}"
        test = f", {current.metrics.test.accuracy:.4f} on the test set" if current.metrics.test else ""
        accuracy = f"accuracy {current.metrics.validation.accuracy:.4f}{test}"
        self._line("model", f"{current.model} {current.digest[:12]} {fate}; {accuracy}")
        self._line("", place)
        if commands:
            self._line("next", f"\n{'':8}".join(commands))

    def _line(self, name: str, text: str) -> None:
        self.console.print(Text(f"{name:7}", "bold").append(f" {text}", "not bold"), soft_wrap=True)

    @property
    def _elapsed(self) -> float:
        return (self.search.ended or time.time()) - self.search.started

    def _epoch(self, trial: Trial) -> str:
        done = trial.epochs(self.search.experiment.metric)
        if trial.ended and not done:
            return ""  # on a cluster, its output is gone
        return f"{done}/{self.search.experiment.epochs or '?'}"

    def _remaining(self) -> str:
        """How long the rest may take, by what the trials so far took."""
        search = self.search
        took = [trial.ended - trial.started for trial in search.trials if trial.ended]
        left = search.experiment.max_trials - len(took)
        if not took or left <= 0 or search.state != "Running":
            return ""
        return f", about {_clock(sum(took) / len(took) * left / search.experiment.parallel)} left"

    def _render(self) -> Group:
        search, best = self.search, self.search.best
        rows = max(3, self.console.height - _HEAD_LINES)
        done = sum(trial.ended is not None for trial in search.trials)
        most = search.experiment.max_trials or None
        head = Text(f"{done}/{most or '?'} trials  {_clock(self._elapsed)}")
        head.append(self._remaining().replace(", about", "  about"))
        if best:
            head.append(f"  best {search.experiment.metric} {search.value(best):.4f} ({best.short})", "bold")
        bar = ProgressBar(total=most, completed=done, width=min(60, self.console.width))
        return Group(self._table(search.trials[-rows:]), head, bar)  # a bar doesn't end its line

    def _table(self, trials: list[Trial]) -> Table:
        experiment = self.search.experiment
        table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
        table.add_column("trial", no_wrap=True)
        for name in (*experiment.space, "epochs", experiment.metric):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("state", no_wrap=True, overflow="ellipsis", ratio=1)  # what the others leave
        best = self.search.best
        for trial in trials:
            value = self.search.value(trial)
            state = Text(trial.state + (" *best*" if trial is best else ""), _COLOURS.get(trial.state, "red"))
            if trial.failed or (trial.state == "Running" and trial.message):
                state.append(f" {trial.message}")
            cells = [trial.short, *(number(trial.assignments[name]) for name in experiment.space), self._epoch(trial)]
            cells.append("" if value is None else f"{value:.4f}")
            table.add_row(*cells, state, style="bold" if trial is best else "")
        return table


def next_commands(manifest: artifact.Manifest, target: str = "") -> list[str]:
    """What a person may want to do with a promoted model; `target` such as ` TARGET=microk8s`."""
    commands = [f"make serve MODEL={manifest.model}{target}"]
    if features := manifest.input.features:
        row = json.dumps([f.values[0] if f.values else round((f.min + f.max) / 2, 1) for f in features])
        header = "-H 'Content-Type: application/json'"
        commands.append(f"curl -X POST localhost:8000/predict/ {header} -d '{row}'")
    elif manifest.input.image:
        commands.append(f"make batch MODEL={manifest.model}{target}")
    return commands


def _parameters(trial: Trial) -> str:
    return " ".join(f"{name}={number(value)}" for name, value in trial.assignments.items())


def number(value: object) -> str:
    """Four digits of a number, whole ones in full; other text as it is, nothing for None."""
    try:
        told = float(str(value))
    except ValueError:
        return str(value or "")
    return str(int(told)) if told.is_integer() and abs(told) >= 2 else f"{told:.4g}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


@contextlib.contextmanager
def meter(name: str) -> Iterator[Callable[[int, int], object]]:
    """Progress of something counted in bytes: a function that takes those there are and those in all."""
    console = Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Meter(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

"""A search as a person sees it: live on a terminal, plain lines elsewhere, a summary at the end."""

import time
from pathlib import Path

from modelkit import artifact
from modelkit.store import Store
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas.engine import Search, Trial

QUIET = 10.0  # seconds between plain progress lines of one trial
_COLOURS = {"Running": "cyan", "Succeeded": "green", "EarlyStopped": "yellow"}
_HEAD_LINES = 5  # of the live view, above and below its rows


class View:
    """Watches a search: a context manager around `search.run()`. `search` is set before the first event."""

    search: Search

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._spoke: dict[str, float] = {}

    def __enter__(self) -> "View":
        experiment = self.search.experiment
        most = f", {self._per_trial} epochs each at most" if self._per_trial else ""
        stopping = f", {experiment.stopping}" if experiment.stopping else ""
        self.console.print(
            f"experiment {experiment.name}: {experiment.algorithm}{stopping}, {experiment.max_trials} trials, "
            f"{experiment.parallel} at a time{most}",
            soft_wrap=True,
        )
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, trial: Trial) -> None:
        self._say(trial, f"started: {_parameters(trial)}")

    def reported(self, trial: Trial) -> None:
        if time.time() - self._spoke.get(trial.name, trial.started) >= QUIET:
            values = trial.observation.values[self.search.experiment.metric]
            self._say(trial, f"epoch {self._epoch(trial)}: {self.search.experiment.metric} {values[-1]:.4f}")

    def ended(self, trial: Trial) -> None:
        value = self.search.experiment.value(trial.observation)
        if trial.failed or value is None:
            self._say(trial, f"{trial.state}: {trial.message}")
            return
        best = " (best so far)" if trial is self.search.best else ""
        epochs = trial.epochs(self.search.experiment.metric)
        text = f"{trial.state} after {epochs} epochs: {self.search.experiment.metric} {value:.4f}{best}"
        self._say(trial, f"{text}{self._remaining()}")

    def summary(self, store: Store) -> None:
        """Trials, the best one, epochs spent, where the model is, and what to type next."""
        search, experiment = self.search, self.search.experiment
        self.console.print(self._table(search.trials))
        if best := search.best:
            value = experiment.value(best.observation)
            self._line("best", f"{_short(best)}: {experiment.metric} {value:.4f} with {_parameters(best)}")
        spent = sum(trial.epochs(experiment.metric) for trial in search.trials)
        if most := experiment.most_epochs:
            self._line("epochs", f"{spent} of at most {most} ({spent / most:.0%})")
        self._line("time", f"{_clock(time.time() - search.started)}; {search.reason}")
        current = store.current()
        if current is None:
            return
        manifest = store.load().manifest
        fate = "promoted" if manifest.experiment == experiment.name else "still the best: nothing was promoted"
        test = f", {manifest.metrics.test.accuracy:.4f} on the test set" if manifest.metrics.test else ""
        accuracy = f"accuracy {manifest.metrics.validation.accuracy:.4f}{test}"
        self._line("model", f"{store.model} {current[:12]} {fate} ({accuracy})")
        self._line("", _shown(store.version(current)))
        for index, command in enumerate(_next_commands(store.model, manifest)):
            self._line("next" if index == 0 else "", command)

    def _line(self, name: str, text: str) -> None:
        self.console.print(Text(f"{name:7}", "bold").append(f" {text}", "not bold"), soft_wrap=True)

    def _say(self, trial: Trial, text: str) -> None:
        if self._live:
            return
        self._spoke[trial.name] = time.time()
        number = self.search.trials.index(trial) + 1
        elapsed = _clock(time.time() - self.search.started)
        of = self.search.experiment.max_trials
        self.console.print(f"[{elapsed}] trial {number}/{of} {_short(trial)} {text}", markup=False, soft_wrap=True)

    @property
    def _per_trial(self) -> int | None:
        most = self.search.experiment.most_epochs
        return most // self.search.experiment.max_trials if most else None

    def _epoch(self, trial: Trial) -> str:
        done = trial.epochs(self.search.experiment.metric)
        return f"{done}/{self._per_trial}" if self._per_trial else str(done)

    def _remaining(self) -> str:
        """How long the rest may take, by what the trials so far took."""
        search = self.search
        took = [trial.ended - trial.started for trial in search.trials if trial.ended]
        left = search.experiment.max_trials - len(took)
        if not took or not left or search.state != "Running":
            return ""
        return f", about {_clock(sum(took) / len(took) * left / search.experiment.parallel)} left"

    def _render(self) -> Group:
        search = self.search
        trials = list(search.trials)
        rows = max(3, self.console.height - _HEAD_LINES)
        done = sum(trial.ended is not None for trial in trials)
        best = search.best
        value = search.experiment.value(best.observation) if best else None
        head = Text(f"{done}/{search.experiment.max_trials} trials  {_clock(time.time() - search.started)}")
        head.append(self._remaining().replace(", about", "  about"))
        if best and value is not None:
            head.append(f"  best {search.experiment.metric} {value:.4f} ({_short(best)})", "bold")
        bar = ProgressBar(total=search.experiment.max_trials, completed=done, width=min(60, self.console.width))
        return Group(self._table(trials[-rows:]), bar, head)

    def _table(self, trials: list[Trial]) -> Table:
        experiment = self.search.experiment
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("trial", no_wrap=True)
        for parameter in experiment.parameters:
            table.add_column(parameter.name, justify="right", no_wrap=True)
        table.add_column("epochs", justify="right", no_wrap=True)
        table.add_column(experiment.metric, justify="right", no_wrap=True)
        table.add_column("state", no_wrap=True, overflow="ellipsis")
        best = self.search.best
        for trial in trials:
            value = experiment.value(trial.observation)
            colour = _COLOURS.get(trial.state, "red")
            state = Text(trial.state + (" *best*" if trial is best else ""), colour)
            if trial.failed:
                state.append(f" {trial.message}")
            cells = [_number(trial.assignments[p.name]) for p in experiment.parameters]
            shown = "" if value is None else f"{value:.4f}"
            style = "bold" if trial is best else ""
            table.add_row(_short(trial), *cells, self._epoch(trial), shown, state, style=style)
        return table


def _next_commands(model: str, manifest: artifact.Manifest) -> list[str]:
    commands = [f"make serve MODEL={model}"]
    if features := manifest.input.features:
        row = ",".join(f"{(feature.min + feature.max) / 2:.1f}" for feature in features)
        header = "-H 'Content-Type: application/json'"
        commands.append(f"curl -X POST localhost:8000/predict/ {header} -d '[{row}]'")
    else:
        commands.append(f"make batch MODEL={model}")
    return commands


def _shown(path: Path) -> str:
    """A path as a person in this folder would type it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _short(trial: Trial) -> str:
    return trial.name.rsplit("-", 1)[-1]


def _parameters(trial: Trial) -> str:
    return " ".join(f"{name}={_number(value)}" for name, value in trial.assignments.items())


def _number(text: str) -> str:
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"

"""A search's history as one HTML page that needs no network, or as Markdown: page.html and page.md, filled."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import numpy as np
import optuna.visualization
import plotly.graph_objects as go
from markupsafe import Markup
from modelkit import files
from modelkit.artifact import Metrics, Mistake
from PIL import Image
from plotly.offline import get_plotlyjs

from nas.progress import Trial
from nas.report.history import History, trial_seconds
from nas.view import number

COLOURS = {"Succeeded": "#5b8def", "EarlyStopped": "#e0a030", "best": "#2fa36b", "other": "#9aa0a6"}
LEGEND = {"best": "best", "others": "Succeeded", "✕ stopped between trials": "EarlyStopped", "failed": "other"}
CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": False}
CLEAR = "rgba(0,0,0,0)"
GRID = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}


def write(history: History, form: str, output: Path | None, folder: Path) -> None:
    """Write the report of a search as html, md or json to `output` ("-": print it), else into `folder`.

    Raises OSError.
    """
    text = msgspec.json.encode(history.facts()).decode() + "\n" if form == "json" else page(history, form)
    if str(output) == "-":
        print(text, end="")
        return
    target = output or folder / f"{history.experiment.name}.{form}"
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write(target, text.encode(), durable=False)
    how = f"\nopen it   {target.absolute().as_uri()} in a browser" if form == "html" else ""
    print(f"report    {files.shown(target)}{how}")


def page(history: History, form: str) -> str:
    """The report as `html`, or as `md` without its pictures."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=form == "html", trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["number"] = number
    shown: dict[str, Any] = {"history": history, "sentence": _sentence(history), "tables": _tables(history)}
    if form == "html":
        figures = {"curves": _curves, "progress": _progress, "parallel": _parallel}
        shown["figures"] = {name: Markup(draw(history)) for name, draw in figures.items()}
        shown |= {"plotly": Markup(get_plotlyjs()), "legend": [(text, COLOURS[key]) for text, key in LEGEND.items()]}
        wrong = np.array(history.evaluation.confusion or [[0]])
        shown |= {"pictures": _pictures(history), "worst": max(1, (wrong - np.diag(np.diag(wrong))).max())}
        shown["estimator"] = _estimator(history)
    return environment.get_template(f"page.{form}").render(shown)


def _estimator(history: History) -> str:
    estimator = history.manifest.metrics.validation.estimator if history.manifest else ""
    return {"cv": "by cross-validation", "holdout": "on the validation split"}.get(estimator, "in validation")


def _sentence(history: History) -> str:
    experiment, best = history.experiment, history.best
    stopping = f" with {experiment.stopping}" if experiment.stopping else ""
    reason = f" ({history.reason})" if history.reason else ""
    told = f"{experiment.algorithm}{stopping}, {files.count(len(history.trials), 'trial')}: {history.state}{reason}."
    if not best:
        return f"{told} No trial has a value."
    scores = history.manifest.metrics.test if history.manifest else None
    test = f", {scores.accuracy:.4f} on {scores.rows} test rows" if scores else ""
    return f"{told} Best: {experiment.metric} {history.value(best):.4f}, {_estimator(history)}{test}."


def _tables(history: History) -> dict[str, list[list[Any]]]:
    """What both forms show as tables, each as its head and rows."""
    spent, manifest, names = history.spent(), history.manifest, list(history.trials[0].assignments)
    limit = f" of at most {spent['epochs_limit']}" if spent["epochs_limit"] else ""
    classes = manifest.classes if manifest else []
    features = [feature.name for feature in manifest.input.features or []] if manifest else []
    return {
        "cost": [
            ["", "epochs", "trials' seconds"],
            ["spent", f"{spent['epochs']}{limit}", spent["trial_seconds"]],
            ["saved between trials, against the mean of those not stopped", spent["epochs_saved_between_trials"], ""],
            ["saved within trials by patience, against the last epoch", spent["epochs_saved_within_trials"], ""],
            ["saved together", "", spent["trial_seconds_saved"]],
        ],
        "lineage": [
            ["model", "made", "accuracy", "test", "trial", "why"],
            *([m.digest[:12], m.created[:19], *_accuracies(m.metrics), m.trial, why] for m, why in history.lineage()),
        ],
        "mistakes": [
            ["true", "predicted", "probability", *features],
            *(
                [classes[m.label], classes[m.predicted], f"{m.probability:.0%}"]
                + [number(value) for value in m.row[: len(features)]]
                for m in history.evaluation.mistakes
            ),
        ],
        "trials": [
            ["trial", "state", history.experiment.metric, "epochs", "seconds", *names, ""],
            *(
                [t.short, t.state, number(history.value(t)), len(history.values(t)), trial_seconds(t) or ""]
                + [number(t.assignments.get(name)) for name in names]
                + [t.message]
                for t in history.trials
            ),
        ],
    }


def _accuracies(metrics: Metrics) -> list[str]:
    return [number(scores and scores.accuracy) for scores in (metrics.validation, metrics.test)]


def _pictures(history: History) -> list[str]:
    """What the model took for something else, if it takes images."""
    shape = history.manifest.input.image if history.manifest else None
    return [picture(mistake, shape) for mistake in history.evaluation.mistakes] if shape else []


def picture(mistake: Mistake, shape: list[int]) -> str:
    """A greyscale image [height, width] as a PNG in a data: address."""
    file = io.BytesIO()
    Image.fromarray(np.array(mistake.row, np.uint8).reshape(shape)).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


# Figures


def _figure(figure: Any, height: int = 340, **layout: Any) -> str:
    figure.update_layout(template="none", height=height, title=None, margin={"l": 55, "r": 20, "t": 20, "b": 45})
    figure.update_layout(paper_bgcolor=CLEAR, plot_bgcolor=CLEAR, hovermode="closest", showlegend=False, **layout)
    figure.update_layout(font={"family": "system-ui, sans-serif", "size": 13})
    figure.update_xaxes(GRID).update_yaxes(GRID, automargin=True)
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG))


def _hover(trial: Trial) -> str:
    parameters = "<br>".join(f"{name} {number(value)}" for name, value in trial.assignments.items())
    return f"<b>{trial.short}</b> {trial.state}<br>{parameters}"


def _curves(history: History) -> str:
    figure = go.Figure()
    # The best one last, so that it lies on top.
    for trial in sorted(history.trials, key=lambda trial: trial is history.best):
        values, best = history.values(trial), trial is history.best
        colour = COLOURS["best"] if best else COLOURS.get(trial.state, COLOURS["other"])
        end = 9 if trial.state == "EarlyStopped" else 0
        figure.add_scatter(
            x=[*range(1, len(values) + 1)],
            y=values,
            mode="lines+markers",
            line={"color": colour, "width": 3 if best else 1.5},
            marker={"symbol": "x", "color": colour, "size": [0] * (len(values) - 1) + [end], "line_width": 0},
            hovertemplate=f"epoch %{{x}}: %{{y:.4f}}<br>{_hover(trial)}<extra></extra>",
        )
    return _figure(figure, xaxis_title="epoch", yaxis_title=history.experiment.metric)


def _progress(history: History) -> str:
    """The best value so far, by the epochs all trials together had spent when each trial ended."""
    experiment = history.experiment
    ended = sorted((t for t in history.trials if t.ended), key=lambda trial: trial.ended or 0.0)
    spent = np.cumsum([len(history.values(trial)) for trial in ended])
    values = np.array([None if trial.failed else history.value(trial) for trial in ended], float)
    best = (np.fmax if experiment.maximize else np.fmin).accumulate(values)
    figure = go.Figure().add_scatter(x=spent, y=best, mode="lines", line={"shape": "hv", "color": COLOURS["best"]})
    figure.add_scatter(
        x=spent,
        y=values,
        mode="markers",
        marker={"color": COLOURS["Succeeded"], "size": 7},
        text=[_hover(trial) for trial in ended],
        hovertemplate="%{x} epochs: %{y:.4f}<br>%{text}<extra></extra>",
    )
    if experiment.goal is not None:
        figure.add_hline(experiment.goal, line_dash="dot", line_color=COLOURS["other"], annotation_text="goal")
    return _figure(figure, xaxis_title="epochs spent, all trials", yaxis_title=f"best {experiment.metric}")


def _parallel(history: History) -> str:
    figure = optuna.visualization.plot_parallel_coordinate(history.study, target_name=history.experiment.metric)
    figure.for_each_trace(lambda trace: trace.update(opacity=0.8, line_width=2), selector={"mode": "lines"})
    figure.update_traces(marker_showscale=False, selector={"mode": "markers"})  # the first axis says it too
    # The axes' numbers stay readable where lines cross them.
    return _figure(figure.update_annotations(bgcolor="rgba(255,255,255,.8)"), height=400, xaxis_automargin=True)

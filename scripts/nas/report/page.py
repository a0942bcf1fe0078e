"""A search's history as one HTML page that needs no network, or as Markdown: page.html and page.md, filled."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import optuna.visualization
import plotly.graph_objects as go
from markupsafe import Markup
from modelkit.artifact import Mistake
from PIL import Image
from plotly.offline import get_plotlyjs

from nas.progress import Trial
from nas.report.history import History
from nas.view import number

COLOURS = {"Succeeded": "#5b8def", "EarlyStopped": "#e0a030", "best": "#2fa36b", "other": "#9aa0a6"}
LEGEND = {"best": "best", "others": "Succeeded", "✕ stopped between trials": "EarlyStopped", "failed": "other"}
CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": False}
CLEAR = "rgba(0,0,0,0)"
GRID = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}


def page(history: History, form: str) -> str:
    """The report as `html`, or as `md` without its pictures."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True)
    environment.autoescape, environment.keep_trailing_newline = form == "html", True
    environment.filters["number"] = number
    facts = history.facts()
    shown: dict[str, Any] = {**facts, **_tables(facts), "sentence": _sentence(facts)}
    if form == "html":
        figures = {"curves": _curves, "progress": _progress, "parallel": _parallel, "importance": _importance}
        shown["figures"] = {name: Markup(draw(history)) for name, draw in figures.items()}
        shown |= {"plotly": Markup(get_plotlyjs()), "legend": [(text, COLOURS[key]) for text, key in LEGEND.items()]}
        shown |= _mistakes(history)
    return environment.get_template(f"page.{form}").render(shown)


def _sentence(facts: dict[str, Any]) -> str:
    best, metric = facts["best"], facts["objective"]["metric"]
    stopping = f" with {facts['early_stopping']}" if facts["early_stopping"] else ""
    reason = f" ({facts['reason']})" if facts["reason"] else ""
    told = f"{facts['algorithm']}{stopping}, {len(facts['trials'])} trials: {facts['state']}{reason}."
    if not best:
        return f"{told} No trial came to an end yet."
    test = f", {best['test_accuracy']:.4f} on {best['test_rows']} test rows" if best["test_rows"] else ""
    return f"{told} Best: {metric} {best[metric]:.4f}, {facts['estimator']}{test}."


def _tables(facts: dict[str, Any]) -> dict[str, list[Any]]:
    """Heads and rows of what both forms show."""
    spent, metric, names = facts["spent"], facts["objective"]["metric"], list(facts["trials"][0]["parameters"])
    limit = f" of at most {spent['epochs_limit']}" if spent["epochs_limit"] else ""
    return {
        "cost": [
            ["spent", f"{spent['epochs']}{limit}", spent["trial_seconds"]],
            ["saved between trials, against the mean of those not stopped", spent["epochs_saved_between_trials"], ""],
            ["saved within trials by patience, against the last epoch", spent["epochs_saved_within_trials"], ""],
            ["saved together", "", spent["trial_seconds_saved"]],
        ],
        "lineage_head": ["model", "made", "accuracy", "test", "trial", "why"],
        "lineage_rows": [
            [r["digest"][:12], r["created"], number(r["accuracy"]), number(r["test_accuracy"]), r["trial"], r["why"]]
            for r in facts["lineage"]
        ],
        "trials_head": ["trial", "state", metric, "epochs", "seconds", *names, ""],
        "trials_rows": [
            [t["trial"].rsplit("-", 1)[-1], t["state"], number(t[metric]), t["epochs"], t["seconds"] or ""]
            + [number(t["parameters"].get(name)) for name in names]
            + [t["message"]]
            for t in facts["trials"]
        ],
    }


def _mistakes(history: History) -> dict[str, Any]:
    """The surest mistakes: of images, pictures; of a table, rows. And how dark the confusion's cells are drawn."""
    if not history.evaluation or not history.manifest:
        return {}
    takes, mistakes = history.manifest.input, history.evaluation.mistakes
    wrong = np.array(history.evaluation.confusion)
    np.fill_diagonal(wrong, 0)
    return {
        "mistakes": mistakes,
        "pictures": [picture(mistake, takes.image) for mistake in mistakes] if takes.image else [],
        "features": [f.name for f in takes.features or []] or [*range(len(mistakes[0].row) if mistakes else 0)],
        "worst": max(1, wrong.max()),
    }


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
    if len(history.finished) < 2:
        return ""
    figure = optuna.visualization.plot_parallel_coordinate(history.study, target_name=history.experiment.metric)
    figure.for_each_trace(lambda trace: trace.update(opacity=0.8, line_width=2), selector={"mode": "lines"})
    figure.update_traces(marker_showscale=False, selector={"mode": "markers"})  # the first axis says it too
    return _figure(figure, height=400, xaxis_automargin=True)


def _importance(history: History) -> str:
    if not history.importance:
        return ""
    names, shares = zip(*reversed(history.importance.items()), strict=True)
    bars = go.Bar(x=shares, y=names, orientation="h", texttemplate="%{x:.0%}", marker_color=COLOURS["Succeeded"])
    title = f"share in how {history.experiment.metric} varies (fANOVA)"
    axis = {"title": title, "range": [0, 1.08], "tickformat": ".0%"}
    return _figure(go.Figure(bars), height=120 + 36 * len(names), xaxis=axis)

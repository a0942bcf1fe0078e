"""A search's history as one HTML page that needs no network, or as Markdown."""

import base64
import html
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import optuna.visualization
import plotly.graph_objects as go
from modelkit.artifact import Array, Input, Mistake
from plotly.offline import get_plotlyjs

from nas.progress import Trial
from nas.report.history import History

COLOURS = {"Succeeded": "#5b8def", "EarlyStopped": "#e0a030", "best": "#2fa36b", "other": "#9aa0a6"}
CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": False}


def page(history: History) -> str:
    """The report as HTML; its only script is Plotly's, and the one that tells it whether the page is dark."""
    facts = history.facts()
    sections = [
        ("Best trial", _best(facts)),
        ("Learning curves", _figure(_curves(history)) + _legend()),
        (f"{facts['objective']['metric'].capitalize()} against epochs spent", _figure(_progress(history))),
        ("Parameters", _parallel(history)),
        ("What mattered", _importance(facts)),
        ("Cost", _table(_cost(facts), "wrap")),
        ("Confusion on the test set", _confusion(facts)),
        ("Surest mistakes on the test set", _mistakes(history)),
        ("Lineage", _table(_lineage(facts))),
        ("Trials", _table(_trials(facts))),
        ("The same model again", _reproduce(facts)),
    ]
    body = "\n".join(
        f"<section><h2>{html.escape(title)}</h2>{text}</section>" for title, text in sections if text.strip()
    )
    template = Template(Path(__file__).with_name("page.html").read_text())
    title, sentence = html.escape(facts["experiment"]), html.escape(_sentence(facts))
    return template.substitute(title=title, sentence=sentence, plotly=get_plotlyjs(), body=body)


def markdown(history: History) -> str:
    """The report's numbers as Markdown, without its pictures."""
    facts = history.facts()
    parts = [f"# {facts['experiment']}", _sentence(facts)]
    for title, rows in (("Cost", _cost(facts)), ("Lineage", _lineage(facts)), ("Trials", _trials(facts))):
        if len(rows) > 1:
            head, *rest = ([str(cell).replace("|", "\\|") for cell in row] for row in rows)
            lines = [head, ["---"] * len(head), *rest]
            parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    if shares := facts["importance"]:
        parts.append("## What mattered\n\n" + "\n".join(f"- {name}: {share:.0%}" for name, share in shares.items()))
    if facts["best"] and facts["best"]["reproduce"]:
        parts.append(f"## The same model again\n\n    {facts['best']['reproduce']}")
    return "\n\n".join(parts) + "\n"


def _sentence(facts: dict[str, Any]) -> str:
    best, metric = facts["best"], facts["objective"]["metric"]
    stopping = f" with {facts['early_stopping']}" if facts["early_stopping"] else ""
    reason = f" ({facts['reason']})" if facts["reason"] else ""
    told = f"{facts['algorithm']}{stopping}, {len(facts['trials'])} trials: {facts['state']}{reason}."
    if not best:
        return f"{told} No trial came to an end yet."
    test = f", {best['test_accuracy']:.4f} on {best['test_rows']} test rows" if best["test_rows"] else ""
    return f"{told} Best: {metric} {best[metric]:.4f} on the validation split{test}."


# Tables: rows of cells, the first one their heads


def _cost(facts: dict[str, Any]) -> list[list[Any]]:
    spent = facts["spent"]
    limit = f" of at most {spent['epochs_limit']}" if spent["epochs_limit"] else ""
    return [
        ["", "epochs", "trials' seconds"],
        ["spent", f"{spent['epochs']}{limit}", spent["trial_seconds"]],
        ["saved between trials, against the mean of those not stopped", spent["epochs_saved_between_trials"], ""],
        ["saved within trials by patience, against the last epoch", spent["epochs_saved_within_trials"], ""],
        ["saved together", "", spent["trial_seconds_saved"]],
    ]


def _lineage(facts: dict[str, Any]) -> list[list[Any]]:
    head = ["model", "made", "accuracy", "test", "trial", "why"]
    rows = [
        [r["digest"][:12], r["created"], _number(r["accuracy"]), _number(r["test_accuracy"]), r["trial"], r["why"]]
        for r in facts["lineage"]
    ]
    return [head, *rows]


def _trials(facts: dict[str, Any]) -> list[list[Any]]:
    metric, names = facts["objective"]["metric"], list(facts["trials"][0]["parameters"])
    rows = [
        [t["trial"].rsplit("-", 1)[-1], t["state"], _number(t[metric]), t["epochs"], t["seconds"] or ""]
        + [_number(t["parameters"].get(name)) for name in names]
        + [t["message"]]
        for t in facts["trials"]
    ]
    return [["trial", "state", metric, "epochs", "seconds", *names, ""], *rows]


def _number(value: Any) -> str:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value or "")
    return str(int(number)) if number == int(number) and abs(number) >= 2 else f"{number:.4g}"


def _table(rows: list[list[Any]], style: str = "") -> str:
    if len(rows) < 2:
        return ""
    head, *rest = ([html.escape(str(cell)) for cell in row] for row in rows)
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rest]
    heads = "".join(f"<th>{cell}</th>" for cell in head)
    return f'<div class="wide"><table class="{style}"><tr>{heads}</tr>{"".join(lines)}</table></div>'


def _best(facts: dict[str, Any]) -> str:
    best = facts["best"]
    if not best:
        return "<p>No trial came to an end yet.</p>"
    metric = facts["objective"]["metric"]
    cards = [(f"{metric}, validation", f"{best[metric]:.4f}")]
    if best["test_rows"]:
        cards.append((f"accuracy, {best['test_rows']} test rows", f"{best['test_accuracy']:.4f}"))
    cards += [("epoch kept", best["epoch"] or "")] + [(k, _number(v)) for k, v in best["parameters"].items()]
    cells = "".join(
        f"<div><b>{html.escape(str(value))}</b><span>{html.escape(name)}</span></div>" for name, value in cards
    )
    digest = f" · model <code>{best['digest'][:12]}</code>" if best["digest"] else ""
    return f'<div class="cards">{cells}</div><p><code>{html.escape(best["trial"])}</code>{digest}</p>'


def _reproduce(facts: dict[str, Any]) -> str:
    if not facts["best"] or not facts["best"]["reproduce"]:
        return ""
    command = html.escape(facts["best"]["reproduce"])
    text = "On the same machine, with the same libraries, this writes the same file into <code>reproduced/</code>."
    return f"<pre>{command}</pre><p>{text}</p>"


# Figures


def _figure(figure: Any, height: int = 340) -> str:
    figure.update_layout(
        template="none",
        height=height,
        title=None,
        margin={"l": 55, "r": 20, "t": 20, "b": 45},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,.25)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,.25)", zeroline=False, automargin=True)
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG))


def _hover(trial: Trial) -> str:
    parameters = "<br>".join(f"{name} {_number(value)}" for name, value in trial.assignments.items())
    return f"<b>{trial.name.rsplit('-', 1)[-1]}</b> {trial.state}<br>{parameters}"


def _curves(history: History) -> Any:
    figure = go.Figure()
    # The best one last, so that it lies on top.
    for trial in sorted(history.trials, key=lambda trial: trial is history.best):
        values, best = history.values(trial), trial is history.best
        colour = COLOURS["best"] if best else COLOURS.get(trial.state, COLOURS["other"])
        line = go.Scatter(x=[*range(1, len(values) + 1)], y=values, mode="lines", showlegend=False)
        line.update(line={"color": colour, "width": 3 if best else 1.5}, opacity=1 if best else 0.75)
        line.update(hovertemplate=f"epoch %{{x}}: %{{y:.4f}}<br>{_hover(trial)}<extra></extra>")
        figure.add_trace(line)
        if trial.state == "EarlyStopped" and values:
            end = go.Scatter(x=[len(values)], y=values[-1:], mode="markers", showlegend=False, hoverinfo="skip")
            figure.add_trace(end.update(marker={"symbol": "x", "size": 9, "color": colour}))
    figure.update_layout(hovermode="closest")
    return figure.update_xaxes(title="epoch").update_yaxes(title=history.experiment.metric)


def _legend() -> str:
    words = (
        ("best", "best"),
        ("Succeeded", "others"),
        ("EarlyStopped", "✕ stopped between trials"),
        ("other", "failed"),
    )
    return (
        '<p class="legend">'
        + " ".join(f'<span><i style="background:{COLOURS[key]}"></i>{text}</span>' for key, text in words)
        + "</p>"
    )


def _progress(history: History) -> Any:
    """The best value so far, by the epochs all trials together had spent when each trial ended."""
    spent, best = 0, None
    x, y, dots, texts = [0], [None], [], []
    for trial in sorted((t for t in history.trials if t.ended), key=lambda trial: trial.ended or 0.0):
        spent += len(history.values(trial))
        value = history.value(trial)
        if value is not None and not trial.failed:
            best = value if history.experiment.better(value, best) else best
            dots.append((spent, value))
            texts.append(_hover(trial))
        x.append(spent)
        y.append(best)  # type: ignore[arg-type]
    figure = go.Figure()
    figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line={"shape": "hv", "color": COLOURS["best"], "width": 2.5}))
    figure.add_trace(go.Scatter(x=[d[0] for d in dots], y=[d[1] for d in dots], mode="markers", text=texts))
    figure.data[1].update(marker={"color": COLOURS["Succeeded"], "size": 7})
    figure.data[1].update(hovertemplate="%{x} epochs: %{y:.4f}<br>%{text}<extra></extra>")
    if history.experiment.goal is not None:
        figure.add_hline(history.experiment.goal, line_dash="dot", line_color=COLOURS["other"], annotation_text="goal")
    figure.update_layout(showlegend=False)
    return figure.update_xaxes(title="epochs spent, all trials").update_yaxes(title=f"best {history.experiment.metric}")


def _parallel(history: History) -> str:
    if len(history.ranked) < 2:
        return ""
    metric = history.experiment.metric
    figure = optuna.visualization.plot_parallel_coordinate(history.study(), target_name=metric)
    figure.for_each_trace(lambda trace: trace.update(opacity=0.8, line_width=2), selector={"mode": "lines"})
    figure.update_traces(marker_showscale=False, selector={"mode": "markers"})  # the first axis says it too

    text = _figure(figure.update_layout(xaxis_automargin=True), height=400)
    return f'<div class="wide"><div class="least">{text}</div></div>'


def _importance(facts: dict[str, Any]) -> str:
    shares = facts["importance"]
    if not shares:
        return "<p>Too few trials to tell.</p>"
    names = list(reversed(shares))
    bars = go.Bar(y=names, x=[shares[name] for name in names], orientation="h", marker_color=COLOURS["Succeeded"])
    bars.update(
        text=[f"{shares[name]:.0%}" for name in names], textposition="outside", cliponaxis=False, hoverinfo="skip"
    )
    metric = facts["objective"]["metric"]
    figure = go.Figure(bars).update_xaxes(
        title=f"share in how {metric} varies (fANOVA)", range=[0, 1.08], tickformat=".0%"
    )
    return _figure(figure, height=120 + 36 * len(names))


def _confusion(facts: dict[str, Any]) -> str:
    if not facts["confusion"]:
        return "<p>Not there: the best trial kept no evaluation, or its folder was removed.</p>"
    counts, classes = np.array(facts["confusion"]), facts["classes"]
    shown = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    np.fill_diagonal(shown, np.nan)  # the mistakes are what one looks for; right answers keep their number
    heat = go.Heatmap(z=shown, x=classes, y=classes, text=counts, texttemplate="%{text}", showscale=False)
    heat.update(
        colorscale=[[0, "rgba(224,96,48,0)"], [1, "rgba(224,96,48,.85)"]], zmin=0, zmax=float(np.nanmax(shown)) or 1
    )
    heat.update(xgap=1, ygap=1)
    heat.update(
        textfont_color="#8a8f98", hovertemplate="%{y} taken for %{x}: %{text}<extra></extra>", hoverongaps=False
    )
    figure = go.Figure(heat)
    for index, name in enumerate(classes):
        figure.add_annotation(x=name, y=name, text=f"<b>{counts[index][index]}</b>", showarrow=False)
    figure.update_xaxes(title="predicted", type="category", showgrid=False)
    figure.update_yaxes(title="true", type="category", autorange="reversed", showgrid=False)
    return _figure(figure, height=160 + 28 * len(classes))


def _mistakes(history: History) -> str:
    if not history.evaluation or not history.manifest:
        return ""
    takes, classes = history.manifest.input, history.manifest.classes
    mistakes = history.evaluation.mistakes
    if not mistakes:
        return "<p>None: every test row is right.</p>"
    if takes.image:
        figures = "".join(_picture(mistake, takes, classes) for mistake in mistakes)
        return f'<div class="mistakes">{figures}</div>'
    names = [feature.name for feature in takes.features or []] or [str(i) for i in range(len(mistakes[0].row))]
    rows = [[classes[m.label], f"{classes[m.predicted]} ({m.probability:.0%})", *map(_number, m.row)] for m in mistakes]
    return _table([["true", "predicted", *names], *rows])


def _picture(mistake: Mistake, takes: Input, classes: list[str]) -> str:
    assert takes.image
    pixels = np.array(mistake.row, np.uint8).reshape(takes.image)
    source = base64.b64encode(png(pixels)).decode()
    true, predicted = html.escape(classes[mistake.label]), html.escape(classes[mistake.predicted])
    text = f"{true} taken for {predicted}"
    image = f'<img src="data:image/png;base64,{source}" alt="{text}" width="84" height="84">'
    return f"<figure>{image}<figcaption>{true} → <b>{predicted}</b> {mistake.probability:.0%}</figcaption></figure>"


def png(pixels: Array) -> bytes:
    """A greyscale PNG of uint8 [height, width]."""

    def chunks() -> Iterator[bytes]:
        height, width = pixels.shape
        lines = np.pad(pixels, ((0, 0), (1, 0))).tobytes()  # each line begins with its filter: none
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
            yield struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks())

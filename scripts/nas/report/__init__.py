"""A search as a report: what was tried, what came out, what it cost, and what the best model still gets wrong."""

import json
from pathlib import Path

from modelkit import files

from nas.report.history import History, Source


def write(source: Source, form: str, output: Path | None, folder: Path) -> None:
    """Write the report of a search as html, md or json to `output` ("-": print it), else into `folder`.

    Raises NasError when there is nothing to tell, OSError.
    """
    from nas.report import page  # its libraries take a second to import

    history = History(source)
    text = json.dumps(history.facts(), indent=2) + "\n" if form == "json" else page.page(history, form)
    if str(output) == "-":
        print(text, end="")
        return
    target = output or folder / f"{history.experiment.name}.{form}"
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write(target, text.encode(), durable=False)
    print(f"report    {target}")

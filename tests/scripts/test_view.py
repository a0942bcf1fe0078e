"""What a person sees of a search as it goes, and is told at its end."""

import io
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from modelkit.artifact import Feature
from nas.experiment import Experiment
from nas.progress import Progress, Trial
from nas.view import View, next_commands
from rich.console import Console

ERASED = "\x1b[2K"
Manifest = Callable[..., dict[str, Any]]


@pytest.fixture
def search(manifest: Manifest) -> Progress:
    """A search of whose twelve trials one is done."""
    made = Progress(Experiment(manifest(maxTrialCount=12)))
    made.started -= 150
    made.trials = [Trial("toy-abcdefgh", {"value": "0.0123"}, None, "Succeeded", observation={"accuracy": [0.5, 0.75]})]
    made.trials[0].started = made.started
    made.trials[0].ended = made.started + 100
    return made


def terminal(search: Progress) -> View:
    """A view on a terminal of 80 columns."""
    view = View(search)
    view.console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24, highlight=False)
    return view


def shown(view: View) -> str:
    file: Any = view.console.file
    return str(file.getvalue())


def test_a_line_of_80_columns_has_the_time_left_and_the_best_so_far(search: Progress) -> None:
    view = terminal(search)
    view.console.print(view._render())
    lines = re.sub(r"\x1b\[[\d;]*m", "", shown(view)).splitlines()
    assert "1/12 trials  2:30  about 9:10 left  best accuracy 0.7500 (abcdefgh)" in lines


def test_an_interrupted_search_leaves_its_last_state_on_the_screen(search: Progress) -> None:
    with terminal(search) as view:
        search.trials[0].message = "the last"
    assert ERASED not in shown(view)[shown(view).rindex("abcdefgh") :]


def test_a_view_that_is_interrupted_leaves_its_last_state_though_the_search_is_done(search: Progress) -> None:
    view = terminal(search)
    search.state = "Succeeded"
    with pytest.raises(KeyboardInterrupt), view:
        raise KeyboardInterrupt
    assert ERASED not in shown(view)[shown(view).rindex("abcdefgh") :]


def test_the_table_of_a_search_that_is_over_makes_room_for_the_summary(search: Progress) -> None:
    with terminal(search) as view:
        search.state = "Succeeded"
    assert ERASED in shown(view)[shown(view).rindex("abcdefgh") :]


def test_the_next_commands_ask_the_server_with_a_row_that_it_takes() -> None:
    features = [Feature("island", 0, 1, values=["Biscoe", "Dream"]), Feature("bill", 30, 60)]
    manifest: Any = SimpleNamespace(model="penguins", input=SimpleNamespace(features=features))
    serve, ask = next_commands(manifest, " TARGET=microk8s")
    assert serve == "make serve MODEL=penguins TARGET=microk8s"
    assert ask.endswith("""-d '["Biscoe", 45.0]'""")

"""What a person sees of a search as it goes, and is told at its end."""

import io
import re
from collections.abc import Callable
from dataclasses import replace
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


@pytest.mark.parametrize(("image", "count"), [([28, 28], 2), (None, 1)])
def test_a_batch_without_files_is_a_next_command_for_images_alone(image: list[int] | None, count: int) -> None:
    manifest: Any = SimpleNamespace(model="digits", input=SimpleNamespace(features=None, image=image))
    assert next_commands(manifest) == ["make serve MODEL=digits", "make batch MODEL=digits"][:count]


def test_of_equally_good_trials_the_summary_names_the_promoted_as_best(search: Progress) -> None:
    (early,) = search.trials
    late = replace(early, name="toy-ijklmnop", ended=search.started + 120)
    search.trials = [late, early]
    current: Any = SimpleNamespace(
        model="toy",
        digest="3f2a" * 16,
        experiment="toy",
        trial=late.name,
        metrics=SimpleNamespace(test=None, validation=SimpleNamespace(accuracy=0.75)),
    )
    assert search.best is early, "the first to end, until one is promoted"
    view = terminal(search)
    view.summary(current, "", [], {})
    lines = re.sub(r"\x1b\[[\d;]*m", "", shown(view)).splitlines()
    assert [line.split()[0] for line in lines if "*best*" in line] == ["ijklmnop"]
    assert [line for line in lines if line.startswith("best    ijklmnop: accuracy 0.7500")]
    assert [line for line in lines if line.startswith("model   toy 3f2a3f2a3f2a promoted, of trial ijklmnop; accuracy")]

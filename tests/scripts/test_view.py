"""What a person is told at the end of a search."""

from types import SimpleNamespace
from typing import Any

from modelkit.artifact import Feature
from nas.view import next_commands


def test_the_next_commands_ask_the_server_with_a_row_that_it_takes() -> None:
    features = [Feature("island", 0, 1, values=["Biscoe", "Dream"]), Feature("bill", 30, 60)]
    manifest: Any = SimpleNamespace(model="penguins", input=SimpleNamespace(features=features))
    serve, ask = next_commands(manifest, " TARGET=microk8s")
    assert serve == "make serve MODEL=penguins TARGET=microk8s"
    assert ask.endswith("""-d '["Biscoe", 45.0]'""")

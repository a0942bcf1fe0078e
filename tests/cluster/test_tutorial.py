"""docs/tutorial.md, command by command, in its order."""

import re
import shutil
from collections.abc import Iterator

import pytest
from commandline import SMALL, Nas, write_katib
from release import ROOT, Cluster

BLOCK = re.compile(r"(<!-- not run: [^>]+>\n)?```sh\n(.*?)```", re.DOTALL)
TEXT = (ROOT / "docs/tutorial.md").read_text()
COMMANDS = [line for skipped, block in BLOCK.findall(TEXT) if not skipped for line in block.splitlines()]


@pytest.fixture(scope="module")
def reader(nas: Nas, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nas]:
    """Someone with MicroK8s, Katib's manifests at hand, and little time: the search is a small one."""
    if cluster.node is None:
        pytest.skip("the tutorial is for MicroK8s, which the throw-away cluster passes for")
    nas("nas", "cluster", "setup", *write_katib(tmp_path_factory.mktemp("katib")))
    nas.environment["ARGS"] = " ".join(f"--set {setting}" for setting in SMALL)
    yield nas
    shutil.rmtree(ROOT / ".nas/tutorial", ignore_errors=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_tutorial_works(reader: Nas, command: str) -> None:
    reader("sh", "-c", command)


def test_the_tutorial_brought_the_same_model_home_by_both_ways(reader: Nas) -> None:
    reader("diff", "-r", ".nas/tutorial/iris/versions", ".nas/tutorial/versions")
    assert any((ROOT / ".nas/tutorial/versions").iterdir())

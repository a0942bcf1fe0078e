"""The throw-away node itself: whatever way it ends, it leaves nothing behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from node import COMMANDS, Node
from release import until

pytestmark = pytest.mark.skipif(
    "NAS_TEST_KUBECONFIG" in os.environ, reason="a cluster that was there isn't ours to stop"
)
START = "import sys, signal; sys.path.insert(0, sys.argv[1]); from node import Node; "
START += "Node('stopped').up(stay=False); print('up', flush=True); signal.pause()"


def traces(node: Node, link: str) -> list[str]:
    """Processes, mounts, interfaces and cgroups of a node, as far as this machine shows them."""
    commands = [path for path in Path("/proc").glob("[0-9]*/cmdline") if node.name.encode() in words_of(path)]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(node.folder) in line]
    groups = [path for path in node.groups() if path.exists()]
    links = [path for path in Path("/sys/class/net").iterdir() if path.name == link]
    return [str(trace) for trace in (*commands, *mounts, *groups, *links)]


def words_of(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\0")
    except OSError:  # ended meanwhile
        return []


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Node, "subprocess.Popen[str]"]]:
    """A node, and the process that started it for as long as that lives."""
    node = Node("stopped")
    node.down()
    process = subprocess.Popen([sys.executable, "-c", START, str(COMMANDS.parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = list(iter(process.stdout.readline, "up\n"))
    assert "containerd" in "".join(lines)
    yield node, process
    process.kill()
    process.communicate()
    node.down(wipe=True)


def test_packet_filter_rules_of_a_node_are_its_own(started: tuple[Node, "subprocess.Popen[str]"]) -> None:
    node, _ = started
    pid = (node.folder / "running").read_text().split()[0]
    inside = ["nsenter", "--target", pid, "--net", "iptables-save"]
    assert "KUBE-SERVICES" in subprocess.run(inside, capture_output=True, text=True, check=True).stdout
    assert "KUBE-" not in subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout


def test_a_node_leaves_nothing_when_its_starter_is_killed(started: tuple[Node, "subprocess.Popen[str]"]) -> None:
    node, process = started
    link = (node.folder / "running").read_text().split()[-1]
    assert node.running
    assert len(traces(node, link)) > 3
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not node.running, "the end of the node")
    node.down()
    assert traces(node, link) == []
    assert {path.name for path in node.folder.iterdir()} == {"containerd", "log"}

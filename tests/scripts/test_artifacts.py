"""Copies from and to a claim, over a kubectl that runs the bridge's program here and breaks off when told to."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nas import artifacts, bridge
from nas.artifacts import Claim
from nas.errors import NasError

# Passes a command's stdin and stdout on, and stops both after so many bytes.
THROTTLE = """
import os, subprocess, sys, threading
way, limit, *command = sys.argv[1:]
left = int(limit)
program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def pass_on(source, target, limited):
    global left
    while data := os.read(source, 65536):
        if limited:
            data = data[:left]
            left -= len(data)
        try:
            os.write(target, data)
        except OSError:
            return
        if limited and not left:
            program.kill()
            os._exit(137)
    os.close(target)
threading.Thread(
    target=pass_on, args=(0, program.stdin.fileno(), way == "in"), daemon=True
).start()
pass_on(program.stdout.fileno(), 1, way == "out")
sys.exit(program.wait())
"""


class Kubectl:
    """Stands for a cluster whose claim is a folder here. `cuts` has a way and a number of bytes for the next calls."""

    def __init__(self, claim: Path) -> None:
        self.claim, self.cuts, self.calls = claim, dict[str, list[tuple[str, int]]](), list[str]()

    def start(self, *words: str, stdin: bool) -> "subprocess.Popen[bytes]":
        assert (words[:4], stdin) == (("exec", "-i", "x-bridge-0", "--"), True)
        program, *_, name, path = command = list(words[4:])
        assert (program, path[:6]) == ("python3", "/model")
        self.calls.append(name)
        command = [sys.executable, *command[1:-1], f"{self.claim}{path[6:]}"]
        if cuts := self.cuts.get(name):
            way, limit = cuts.pop(0)
            command = [sys.executable, "-c", THROTTLE, way, str(limit), *command]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)

    def get(self, *_: str) -> dict[str, Any]:
        return {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}


@pytest.fixture
def kubectl(tmp_path: Path) -> Kubectl:
    (tmp_path / "claim").mkdir()
    return Kubectl(tmp_path / "claim")


@pytest.fixture
def claim(kubectl: Kubectl) -> Claim:
    return Claim(kubectl, "x-bridge-0")  # type: ignore[arg-type]


@pytest.fixture
def fill() -> Callable[[Path], dict[str, bytes]]:
    """Files of every kind below a folder."""

    def make(folder: Path) -> dict[str, bytes]:
        contents = {"a/big.bin": bytes(range(256)) * 8192, "odd näme": b"a\0\r\n\xff", "empty": b"", "z": b"last"}
        for name, data in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return contents

    return make


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ignore(*_: int) -> None:
    pass


Fill = Callable[[Path], dict[str, bytes]]


def test_a_folder_comes_over_byte_for_byte(claim: Claim, kubectl: Kubectl, fill: Fill, tmp_path: Path) -> None:
    contents = fill(kubectl.claim / "iris")
    assert claim.copy("iris", tmp_path / "here", ignore) == 4
    assert held(tmp_path / "here") == contents


def test_a_folder_goes_over_byte_for_byte(claim: Claim, kubectl: Kubectl, fill: Fill, tmp_path: Path) -> None:
    contents = fill(tmp_path / "here")
    assert claim.put(tmp_path / "here", "/model/iris", ignore) == 4
    assert held(kubectl.claim / "iris") == contents


def test_one_file_gets_the_name_it_is_given(claim: Claim, kubectl: Kubectl, fill: Fill, tmp_path: Path) -> None:
    contents = fill(kubectl.claim)
    claim.copy("/model/a/big.bin", tmp_path / "mine", ignore)
    claim.put(tmp_path / "mine", "b/yours", ignore)
    assert (kubectl.claim / "b/yours").read_bytes() == contents["a/big.bin"]


def test_a_copy_that_breaks_off_goes_on_where_it_was(
    claim: Claim, kubectl: Kubectl, fill: Fill, tmp_path: Path
) -> None:
    contents = fill(kubectl.claim)
    kubectl.cuts["send"] = [("out", 1_000_000), ("out", 1_000_000)]
    steps: list[int] = []
    claim.copy(".", tmp_path / "here", lambda done, _: steps.append(done))
    assert held(tmp_path / "here") == contents
    assert kubectl.calls.count("send") == 3
    assert steps == sorted(steps), "no byte came twice"
    assert steps[-1] == sum(map(len, contents.values()))


def test_a_copy_may_break_off_again_and_again_as_long_as_it_gets_further(
    claim: Claim, kubectl: Kubectl, tmp_path: Path
) -> None:
    (kubectl.claim / "big").write_bytes(bytes(2_000_000))
    kubectl.cuts["send"] = [("out", 200_000)] * (artifacts.ATTEMPTS + 3)
    claim.copy("big", tmp_path / "big", ignore)
    assert (tmp_path / "big").stat().st_size == 2_000_000


def test_a_put_that_breaks_off_goes_on_where_it_was(claim: Claim, kubectl: Kubectl, fill: Fill, tmp_path: Path) -> None:
    contents = fill(tmp_path / "here")
    kubectl.cuts["receive"] = [("in", 700_000)]
    claim.put(tmp_path / "here", "iris", ignore)
    assert held(kubectl.claim / "iris") == contents
    assert kubectl.calls.count("receive") == 2


def test_a_copy_that_gets_no_further_ends_and_leaves_no_file_under_its_name(
    claim: Claim, kubectl: Kubectl, tmp_path: Path
) -> None:
    (kubectl.claim / "model.onnx").write_bytes(bytes(3_000_000))
    kubectl.cuts["send"] = [("out", 1_500_000)] + [("out", 0)] * 20
    with pytest.raises(NasError, match=r"breaks off .*: call it again to go on"):
        claim.copy("model.onnx", tmp_path / "model.onnx", ignore)
    (part,) = tmp_path.glob(".model.onnx.*.part")
    assert not (tmp_path / "model.onnx").exists()
    assert 0 < part.stat().st_size < 3_000_000
    kubectl.cuts.clear()
    steps: list[int] = []
    claim.copy("model.onnx", tmp_path / "model.onnx", lambda done, _: steps.append(done))
    assert (tmp_path / "model.onnx").stat().st_size == 3_000_000
    assert steps[0] > 0, "the second call goes on"
    assert not part.exists()


def test_what_is_there_already_is_not_sent_again(claim: Claim, kubectl: Kubectl, fill: Fill, tmp_path: Path) -> None:
    size = sum(map(len, fill(kubectl.claim).values()))
    claim.copy(".", tmp_path / "here", ignore)
    for transfer in (
        lambda told: claim.copy(".", tmp_path / "here", told),
        lambda told: claim.put(tmp_path / "here", ".", told),
    ):
        steps: list[tuple[int, int]] = []
        transfer(lambda *step, steps=steps: steps.append(step))
        assert steps == [(size, size)]


def test_a_file_that_came_wrong_is_fetched_again(
    claim: Claim, kubectl: Kubectl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kubectl.claim / "f").write_bytes(b"right")
    receive, seen = bridge.receive, list[Any]()

    class Spoilt:
        def __init__(self, source: Any) -> None:
            self.readline, self.source = source.readline, source

        def read(self, size: int) -> Any:
            return self.source.read(size).replace(b"right", b"wrong")

    def spoilt(base: Path, source: Any, *rest: Any) -> Any:
        seen.append(source)
        return receive(base, Spoilt(source) if len(seen) == 1 else source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(bridge, "receive", spoilt)
    claim.copy("f", tmp_path / "f", ignore)
    assert ((tmp_path / "f").read_bytes(), len(seen)) == (b"right", 2)


def test_a_file_changed_on_the_claim_replaces_the_older_one_here(
    claim: Claim, kubectl: Kubectl, tmp_path: Path
) -> None:
    for text in ("one", "two"):
        (kubectl.claim / "CURRENT").write_text(text)
        claim.copy("CURRENT", tmp_path / "CURRENT", ignore)
        assert (tmp_path / "CURRENT").read_text() == text


@pytest.mark.parametrize(
    ("path", "message", "calls"), [("nothing", "no such file or folder", 1), ("../outside", "outside the claim", 0)]
)
def test_what_cannot_be_read_is_told_without_trying_again(
    claim: Claim, kubectl: Kubectl, tmp_path: Path, path: str, message: str, calls: int
) -> None:
    (tmp_path / "outside").write_text("secret")
    with pytest.raises(NasError, match=message):
        claim.copy(path, tmp_path / "x", ignore)
    assert len(kubectl.calls) == calls


def test_a_link_that_leads_out_of_a_folder_is_not_followed(claim: Claim, kubectl: Kubectl, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    (kubectl.claim / "link").symlink_to(tmp_path / "outside")
    assert claim.copy(".", tmp_path / "here", ignore) == 0


def test_a_pod_cannot_name_files_outside_of_what_was_asked_for(tmp_path: Path) -> None:
    file = {"path": "../../.bashrc", "size": 1, "sha256": "0"}
    source = io.BytesIO(json.dumps([file]).encode() + b"\n")
    with pytest.raises(bridge.Refused, match="outside of what was asked for"):
        bridge.receive(tmp_path / "here", source, io.BytesIO(), ignore)


def test_a_full_claim_is_told_once_and_nothing_more_is_sent(
    claim: Claim, kubectl: Kubectl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "big").write_bytes(bytes(40_000_000))
    source = Path(bridge.__file__).read_text()
    full = source.replace("into.write(data)", "raise OSError(errno.ENOSPC, 'full', str(partial))")
    assert full != source
    (tmp_path / "bridge.py").write_text(full)
    monkeypatch.setattr(bridge, "__file__", str(tmp_path / "bridge.py"))
    steps: list[int] = []
    with pytest.raises(NasError, match="no space left on the claim"):
        claim.put(tmp_path / "big", "big", lambda done, _: steps.append(done))
    assert kubectl.calls == ["receive"]
    assert max(steps) < 40_000_000
    assert held(kubectl.claim) == {}


def test_a_file_that_goes_while_it_is_sent_breaks_off_and_is_not_waited_for(
    claim: Claim, kubectl: Kubectl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kubectl.claim / "stays").write_text("text")
    (kubectl.claim / "goes").write_text("text")
    source = Path(bridge.__file__).read_text()
    told = "    say(target, files)\n"
    gone = source.replace(told, f"{told}    (base / 'goes').unlink(missing_ok=True)\n")
    assert gone != source
    (tmp_path / "bridge.py").write_text(gone)
    monkeypatch.setattr(bridge, "__file__", str(tmp_path / "bridge.py"))
    assert claim.copy(".", tmp_path / "here", ignore) == 1
    assert (tmp_path / "here/stays").read_text() == "text"
    assert not (tmp_path / "here/goes").exists()


def test_what_is_sent_of_a_file_that_is_gone_is_never_an_error_amid_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "listing", lambda _: [{"path": "gone", "size": 9, "sha256": "0"}])
    sent = io.BytesIO()
    with pytest.raises(bridge.Cut, match="gone was removed meanwhile"):
        bridge.send(tmp_path, io.BytesIO(b"[0]\n"), sent, ignore)
    assert sent.getvalue().count(b"\n") == 1


def test_locks_and_unfinished_files_stay_where_they_are(claim: Claim, kubectl: Kubectl, tmp_path: Path) -> None:
    for name in (
        "iris/.lock",
        "iris/.model.onnx.x8f3kq_2",
        "iris/versions/.new-abc/model.onnx",
        ".f.0123.part",
        "iris/CURRENT",
    ):
        (kubectl.claim / name).parent.mkdir(parents=True, exist_ok=True)
        (kubectl.claim / name).touch()
    claim.copy(".", tmp_path / "here", ignore)
    assert list(held(tmp_path / "here")) == ["iris/CURRENT"]


def test_paths_may_be_written_as_pods_see_them() -> None:
    paths = [artifacts.there(path) for path in ("/model/iris", "/model", "iris/", ".")]
    assert paths == ["/model/iris", "/model", "/model/iris", "/model"]

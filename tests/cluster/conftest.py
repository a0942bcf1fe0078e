"""The cluster of the tests, namespaces in it, and releases of the chart.

The cluster is a throw-away node of this machine (node.py, as root) with a stand-in for Katib; or, with
NAS_TEST_KUBECONFIG=FILE, one that is there, which has Katib and the project's images. NAS_TEST_VALUES=FILE adds what
that cluster needs, such as a registry or a storage class.
"""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commandline import Nas
from node import Node
from release import ROOT, Cluster, Release

import images

INJECTION = "katib.kubeflow.org/metrics-collector-injection=enabled"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mnist", action="store_true", help="test MNIST with PyTorch too: minutes, and 20 GB of disk")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name == "test_mnist.py" and not config.getoption("--mnist") else None


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, for the whole run. The throw-away one ends with this process, however that ends."""
    if kubeconfig := os.environ.get("NAS_TEST_KUBECONFIG"):
        yield Cluster(Path(kubeconfig), None)
        return
    node = Node(f"tests-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:6]}")  # one for each checkout
    node.down()
    try:
        node.up(stay=False)
        for name in images.NAMES:
            images.load(node, name)
        yield Cluster(node.kubeconfig, node)
    finally:
        node.down()


@contextlib.contextmanager
def namespaces(cluster: Cluster) -> Iterator[Callable[..., str]]:
    """Make namespaces with the label that Katib wants, or with others; they go at the end, with all that is in them."""
    made: list[str] = []

    def make(*labels: str) -> str:
        made.append(f"nas-test-{uuid.uuid4().hex[:6]}")
        cluster.kubectl("create", "namespace", made[-1])
        cluster.kubectl("label", "namespace", made[-1], *(labels or (INJECTION,)))
        return made[-1]

    yield make
    if made:
        cluster.kubectl("delete", "namespace", "--wait=false", *made)


@pytest.fixture
def new_namespace(cluster: Cluster) -> Iterator[Callable[..., str]]:
    """Make a namespace for this test: `new_namespace()`, or with other labels `new_namespace("a=b")`."""
    with namespaces(cluster) as make:
        yield make


@pytest.fixture
def new_release(cluster: Cluster, new_namespace: Callable[..., str]) -> Callable[..., Release]:
    """A release for this test, not installed yet: in a namespace of its own, or `new_release(namespace="there")`."""

    def make(name: str = "iris-nas", namespace: str = "") -> Release:
        return Release(cluster, namespace or new_namespace(), name)

    return make


@pytest.fixture(scope="module")
def shared_release(cluster: Cluster) -> Iterator[Release]:
    """A release for all tests of a file, not installed yet."""
    with namespaces(cluster) as make:
        yield Release(cluster, make(), "iris-nas")


@pytest.fixture(scope="module")
def nas(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Nas:
    """The commands of this checkout, for the cluster."""
    return Nas(cluster, tmp_path_factory.mktemp("tools"))

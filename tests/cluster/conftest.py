"""The cluster of the tests, namespaces in it, and releases of the chart.

The cluster is a throw-away node of this machine (node.py, as root) with a stand-in for Katib; or, with
NAS_TEST_KUBECONFIG=FILE, one that is there, which has Katib and the project's images. NAS_TEST_VALUES=FILE adds what
that cluster needs, such as a registry or a storage class.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from node import Node
from release import Cluster, Release

import images

INJECTION = "katib.kubeflow.org/metrics-collector-injection=enabled"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, for the whole run. The throw-away one ends with this process, however that ends."""
    if kubeconfig := os.environ.get("NAS_TEST_KUBECONFIG"):
        yield Cluster(Path(kubeconfig), None)
        return
    node = Node("tests")
    node.down()
    try:
        node.up(stay=False)
        for name in images.NAMES:
            images.load(node, name)
        yield Cluster(node.kubeconfig, node)
    finally:
        node.down()


@pytest.fixture(scope="session")
def new_namespace(cluster: Cluster) -> Iterator[Callable[..., str]]:
    """Make a namespace with the label that Katib wants, or with other labels: `new_namespace("a=b")`."""
    made = []

    def make(*labels: str) -> str:
        name = f"nas-test-{uuid.uuid4().hex[:6]}"
        cluster.kubectl("create", "namespace", name)
        made.append(name)
        for label in labels or (INJECTION,):
            cluster.kubectl("label", "namespace", name, label)
        return name

    yield make
    if made and cluster.node is None:  # a throw-away cluster goes as a whole
        cluster.kubectl("delete", "namespace", "--wait=false", *made)


@pytest.fixture(scope="session")
def new_release(cluster: Cluster, new_namespace: Callable[..., str]) -> Callable[..., Release]:
    """A release by name, not installed yet, in a namespace of its own or in a given one."""

    def make(name: str = "iris-nas", namespace: str = "", model: str = "iris") -> Release:
        return Release(cluster, namespace or new_namespace(), name, model)

    return make

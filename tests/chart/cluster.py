"""A Kubernetes API of a few objects, for what the chart asks a cluster by `lookup` before it is installed."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
NAMES = {"Namespace": "namespaces", "PersistentVolumeClaim": "persistentvolumeclaims", "Experiment": "experiments"}
LABEL = "katib.kubeflow.org/metrics-collector-injection"


def namespace(name: str, labelled: bool = True) -> Object:
    labels = {LABEL: "enabled"} if labelled else {}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


@contextlib.contextmanager
def serving(objects: list[Object], folder: Path, katib: bool = True, forbidden: bool = False) -> Iterator[Path]:
    """Answer for `objects` on a free local port; gives the kubeconfig. `katib`: there are Experiments."""
    answers = {**_discovery(katib), **{_path(item): item for item in objects}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            status = 200 if path in answers else 404
            if forbidden and path in map(_path, objects):
                status = 403
            reason = {404: "NotFound", 403: "Forbidden"}.get(status)
            failure = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "code": status}
            body = json.dumps(answers[path] if status == 200 else failure).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "clusters": [{"name": "test", "cluster": {"server": address}}],
                    "users": [{"name": "test", "user": {}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                }
            )
        )
        yield kubeconfig
    finally:
        server.shutdown()
        server.server_close()


def _path(item: Object) -> str:
    group = item["apiVersion"]
    base = f"/api/{group}" if "/" not in group else f"/apis/{group}"
    inside = f"/namespaces/{item['metadata']['namespace']}" if "namespace" in item["metadata"] else ""
    return f"{base}{inside}/{NAMES[item['kind']]}/{item['metadata']['name']}"


def _discovery(katib: bool) -> Object:
    def resources(group: str, *kinds: tuple[str, str, bool]) -> Object:
        listed = [
            {"name": name, "singularName": "", "kind": kind, "namespaced": namespaced, "verbs": ["get", "list"]}
            for name, kind, namespaced in kinds
        ]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": listed}

    version = {"groupVersion": "kubeflow.org/v1beta1", "version": "v1beta1"}
    group = {"name": "kubeflow.org", "versions": [version], "preferredVersion": version}
    answers = {
        "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group] if katib else []},
        "/api/v1": resources(
            "v1",
            ("namespaces", "Namespace", False),
            ("secrets", "Secret", True),
            ("persistentvolumeclaims", "PersistentVolumeClaim", True),
        ),
    }
    answers["/api/v1/namespaces/team/secrets"] = {"apiVersion": "v1", "kind": "SecretList", "items": []}  # releases
    if katib:
        answers["/apis/kubeflow.org/v1beta1"] = resources("kubeflow.org/v1beta1", ("experiments", "Experiment", True))
    return answers

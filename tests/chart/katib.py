"""What Katib accepts: the models of its Python SDK, and those rules of its webhook that no model says."""

import importlib
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import kubeflow

# The packages' own __init__ import what trains and talks to a cluster; the models need none of it.
for _name in ("katib", "katib.models"):
    _package = types.ModuleType(f"kubeflow.{_name}")
    _package.__path__ = [f"{path}/{_name.replace('.', '/')}" for path in kubeflow.__path__]
    sys.modules[_package.__name__] = _package

Object = dict[str, Any]
PRIMITIVES = {"str": str, "int": int, "float": (int, float), "bool": bool}
META = re.compile(r"^\$\{trialSpec\.(Name|Namespace|Kind|APIVersion|(Labels|Annotations)\[[^\]]+\])\}$")
KINDS_KATIB_KNOWS = {"Job", "TFJob", "PyTorchJob", "MPIJob", "XGBoostJob", "TrainJob"}


def refusals(experiment: Object) -> list[str]:
    """Why Katib would refuse an Experiment; empty when it wouldn't."""
    return [*_mismodelled(experiment["spec"], "V1beta1ExperimentSpec", "spec"), *_webhook(experiment)]


def _mismodelled(value: Any, kind: str, path: str) -> Iterator[str]:
    """Keys and types that the SDK's model `kind` hasn't. Kubernetes' own kinds are others' to check."""
    if match := re.fullmatch(r"list\[(.+)\]", kind):
        if not isinstance(value, list):
            yield f"{path}: not a list"
            return
        for index, item in enumerate(value):
            yield from _mismodelled(item, match[1], f"{path}[{index}]")
    elif kind in PRIMITIVES:
        if not isinstance(value, PRIMITIVES[kind]) or (kind != "bool" and isinstance(value, bool)):
            yield f"{path}: {value!r} is no {kind}"
    elif kind.startswith("V1beta1"):
        module = re.sub(r"(?<=[a-z1])(?=[A-Z])", "_", kind).lower()
        model = getattr(importlib.import_module(f"kubeflow.katib.models.{module}"), kind)
        attributes = {name: model.openapi_types[attribute] for attribute, name in model.attribute_map.items()}
        for key, item in value.items():
            if key in attributes:
                yield from _mismodelled(item, attributes[key], f"{path}.{key}")
            else:
                yield f"{path}: Katib has no {key}"


def _webhook(experiment: Object) -> Iterator[str]:
    """The rules of Katib 0.19's validating webhook, by its pkg/webhook/v1beta1/experiment/validator."""
    name, spec = experiment["metadata"]["name"], experiment["spec"]
    if not re.match("^[a-z]([-a-z0-9]*[a-z0-9])?$", name) or len(name) > 40:
        yield f"name {name}"
    most = spec.get("maxTrialCount")
    for key, least in (("maxTrialCount", 1), ("parallelTrialCount", 1), ("maxFailedTrialCount", 0)):
        count = spec.get(key)
        if count is not None and (count < least or (most is not None and count > most)):
            yield f"{key} {count}"
    if spec["objective"]["objectiveMetricName"] in spec["objective"].get("additionalMetricNames", []):
        yield "additionalMetricNames holds the objective"
    if bool(spec.get("parameters")) == bool(spec.get("nasConfig")):
        yield "neither or both of parameters and nasConfig"
    for parameter in spec.get("parameters", []):
        space = set(parameter["feasibleSpace"])
        ranged = parameter["parameterType"] in ("int", "double")
        if not (space >= {"min", "max"} and "list" not in space if ranged else not space & {"min", "max", "step"}):
            yield f"feasibleSpace of {parameter['name']}"
    yield from _trial_template(spec)
    yield from _collector(spec.get("metricsCollectorSpec", {}))


def _trial_template(spec: Object) -> Iterator[str]:
    template = spec["trialTemplate"]
    if ("trialSpec" in template) == ("configMap" in template):
        yield "neither or both of trialSpec and configMap"
    if not template.get("primaryContainerName") or not isinstance(template.get("trialParameters"), list):
        yield "no primaryContainerName or no trialParameters"
    for key in ("name", "reference"):
        entries = [parameter[key] for parameter in template["trialParameters"]]
        if len(set(entries)) < len(entries):
            yield f"a {key} twice"
    references = [parameter["reference"] for parameter in template["trialParameters"]]
    known = {parameter["name"] for parameter in spec.get("parameters", [])}
    yield from (f"reference {r}" for r in references if known and r not in known and not META.match(r))
    yield from (f"no trial can be made without {name}" for name in sorted(known - {*references}))
    trial = template.get("trialSpec")
    told = template.get("successCondition") and template.get("failureCondition")
    if (trial or {}).get("kind") not in KINDS_KATIB_KNOWS and not told:
        yield "no conditions for a ConfigMap or a kind that Katib doesn't know"
    if trial is None:
        return
    used = set(re.findall(r"\$\{trialParameters\.([^}]+)\}", str(trial)))
    if used != {parameter["name"] for parameter in template["trialParameters"]}:
        yield "trialParameters and what the trialSpec uses differ"
    if not trial.get("apiVersion") or not trial.get("kind") or {"name", "namespace"} & set(trial.get("metadata", {})):
        yield "apiVersion, kind or metadata of the trialSpec"
    if trial["kind"] == "Job":
        yield from (f"empty {path}" for path in empties(trial))


def _collector(collector: Object) -> Iterator[str]:
    kind, source = collector.get("collector", {}).get("kind", "StdOut"), collector.get("source", {})
    path, formats = source.get("fileSystemPath", {}), source.get("filter", {}).get("metricsFormat", [])
    if kind == "None":
        yield "a collector that Katib has no more"
    if kind == "File" and path.get("kind", "File") != "File":
        yield "a File that isn't a file"
    if kind == "PrometheusMetric" and not source.get("httpGet", {}).get("path", "/").startswith("/"):
        yield "a path that isn't one"
    if kind == "File" and path.get("format") == "JSON" and "filter" in source:
        yield "a filter on a JSON file"
    if kind == "TensorFlowEvent" and ("format" in path or path.get("kind", "Directory") != "Directory"):
        yield "a TensorFlowEvent that isn't a directory"
    if "path" in path and not path["path"].startswith("/"):
        yield "a path that isn't absolute"
    if kind == "Custom" and "customCollector" not in collector["collector"]:
        yield "no customCollector"
    yield from (f"format {text}" for text in formats if not re.match(r".*\(.*\).*\(.*\).*", text))


def empties(node: Any, path: str = "") -> Iterator[str]:
    """Where something is empty in a Job, so that it is lost on the way through Kubernetes' types and Katib refuses it.

    Pointers keep `{}` and false there; other values don't.
    """
    if isinstance(node, dict):
        for key, value in node.items():
            yield from empties(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from empties(value, f"{path}[{index}]")
    pointers = (".affinity", ".resources", ".securityContext", ".emptyDir", ".metadata", ".labelSelector")
    kept = (node == {} and path.endswith(pointers)) or (node == "" and path.endswith("]"))
    lost = node is False and path.endswith((".hostNetwork", ".hostPID", ".hostIPC", ".readOnly", ".stdin", ".tty"))
    if lost or (node in ("", None, [], {}) and node is not False and not kept):
        yield path

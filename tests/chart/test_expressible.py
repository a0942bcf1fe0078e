"""What Katib v1beta1 can express, values can: a values file for any Experiment renders that very Experiment.

`experiments.yaml` holds one of each feature. KATIB_EXAMPLES=DIR adds all Experiments below a folder: Katib's own are in
examples/v1beta1 of its repository.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from katib import KINDS_KATIB_KNOWS, refusals
from rendering import Object, experiment, refusal, render

ALGORITHMS = {"random", "grid", "bayesianoptimization", "tpe", "multivariate-tpe", "cmaes", "sobol", "hyperband"}
ALGORITHMS |= {"pbt", "enas", "darts"}


def experiments() -> dict[str, Object]:
    """Experiments by name."""
    paths = [Path(__file__).with_name("experiments.yaml")]
    paths += sorted(Path(os.environ["KATIB_EXAMPLES"]).glob("**/*.y*ml")) if "KATIB_EXAMPLES" in os.environ else []
    objects = [item for path in paths for document in yaml.safe_load_all(path.read_text()) for item in _items(document)]
    return {item["metadata"]["name"]: item for item in objects if item.get("kind") == "Experiment"}


def _items(document: Any) -> list[Object]:
    return document["items"] if document and "items" in document else [document or {}]


EXPERIMENTS = experiments()


def values_for(item: Object) -> Object:
    """A values file that asks for an Experiment. What it doesn't have is null: defaults are taken away."""
    spec = item["spec"]
    objective, template, stopping = spec["objective"], spec["trialTemplate"], spec.get("earlyStopping", {})
    collector = spec.get("metricsCollectorSpec", {})
    source = dict(collector.get("source", {}))
    kind = template.get("trialSpec", {}).get("kind", "Job")
    search = {
        "name": item["metadata"]["name"],
        "seed": False,
        "objective": {
            "type": objective["type"],
            "metric": objective["objectiveMetricName"],
            "goal": objective.get("goal"),
            "additionalMetrics": objective.get("additionalMetricNames"),
            "strategies": {"accuracy": None, "loss": None, **named(objective.get("metricStrategies", []))},
        },
        "algorithm": {
            "name": spec["algorithm"]["algorithmName"],
            "settings": named(spec["algorithm"].get("algorithmSettings", [])),
            "custom": spec["algorithm"]["algorithmName"] not in ALGORITHMS,
        },
        "earlyStopping": {
            "enabled": bool(stopping),
            "algorithm": stopping.get("algorithmName", "medianstop"),
            "settings": {
                "min_trials_required": None,
                "start_step": None,
                **named(stopping.get("algorithmSettings", [])),
            },
        },
        "maxTrials": spec.get("maxTrialCount"),
        "parallelTrials": spec.get("parallelTrialCount"),
        "maxFailedTrials": spec.get("maxFailedTrialCount"),
        "resumePolicy": spec.get("resumePolicy"),
        "parameters": {
            p["name"]: {"type": p["parameterType"], **p["feasibleSpace"]} for p in spec.get("parameters", [])
        },
        "nasConfig": spec.get("nasConfig", {}),
        "metricsCollector": {
            "kind": collector.get("collector", {}).get("kind"),
            "formats": source.pop("filter", {}).get("metricsFormat"),
            "source": source,
            "customCollector": collector.get("collector", {}).get("customCollector", {}),
        },
        "trialTemplate": {
            "trialSpec": template.get("trialSpec", {}),
            "configMap": template.get("configMap", {}),
            "trialParameters": {
                p["name"]: {key: value for key, value in p.items() if key != "name"}
                for p in template["trialParameters"]
            },
            "primaryContainerName": template["primaryContainerName"],
            "primaryPodLabels": template.get("primaryPodLabels", {}),
            "successCondition": template.get("successCondition", ""),
            "failureCondition": template.get("failureCondition", ""),
            "retain": template.get("retain", False),
        },
    }
    assert kind in KINDS_KATIB_KNOWS or template.get("successCondition")
    return {"experiment": search, "storage": {"enabled": False}, "bridge": {"enabled": False}, "serving": OFF}


OFF = {"enabled": False}


def named(entries: list[Object]) -> Object:
    return {entry["name"]: entry["value"] for entry in entries}


def unordered(node: Any) -> Any:
    """Lists of named entries in one order: Katib finds them by name."""
    if isinstance(node, list) and node and all(isinstance(item, dict) and "name" in item for item in node):
        return sorted(map(unordered, node), key=lambda item: str(item["name"]))
    if isinstance(node, list):
        return list(map(unordered, node))
    if isinstance(node, dict):
        return {key: unordered(value) for key, value in node.items()}
    return node


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_values_file_renders_the_very_experiment(name: str) -> None:
    wanted = EXPERIMENTS[name]
    if refusals(wanted):
        assert "ERROR: " in refusal(values=values_for(wanted)), "Katib refuses it, the chart doesn't"
    else:
        found = experiment(render(values_for(wanted)))
        assert found["metadata"]["name"] == name
        assert unordered(found["spec"]) == unordered(wanted["spec"])


def test_the_experiments_here_show_every_feature() -> None:
    specs = [item["spec"] for item in EXPERIMENTS.values()]
    assert {s["algorithm"]["algorithmName"] for s in specs} >= ALGORITHMS
    assert {p["parameterType"] for s in specs for p in s.get("parameters", [])} == {
        "int", "double", "discrete", "categorical",
    }  # fmt: skip
    collectors = {s.get("metricsCollectorSpec", {}).get("collector", {}).get("kind") for s in specs}
    assert collectors >= {None, "StdOut", "File", "TensorFlowEvent", "PrometheusMetric", "Custom", "Push"}
    assert {s.get("resumePolicy") for s in specs} == {None, "Never", "LongRunning", "FromVolume"}
    kinds = {s["trialTemplate"].get("trialSpec", {}).get("kind") for s in specs}
    assert kinds >= {None, *KINDS_KATIB_KNOWS, "PipelineRun"}

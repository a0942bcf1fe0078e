"""Every way of values/ to install the chart gives objects that a cluster takes."""

import kubernetes_validate
import pytest
from rendering import CHART, EVERYTHING, PRESETS, experiment, render, run_helm, words



@pytest.mark.parametrize("values", VALUES)
def test_every_values_file_passes_helm_lint(helm: str, values: str) -> None:
    command = [helm, "lint", "--strict", str(ROOT / "charts/nas"), "--values", str(ROOT / f"values/{values}.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("version", ["1.28", "1.34"])
@pytest.mark.parametrize("values", VALUES)
def test_every_object_is_valid_kubernetes(values: str, version: str) -> None:
    objects = render(values, *EVERYTHING)
    job = experiment(objects)["spec"]["trialTemplate"]["trialSpec"] | {"metadata": {"name": "trial"}}
    for item in [*objects, job]:
        if item["kind"] != "Experiment":
            kubernetes_validate.validate(item, version, strict=True)

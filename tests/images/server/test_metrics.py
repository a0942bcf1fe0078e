"""What Prometheus is told: every answer by path and status, rows, and which version gives them."""

import re
from pathlib import Path

import interface
import models
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[3]
FLOWER = [5.1, 3.5, 1.4, 0.2]


def scraped(root: Path, *bodies: object) -> dict[tuple[str, tuple[str, ...]], float]:
    """The samples of /metrics after these requests, by name and its labels' values in the order of their names."""

    server = interface.lane(answering := interface.live(root))
    for body in bodies:
        interface.ask(server, "POST", "/predict/", body)
    interface.ask(server, "GET", "/wp-admin")
    answering.refresh()
    text = interface.ask(server, "GET", "/metrics").text
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(s.labels[k] for k in sorted(s.labels))): s.value for f in families for s in f.samples}


def test_answers_and_rows_are_counted_by_path_and_status(tmp_path: Path) -> None:
    models.promote(tmp_path, "iris", models.iris_rule())
    samples = scraped(tmp_path, FLOWER, [FLOWER] * 3, "nonsense")
    assert samples[("nas_requests_total", ("/predict", "200"))] == 2
    assert samples[("nas_requests_total", ("/predict", "422"))] == 1
    assert samples[("nas_requests_total", ("other", "404"))] == 1
    assert samples[("nas_request_seconds_count", ("/predict",))] == 3
    assert samples[("nas_rows_total", ())] == 4


def test_the_version_that_answers_is_named_with_its_accuracy(tmp_path: Path) -> None:
    digest = models.promote(tmp_path, "iris", models.iris_rule())
    samples = scraped(tmp_path)
    assert [labels[:2] for name, labels in samples if name == "nas_model_info"] == [(digest, "iris")]
    assert samples[("nas_model_accuracy", ())] == 0.9
    assert samples[("nas_model_created_timestamp_seconds", ())] == 1795478400
    assert (samples[("nas_loads_total", ())], samples[("nas_refusals_total", ())]) == (1, 0)


def test_a_refused_version_is_counted_once_and_a_missing_one_never(tmp_path: Path) -> None:
    assert scraped(tmp_path)[("nas_refusals_total", ())] == 0
    digest = models.promote(tmp_path, "iris", models.iris_rule())
    (tmp_path / "iris" / "versions" / digest / "model.onnx").write_bytes(b"rotten")
    assert scraped(tmp_path)[("nas_refusals_total", ())] == 1


def test_the_dashboard_draws_metrics_that_exist(tmp_path: Path) -> None:
    models.promote(tmp_path, "iris", models.iris_rule())
    known = {name for name, _ in scraped(tmp_path, FLOWER)}
    drawn = set(re.findall(r"nas_[a-z_]+", (ROOT / "charts/nas/charts/serving/dashboard.json").read_text()))
    assert len(drawn) > 5
    assert drawn <= known

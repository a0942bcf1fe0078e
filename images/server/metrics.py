"""What /metrics shows, for Prometheus; charts/nas/charts/serving/dashboard.json draws it."""

import bisect
import datetime
import itertools
import mmap
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported when someone asks: it would be a third of the cold start
    from live import Live
    from prometheus_client.core import Metric

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
STATUSES = (200, 400, 401, 404, 405, 413, 415, 422, 500, 503)  # any other is counted as its hundred
PATHS = ("/predict", "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer", "other")
TOTALS = {
    "rows": "Rows classified.",
    "loads": "Versions taken up, by each worker.",
    "refusals": "Versions in CURRENT that were refused, by each worker.",
}
REJECTS = ("key", "busy", "slow", "connections", "malformed", "body")
_PER_PATH = len(STATUSES) + len(SECONDS) + 2  # and the sum of the seconds
_STATUS = {status: i for i, status in enumerate(STATUSES)}
_PATH = {path: i * _PER_PATH for i, path in enumerate(PATHS)} | {"/predict/": 0}
_SLOT = {name: len(PATHS) * _PER_PATH + i for i, name in enumerate([*TOTALS, *REJECTS])}
_SIZE = len(PATHS) * _PER_PATH + len(_SLOT)


class Counts:
    """Counters in memory that forked workers share: a row each, so that none waits; a reader sums them."""

    def __init__(self, workers: int = 1) -> None:
        self._all = memoryview(mmap.mmap(-1, workers * _SIZE * 8)).cast("d")
        self.become(0)

    def become(self, worker: int) -> None:
        """Count in the row of this worker; one that is started anew goes on with it."""
        self._mine = self._all[worker * _SIZE : (worker + 1) * _SIZE]

    def add(self, name: str, amount: float = 1) -> None:
        """One of TOTALS, or a reason in REJECTS."""
        self._mine[_SLOT[name]] += amount

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request to the route `path` (what has no counter of its own is "other") was answered."""
        mine, base = self._mine, _PATH.get(path, _PATH["other"])
        mine[base + _STATUS.get(status, _STATUS.get(status // 100 * 100, 1))] += 1
        base += len(STATUSES)
        mine[base + bisect.bisect_left(SECONDS, seconds)] += 1
        mine[base + len(SECONDS) + 1] += seconds

    def totals(self) -> list[float]:
        """All workers' counters."""
        return [sum(self._all[i::_SIZE]) for i in range(_SIZE)]


class Exposition:
    """The counters and the live model as Prometheus sees them."""

    def __init__(self, live: "Live") -> None:
        self._live = live

    def collect(self) -> "Iterable[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        totals = self._live.counts.totals()
        requests = CounterMetricFamily("nas_requests", "Answers by path and status.", labels=["path", "status"])
        seconds = HistogramMetricFamily("nas_request_seconds", "Time to answer.", labels=["path"])
        for path in PATHS:
            base = _PATH[path]
            for status, i in _STATUS.items():
                if totals[base + i]:
                    requests.add_metric([path, str(status)], totals[base + i])
            *times, spent = totals[base + len(STATUSES) : base + _PER_PATH]
            if any(times):
                below = itertools.accumulate(times)
                seconds.add_metric([path], list(zip([*map(str, SECONDS), "+Inf"], below, strict=True)), spent)
        rejects = CounterMetricFamily("nas_rejects", "Requests and connections turned away.", labels=["reason"])
        for reason in REJECTS:
            rejects.add_metric([reason], totals[_SLOT[reason]])
        yield from (requests, seconds, rejects)
        for name, text in TOTALS.items():
            yield CounterMetricFamily(f"nas_{name}", text, value=totals[_SLOT[name]])
        if predictor := self._live.model:
            manifest = predictor.manifest
            info = GaugeMetricFamily("nas_model_info", "The version that answers.", labels=["model", "digest", "trial"])
            info.add_metric([manifest.model, manifest.digest, manifest.trial], 1)
            yield info
            text, accuracy = "Its accuracy on its search's validation rows.", manifest.metrics.validation.accuracy
            yield GaugeMetricFamily("nas_model_accuracy", text, value=accuracy)
            made = datetime.datetime.fromisoformat(manifest.created).timestamp()
            yield GaugeMetricFamily("nas_model_created_timestamp_seconds", "When its trial made it.", value=made)

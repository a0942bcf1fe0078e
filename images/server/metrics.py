"""What /metrics shows, for Prometheus; charts/nas/charts/serving/dashboard.json draws it."""

import time
from collections.abc import Iterable

from live import Live
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """The counters of one server, and its live model as Prometheus sees it."""

    def __init__(self, live: Live) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "nas_requests", "Answers by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "nas_request_seconds", "Time to answer.", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.rows = Counter("nas_rows", "Rows classified.", registry=self.registry)
        self._live = live
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """What is only known when someone asks."""
        loads, refusals = self._live.loads, self._live.refusals
        yield CounterMetricFamily("nas_loads", "Versions taken up, the first included.", value=loads)
        yield CounterMetricFamily("nas_refusals", "Versions in CURRENT that were refused.", value=refusals)
        info = GaugeMetricFamily("nas_model_info", "The version that answers.", labels=["model", "digest", "trial"])
        accuracy = GaugeMetricFamily("nas_model_accuracy", "Its accuracy on the validation rows of its search.")
        if model := self._live.model:
            info.add_metric([model.manifest.model, model.manifest.digest, model.manifest.trial], 1)
            accuracy.add_metric([], model.manifest.metrics.validation.accuracy)
        yield info
        yield accuracy


class Measured:
    """ASGI middleware: counts and times every answer, by the path of its route (unknown paths are one)."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            path = getattr(scope.get("route"), "path", "unknown").rstrip("/")
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - started)

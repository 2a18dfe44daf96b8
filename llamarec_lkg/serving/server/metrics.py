"""What a server counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send


SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """One registry an app, so that several apps of a process do not meet.

    Args:
        waiting: tells how many lists wait.
    """

    def __init__(self, waiting: Callable[[], int]):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        text = "Answers, by route and status; 499: the client hung up."
        self.requests = Counter("llamarec_requests", text, ["route", "status"], registry=self.registry)
        text = "Seconds from the first byte of a request to the last of its answer."
        self.seconds = Histogram("llamarec_request_seconds", text, ["route"], buckets=SECONDS, registry=self.registry)
        self.sizes = Histogram("llamarec_batch_size", "Lists in a batch.", buckets=SIZES, registry=self.registry)
        text = "Seconds that a batch took."
        self.batches = Histogram("llamarec_batch_seconds", text, buckets=SECONDS, registry=self.registry)
        gauge = Gauge("llamarec_queue_length", "Lists that wait for a batch.", registry=self.registry)
        gauge.set_function(waiting)

    def batch(self, size: int, seconds: float) -> None:
        self.sizes.observe(size)
        self.batches.observe(seconds)


class CountRequests:
    """Counts what an app answers, under the names of routes: there are as many of them whatever clients ask for."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)

"""Counts and times of the service, in Prometheus's terms."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retrieval.serving.queue import UNQUEUED_PATHS


class Measures:
    """Metrics that `GET /metrics` exports."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "retr_requests", "Requests answered.", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "retr_request_seconds", "Seconds to an answer.", ("path",), registry=self.registry
        )
        self.search_seconds = Histogram(
            "retr_search_seconds",
            "Seconds of the search in the index alone.",
            ("index",),
            buckets=(0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1),
            registry=self.registry,
        )
        self.encode_seconds = Histogram(
            "retr_encode_seconds",
            "Seconds to decode and encode the images and words of a query.",
            ("index",),
            registry=self.registry,
        )
        self.rows = Gauge("retr_rows", "Rows of an index.", ("index",), registry=self.registry)
        self.at_once = Gauge(
            "retr_requests_at_once", "Requests being answered.", registry=self.registry
        )


class Measured:
    """ASGI middleware that counts and times requests."""

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self.app = app
        self.measures = measures
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        counted = scope["path"] not in UNQUEUED_PATHS
        self.running += counted
        self.measures.at_once.set(self.running)
        try:
            await self.app(scope, receive, watched)
        finally:
            self.running -= counted
            self.measures.at_once.set(self.running)
            path = getattr(scope.get("route"), "path", "other")
            self.measures.requests.labels(path, str(status)).inc()
            self.measures.seconds.labels(path).observe(time.perf_counter() - began)

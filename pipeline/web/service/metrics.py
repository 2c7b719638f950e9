"""Metrics of the service for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("nucpipe_requests", "Requests.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "nucpipe_request_seconds", "Seconds to an answer.", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.nuclei = Counter("nucpipe_nuclei", "Nuclei found.", registry=self.registry)
        self.waiting = Gauge("nucpipe_waiting", "Requests that wait for the models.", registry=self.registry)
        self.together = Histogram(
            "nucpipe_images_together",
            "Images that the models worked on together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self.registry)

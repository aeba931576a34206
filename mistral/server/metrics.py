"""Metrics for Prometheus, in a registry of their own."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # seconds until the first token
NEXT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 2, 5)  # seconds between two tokens


class Times(Collector):
    """A histogram of times, to which several equal times can be added at once."""

    def __init__(self, name: str, what: str, bounds: Sequence[float]) -> None:
        """`bounds`: the upper bounds of the buckets in seconds, except the last."""
        self._name, self._what, self._bounds = name, what, bounds
        self._counts, self._sum = [0] * (len(bounds) + 1), 0.0

    def add(self, seconds: float, count: int) -> None:
        """Something took so long, so many times."""
        self._counts[bisect_left(self._bounds, seconds)] += count
        self._sum += seconds * count

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What the library writes: how many took no longer than each bound."""
        ends = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(ends, map(float, accumulate(self._counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._what, buckets, self._sum)


class Metrics:
    """The metrics of a server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        name, registry = "mistral", self.registry
        self.requests = Counter(
            f"{name}_requests", "Requests by path and status", ["path", "status"], registry=registry
        )
        self.prompt_tokens = Counter(f"{name}_prompt_tokens", "Tokens of prompts", registry=registry)
        self.cached_tokens = Counter(
            f"{name}_cached_tokens", "Tokens of prompts that were not computed again", registry=registry
        )
        self.generated_tokens = Counter(f"{name}_generated_tokens", "Tokens of answers", registry=registry)
        self.cancelled = Counter(
            f"{name}_cancelled", "Answers that ended because their caller had gone", registry=registry
        )
        self.refused = Counter(
            f"{name}_refused", "Requests that found the queue full or the server ending", registry=registry
        )
        self.failed = Counter(f"{name}_failed", "Answers that ended with an error", registry=registry)
        self.first = Times(f"{name}_time_to_first_token_seconds", "From request to first token", FIRST)
        self.next = Times(f"{name}_time_per_token_seconds", "From token to token", NEXT)
        registry.register(self.first)
        registry.register(self.next)
        self.open = Gauge(f"{name}_answers_open", "Answers that are waiting or being generated", registry=registry)
        self.waiting = Gauge(f"{name}_answers_waiting", "Answers that have not begun", registry=registry)

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is computed when the metrics are read."""
        Gauge(f"mistral_{name}", what, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)

"""The engine's numbers in Prometheus' form.

In: an engine or an upstream server. Out: a registry that reads them whenever it is asked.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from qilin.serve.api.upstream import Upstream
from qilin.serve.engine.engine import Engine


class EngineCollector(Collector):
    """Reads counters that the engine keeps; nothing is stored here."""

    def __init__(self, engine: Engine | Upstream) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        engine, counts = self.engine, self.engine.counts
        yield GaugeMetricFamily("qilin_requests_running", "requests that are being answered", engine.active())
        yield GaugeMetricFamily("qilin_requests_waiting", "requests in the queue", engine.queue_length())
        counters = {
            "requests": ("requests queued", counts.requests),
            "requests_rejected": ("requests refused because the queue was full", counts.rejected),
            "requests_failed": ("requests ended by a failure of the model", counts.failed),
            "requests_cancelled": ("requests ended by their client", counts.cancelled),
            "prompt_tokens": ("tokens of prompts, images included", counts.prompt_tokens),
            "cached_tokens": ("tokens of prompts taken from the prefix cache", counts.cached_tokens),
            "completion_tokens": ("generated tokens", counts.completion_tokens),
            "request_seconds": ("seconds from queueing to the end, all requests together", counts.seconds),
            "first_token_seconds": ("seconds from queueing to the first token, all requests together",
                                    counts.first_token_seconds),
        }  # fmt: skip
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"qilin_{name}", text, value)
        if isinstance(engine, Upstream):
            return
        for name, cache in (("image", engine.prefiller.images), ("prefix", engine.prefiller.prefixes)):
            yield GaugeMetricFamily(f"qilin_{name}_cache_bytes", f"bytes of the {name} cache", cache.used_bytes)
            yield CounterMetricFamily(f"qilin_{name}_cache_hits", f"hits of the {name} cache", cache.hits)
            yield CounterMetricFamily(f"qilin_{name}_cache_misses", f"misses of the {name} cache", cache.misses)
            yield CounterMetricFamily(f"qilin_{name}_cache_evictions", "entries dropped for space", cache.evictions)


def engine_registry(engine: Engine | Upstream) -> CollectorRegistry:
    """A registry of its own: two engines in one process do not mix."""
    registry = CollectorRegistry()
    registry.register(EngineCollector(engine))
    return registry

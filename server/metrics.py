"""What the server counts, in Prometheus' terms: vLLM's names and buckets, and what only a retrieval cache has.

Owns the metrics of one app (a registry of its own). Knows no HTTP; what a step did is the engine's report.
Thread-safe: the engine's thread and the event loop both count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from engine import EngineStats, Event, Finished, StepReport, Token

TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
RETRIEVAL = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
MASS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999)
RESTORE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
REFUSALS = (401, 403, 408, 413, 414, 429, 431, 503, 504)
BLOCKS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU seconds, open files
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens that were computed")
        self.generation_tokens = self._counter("generation_tokens", "Tokens that were generated")
        self.cache_queries = self._counter("prefix_cache_queries", "Prompt tokens that were looked up in the cache")
        self.cache_hits = self._counter("prefix_cache_hits", "Prompt tokens that the cache held already")
        self.success = self._counter("request_success", "Answers by the reason of their end", "finished_reason")
        self.refused = self._counter("requests_refused", "Requests that were refused, by code or limit", "reason")
        self.block_hits = self._counter("retrieval_block_hits", "Fetched blocks by the tier that held them", "tier")
        self.ttft = self._histogram("time_to_first_token_seconds", "From the request to its first token", TTFT)
        self.per_token = self._histogram("time_per_output_token_seconds", "Between two tokens of an answer", PER_TOKEN)
        self.latency = self._histogram("e2e_request_latency_seconds", "From the request to its end", REQUEST)
        self.queue_time = self._histogram("request_queue_time_seconds", "Waiting to run", REQUEST)
        self.prefill_time = self._histogram("request_prefill_time_seconds", "Reading the prompt", REQUEST)
        self.decode_time = self._histogram("request_decode_time_seconds", "Generating the answer", REQUEST)
        self.retrieval = self._histogram(
            "retrieval_seconds", "Index scan and selection of one step", RETRIEVAL, "phase"
        )
        self.blocks = self._histogram("retrieval_blocks_selected", "Far blocks that a head fetched for a token", BLOCKS)
        self.mass = self._histogram(
            "retrieval_attention_mass", "Share of exact attention that a head read for a token, sampled", MASS
        )
        self.transfers = self._counter("kv_transfer_bytes", "Keys and values that were moved", "src", "dst")
        self.prefetched = self._counter("kv_prefetched", "Heads of blocks copied to the device before they were needed")
        self.prefetch_hits = self._counter("kv_prefetch_hits", "Heads of these that were needed then")
        self.restore = self._histogram("session_restore_seconds", "Bringing a stored session back to memory", RESTORE)
        self.audit_seconds = self._counter("retrieval_audit_seconds", "Time that the sampled audit took")

    def watch(self, stats: Callable[[], EngineStats]) -> None:
        """Ask the engine for its gauges whenever the metrics are read."""
        self.registry.register(_EngineGauges(stats))

    def observe_step(self, report: StepReport) -> None:
        """Count one forward pass; called on the engine's thread."""
        self.prompt_tokens.inc(report.prefill_tokens)
        if report.queries:
            self.retrieval.labels(report.phase).observe(report.retrieval_seconds)
            self.blocks.observe(report.blocks_selected / report.queries)
        for mass in report.audited:
            self.mass.observe(mass)
        self.audit_seconds.inc(report.audit_seconds)
        for tier, blocks in report.hits.items():
            self.block_hits.labels(tier).inc(blocks)
        for (source, target), count in report.moved.items():
            self.transfers.labels(source, target).inc(count)
        self.prefetched.inc(report.foreseen)
        self.prefetch_hits.inc(report.guessed)
        for seconds in report.restores:
            self.restore.observe(seconds)

    def count_refusal(self, status: int, reason: str) -> None:
        """Count a request that was refused for who sent it, for its size, or for what else is running."""
        if status in REFUSALS:
            self.refused.labels(reason).inc()

    def page(self) -> bytes:
        """The exposition that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"cairn_{name}", description, labels, registry=self.registry)

    def _histogram(self, name: str, description: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"cairn_{name}", description, labels, buckets=buckets, registry=self.registry)


class RequestClock:
    """Times and counts one request from its events."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._begin = time.monotonic()
        self._last: dict[int, float] = {}
        self._read = False
        self.stopped: set[int] = set()  # choices that a stop string ended: the engine calls them cancelled

    def observe(self, event: Event) -> None:
        """Count one event; called on the engine's thread."""
        if isinstance(event, Token):
            self._token(event.index)
        elif isinstance(event, Finished):
            self._finished(event)

    def _token(self, index: int) -> None:
        now = time.monotonic()
        self._metrics.generation_tokens.inc()
        if not self._last:
            self._metrics.ttft.observe(now - self._begin)
        if index in self._last:
            self._metrics.per_token.observe(now - self._last[index])
        self._last[index] = now

    def _finished(self, event: Finished) -> None:
        metrics, timing = self._metrics, event.timing
        metrics.success.labels("stop" if event.index in self.stopped else event.reason).inc()
        metrics.latency.observe(time.monotonic() - self._begin)
        metrics.queue_time.observe(timing.queue)
        metrics.prefill_time.observe(timing.prefill)
        metrics.decode_time.observe(timing.decode)
        if not self._read:  # the choices of one request share its prompt
            self._read = True
            metrics.cache_queries.inc(event.usage.prompt_tokens)
            metrics.cache_hits.inc(event.usage.cached_tokens)


class _EngineGauges(Collector):
    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def describe(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Nothing: registering must not ask the engine yet."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        stats = self._stats()
        yield GaugeMetricFamily("cairn_num_requests_running", "Requests that run", value=stats.running)
        yield GaugeMetricFamily("cairn_num_requests_waiting", "Requests that wait", value=stats.waiting)
        yield _labelled("cairn_sessions", "Sessions by state", "state", stats.sessions)
        tiers = stats.tiers.items()
        used = {name: tier.used_bytes for name, tier in tiers}
        yield _labelled("cairn_kv_tier_usage_bytes", "Bytes in use in a storage tier", "tier", used)
        capacity = {name: tier.capacity_bytes for name, tier in tiers}
        yield _labelled("cairn_kv_tier_capacity_bytes", "Bytes that a storage tier may use", "tier", capacity)
        blocks = {name: tier.blocks for name, tier in tiers}
        yield _labelled("cairn_kv_tier_blocks", "Blocks in a storage tier", "tier", blocks)
        unwritten, failed = stats.unwritten, float(stats.store_failed)
        yield GaugeMetricFamily("cairn_kv_unwritten_blocks", "Blocks that the disk does not have yet", value=unwritten)
        yield GaugeMetricFamily("cairn_kv_store_failed", "1 while the disk fails and memory alone keeps", value=failed)
        damaged = "Stored blocks that were damaged and computed again"
        yield CounterMetricFamily("cairn_kv_damaged_blocks", damaged, value=stats.damaged)
        evictions = CounterMetricFamily("cairn_session_evictions", "Sessions that had to make room", labels=["reason"])
        for reason in ("prefix", "room", "memory", "expired"):
            evictions.add_metric([reason], stats.evictions.get(reason, 0))
        yield evictions


def _labelled(name: str, description: str, label: str, values: dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, description, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family

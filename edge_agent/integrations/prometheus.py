"""What Prometheus reads: the last telemetry, the counts and distributions of now, in its text format.

Names end in their base unit; what is unknown has no sample. Imported only where it is asked for.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from edge_agent.health.condition import Condition
from edge_agent.health.counters import Counts, Distribution, ModelCounts
from edge_agent.integrations.http import HttpResponse, Routes
from edge_agent.protocol.payloads import EngineReading, Telemetry

PREFIX = "edge_agent_"
HEALTHS = ("starting", "ready", "degraded", "draining", "unhealthy")
WELL = ("ready", "degraded")

Samples = Mapping[Any, float]
"""Values by the values of their labels."""

_MACHINE = (
    ("uptime_s", "uptime_seconds", 1.0, "Time since the agent started."),
    ("cpu_percent", "cpu_busy_ratio", 0.01, "Share of processor time that was busy."),
    ("cpu_mhz", "cpu_clock_hertz", 1e6, "Mean clock of the processors."),
    ("load_1m", "load1", 1.0, "Mean length of the run queue over a minute."),
    ("memory_total_bytes", "memory_total_bytes", 1.0, "Memory of the machine."),
    ("memory_available_bytes", "memory_available_bytes", 1.0, "Memory that can be taken without swapping."),
    ("memory_stall_percent", "memory_stall_ratio", 0.01, "Share of time spent waiting for memory."),
    ("own_memory_bytes", "cgroup_memory_bytes", 1.0, "Memory of the agent's control group."),
    ("own_memory_limit_bytes", "cgroup_memory_limit_bytes", 1.0, "Its limit."),
    ("swap_used_bytes", "swap_used_bytes", 1.0, "Swap in use."),
    ("agent_rss_bytes", "resident_memory_bytes", 1.0, "Resident memory of the agent without its engines."),
    ("disk_free_bytes", "disk_free_bytes", 1.0, "Free bytes on the disk of the queue."),
    ("joules_per_token", "energy_per_token_joules", 1.0, "Energy drawn for each token generated in the last period."),
    ("battery_percent", "battery_charge_ratio", 0.01, "Charge of the battery."),
    ("on_battery", "on_battery", 1.0, "Whether the machine runs on its battery."),
    ("undervoltage", "undervoltage", 1.0, "Whether the power supply gave way in the last seconds."),
    ("restraint", "restraint_level", 1.0, "How far the agent holds back: 0 not at all, 4 with its models unloaded."),
    ("queue_oldest_s", "queue_oldest_seconds", 1.0, "Age of the longest waiting job."),
    ("outbox_waiting", "outbox_waiting_messages", 1.0, "Messages that wait for the broker."),
    ("outbox_in_flight", "outbox_unanswered_messages", 1.0, "Messages the broker has not answered yet."),
)
"""Fields of telemetry, the gauges they become, and what a gauge's unit is in the field's."""

_MACHINE_COUNTERS = (
    ("network_received_bytes", "network_received_bytes", "Bytes received by all network interfaces."),
    ("network_sent_bytes", "network_sent_bytes", "Bytes sent by all network interfaces."),
    ("outbox_dropped", "outbox_dropped_messages", "Messages dropped while the broker was away too long."),
    ("reconnects", "reconnects", "Connections to the broker after the first."),
)

_ENGINE = (
    ("running", "engine_running_jobs", "Jobs an engine runs."),
    ("lanes", "engine_lanes", "Jobs it can run at once."),
    ("context_tokens", "engine_context_tokens", "Tokens a job can have, prompt and answer."),
    ("anonymous_bytes", "engine_anonymous_bytes", "Memory of an engine that no file backs."),
    ("mapped_bytes", "engine_mapped_bytes", "Memory of an engine that files back, its weights among them."),
    ("prompt_per_second", "engine_prompt_tokens_per_second", "Prompt tokens computed in a second, running mean."),
    ("generate_per_second", "engine_output_tokens_per_second", "Tokens generated in a second, running mean."),
)

_ACCELERATOR = (
    ("busy_percent", "accelerator_busy_ratio", 0.01, "Share of time an accelerator worked."),
    ("clock_mhz", "accelerator_clock_hertz", 1e6, "Its clock."),
    ("memory_used_bytes", "accelerator_memory_used_bytes", 1.0, "Its own memory in use."),
    ("celsius", "accelerator_temperature_celsius", 1.0, "Its hottest sensor."),
    ("power_watts", "accelerator_power_watts", 1.0, "What it draws."),
)

_MODEL_COUNTERS: tuple[tuple[str, str, Callable[[ModelCounts], int]], ...] = (
    ("prompt_tokens", "Tokens of the prompts of ended jobs.", lambda counts: counts.prompt_tokens),
    ("cached_prompt_tokens", "Those that were not computed anew.", lambda counts: counts.cached_tokens),
    ("output_tokens", "Tokens generated for ended jobs.", lambda counts: counts.completion_tokens),
)


@dataclass(frozen=True, slots=True)
class MetricSources:
    """Where what is read comes from: the last telemetry (None before the first), the counts, how the agent is now.

    `stuck` tells which threads do not come back.
    """

    telemetry: Callable[[], Telemetry | None]
    counts: Callable[[], Counts]
    condition: Callable[[], Condition]
    connected: Callable[[], bool]
    stuck: Callable[[], tuple[str, ...]]


def routes(sources: MetricSources) -> Routes:
    """Return what answers /metrics, /healthz and /readyz."""
    return {
        "/metrics": lambda: HttpResponse(metrics(sources), content_type=CONTENT_TYPE_PLAIN_0_0_4),
        "/healthz": lambda: _verdict("alive", tuple(f"{each} does not come back" for each in sources.stuck())),
        "/readyz": lambda: _readiness(sources),
    }


def metrics(sources: MetricSources) -> bytes:
    """Return everything in the text format."""
    text: bytes = generate_latest(cast(Any, _Registry(lambda: _families(sources))))
    return text


@dataclass(frozen=True, slots=True)
class _Registry:
    """What the library writes from: it asks no more of a registry than this."""

    collect: Callable[[], Iterable[Any]]


def _readiness(sources: MetricSources) -> HttpResponse:
    condition = sources.condition()
    faults = [] if condition.health in WELL else list(condition.reasons or [condition.health])
    if not sources.connected():
        faults.append("no connection to the broker")
    return _verdict(condition.health, faults)


def _verdict(well: str, faults: Iterable[str]) -> HttpResponse:
    lines = tuple(faults)
    status = HTTPStatus.SERVICE_UNAVAILABLE if lines else HTTPStatus.OK
    return HttpResponse("".join(f"{line}\n" for line in lines or (well,)).encode(), status)


def _families(sources: MetricSources) -> Iterator[Any]:
    condition, counts = sources.condition(), sources.counts()
    yield _gauge("health", "How the agent is.", {(each,): float(each == condition.health) for each in HEALTHS}, "state")
    yield _gauge("connected", "Whether the broker is connected.", {(): float(sources.connected())})
    yield from _counted(counts)
    if (telemetry := sources.telemetry()) is not None:
        yield from _told(telemetry)


def _counted(counts: Counts) -> Iterator[Any]:
    models = counts.models
    ended = {(name, state): count for name, each in models.items() for state, count in each.ended.items()}
    yield _counter("jobs", "Jobs that ended, since the agent started.", ended, "model", "state")
    for name, text, of in _MODEL_COUNTERS:
        yield _counter(name, text, {(model,): of(each) for model, each in models.items()}, "model")
    yield _counter("rejected_messages", "Messages refused.", {(c,): n for c, n in counts.rejected.items()}, "code")
    yield _counter(
        "engine_losses", "Engines that died or were killed.", {(m,): counts.lost.get(m, 0) for m in models}, "model"
    )
    yield _counter(
        "fallbacks",
        "Times a model went on at another device after one failed.",
        {(m,): counts.fallbacks.get(m, 0) for m in models},
        "model",
    )
    yield _histogram(
        "first_token_seconds",
        "From acceptance to the first text.",
        {model: each.first_token_s for model, each in models.items()},
    )
    yield _histogram(
        "output_token_seconds",
        "Time for each token after the prompt, a job's mean.",
        {model: each.output_token_s for model, each in models.items()},
    )


def _told(telemetry: Telemetry) -> Iterator[Any]:
    values = dict(telemetry)
    what = (telemetry.agent, telemetry.version, telemetry.boot_id)
    yield _gauge("build_info", "Which agent this is.", {what: 1.0}, "agent", "version", "boot_id")
    for field, name, per, text in _MACHINE:
        yield _gauge(name, text, _one(None if values[field] is None else values[field] * per))
    for field, name, text in _MACHINE_COUNTERS:
        yield _counter(name, text, _one(values[field]))
    yield _gauge("queue_jobs", "Unfinished jobs.", {(s,): n for s, n in telemetry.queue.items()}, "state")
    lifetime = dict(telemetry.lifetime or {})
    tokens = lifetime.pop("completion_tokens", None)
    yield _counter("lifetime_jobs", "Jobs since the queue was made.", {(s,): n for s, n in lifetime.items()}, "state")
    yield _counter("lifetime_output_tokens", "Tokens since then.", _one(tokens))
    yield from _heat_and_power(telemetry)
    accelerators = {each.name: dict(each) for each in telemetry.accelerators or ()}
    for field, name, per, text in _ACCELERATOR:
        known = {(each,): values[field] * per for each, values in accelerators.items() if values[field] is not None}
        yield _gauge(name, text, known, "accelerator")
    yield from _engines(telemetry.engines)


def _heat_and_power(telemetry: Telemetry) -> Iterator[Any]:
    sensor, slowed = telemetry.hottest, telemetry.slowed
    text = "The sensor that is nearest to its limit."
    yield _gauge("temperature_celsius", text, _one(telemetry.hottest_celsius, sensor), "sensor")
    yield _gauge("temperature_margin_celsius", "How near, in K.", _one(telemetry.heat_margin_c, sensor), "sensor")
    text = "Whether heat slows the processors down."
    yield _gauge("slowed_by_heat", text, _one(None if slowed is None else float(bool(slowed))))
    yield _gauge("power_watts", "What is drawn, and by what.", _one(telemetry.power_watts, telemetry.power_of), "of")


def _engines(engines: Iterable[EngineReading]) -> Iterator[Any]:
    readings = {engine.model: dict(engine) for engine in engines}
    states = {(model, str(values["state"])): 1.0 for model, values in readings.items()}
    yield _gauge("engine_state", "How an engine is.", states, "model", "state")
    for field, name, text in _ENGINE:
        known = {(model,): values[field] for model, values in readings.items() if values[field] is not None}
        yield _gauge(name, text, known, "model")


def _gauge(name: str, text: str, samples: Samples, *labels: str) -> Any:
    return _filled(GaugeMetricFamily(PREFIX + name, text, labels=labels), samples)


def _counter(name: str, text: str, samples: Samples, *labels: str) -> Any:
    return _filled(CounterMetricFamily(PREFIX + name, text, labels=labels), samples)


def _filled(family: Any, samples: Samples) -> Any:
    for values, value in samples.items():
        family.add_metric(values, value)
    return family


def _one(value: float | None, *labels: str | None) -> Samples:
    """Return the sample of a value that may be unknown."""
    return {} if value is None else {labels: value}


def _histogram(name: str, text: str, samples: Mapping[str, Distribution]) -> Any:
    family = HistogramMetricFamily(PREFIX + name, text, labels=("model",))
    for model, values in samples.items():
        bounds = [*map(str, values.bounds), "+Inf"]
        family.add_metric((model,), buckets=list(zip(bounds, values.counts, strict=True)), sum_value=values.total)
    return family

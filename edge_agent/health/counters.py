"""What was done since the agent started: how many jobs ended how, in how many tokens, how fast.

Fed with what was committed, so that nothing is counted that did not happen; read by reports.
"""

import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edge_agent.base.errors import Code
from edge_agent.engine.messages import Event, Text
from edge_agent.jobs.job import TERMINAL, Job, Outcome

FIRST_TOKEN_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
OUTPUT_TOKEN_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
RECENT_JOBS = 256
"""Of so many jobs of a model the percentiles are told."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """How many values were at most as large as each bound, all of them last; and their sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, slots=True)
class ModelCounts:
    """What was done with one model.

    `first_token_s` runs from acceptance to the first text, as in a result; `output_token_s` is the engine's time per
    token of a job after its prompt. The percentiles are of the last RECENT_JOBS jobs, in ms; None before any.
    """

    ended: Mapping[str, int]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_s: Distribution
    output_token_s: Distribution
    first_token_p50_ms: float | None
    first_token_p95_ms: float | None

    @property
    def cached_share(self) -> float | None:
        """The share of prompt tokens that were not computed anew; None before any prompt."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None


@dataclass(frozen=True, slots=True)
class Counts:
    """Everything that is counted: by model, refused messages by code, engines that died under us by model.

    `fallbacks` of those made the model go on at another place.
    """

    models: Mapping[str, ModelCounts]
    rejected: Mapping[str, int]
    lost: Mapping[str, int]
    fallbacks: Mapping[str, int] = field(default_factory=dict)

    def summary(self) -> dict[str, int]:
        """Return the sums over all models, by name; what never happened is absent."""
        sums: Counter[str] = Counter()
        for each in self.models.values():
            sums.update(each.ended)
            sums.update(
                prompt_tokens=each.prompt_tokens,
                cached_tokens=each.cached_tokens,
                completion_tokens=each.completion_tokens,
            )
        sums.update(
            rejected=sum(self.rejected.values()),
            engine_losses=sum(self.lost.values()),
            fallbacks=sum(self.fallbacks.values()),
        )
        return {name: count for name, count in sums.items() if count}


class _Values:
    """Values of one kind, in buckets."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def distribution(self) -> Distribution:
        sums, sum_so_far = [], 0
        for count in self._counts:
            sum_so_far += count
            sums.append(sum_so_far)
        return Distribution(self._bounds, tuple(sums), self._total)


@dataclass(slots=True)
class _ModelCounts:
    ended: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    first_token: _Values = field(default_factory=lambda: _Values(FIRST_TOKEN_BOUNDS_S))
    output_token: _Values = field(default_factory=lambda: _Values(OUTPUT_TOKEN_BOUNDS_S))
    recent_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_JOBS))

    def add(self, job: Job, outcome: Outcome) -> None:
        self.ended[job.state] += 1
        usage, timings = outcome.usage, outcome.timings
        if usage is not None:
            self.tokens.update(
                prompt=usage.prompt_tokens,
                cached=usage.prompt_tokens_details.cached_tokens,
                completion=usage.completion_tokens,
            )
        if timings is not None and timings.first_token_ms is not None:
            self.first_token.add(timings.first_token_ms / 1000)
            self.recent_ms.append(timings.first_token_ms)
        if usage is not None and usage.completion_tokens and timings is not None and timings.generate_ms:
            self.output_token.add(timings.generate_ms / usage.completion_tokens / 1000)

    def counts(self) -> ModelCounts:
        ordered = sorted(self.recent_ms)
        return ModelCounts(
            ended=dict(self.ended),
            prompt_tokens=self.tokens["prompt"],
            cached_tokens=self.tokens["cached"],
            completion_tokens=self.tokens["completion"],
            first_token_s=self.first_token.distribution(),
            output_token_s=self.output_token.distribution(),
            first_token_p50_ms=_percentile(ordered, 50),
            first_token_p95_ms=_percentile(ordered, 95),
        )


class Counters:
    """Counts for everybody; every method may be called from any thread."""

    def __init__(self, models: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._models = {model: _ModelCounts() for model in models}
        self._generated = dict.fromkeys(models, 0)
        self._rejected: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._fallbacks: Counter[str] = Counter()

    def changed(self, jobs: Sequence[Job]) -> None:
        """Count the jobs that have ended of those that changed."""
        for job in jobs:
            if job.state in TERMINAL:
                with self._lock:
                    self._models.setdefault(job.model, _ModelCounts()).add(job, job.outcome or Outcome())

    def heard(self, model: str, event: Event) -> None:
        """Count the tokens an engine generates, as they come; called by that engine's thread alone."""
        if isinstance(event, Text):
            self._generated[model] += event.tokens

    def rejected(self, code: Code) -> None:
        """Count a refused message."""
        with self._lock:
            self._rejected[code] += 1

    def lost(self, model: str, *, moved: bool = False) -> None:
        """Count an engine that died or was killed; `moved`: the model goes on at another place."""
        with self._lock:
            self._lost[model] += 1
            self._fallbacks[model] += moved

    @property
    def generated(self) -> int:
        """Tokens all engines have generated so far, those of unfinished jobs included."""
        return sum(self._generated.values())

    def counts(self) -> Counts:
        """Return everything counted so far."""
        with self._lock:
            models = {name: model.counts() for name, model in self._models.items()}
            return Counts(models, dict(self._rejected), dict(self._lost), dict(self._fallbacks))


def _percentile(ordered: Sequence[float], percent: int) -> float | None:
    """Return the nearest-rank percentile of sorted values."""
    return ordered[-(-len(ordered) * percent // 100) - 1] if ordered else None

"""How fast jobs go, as measured: the base of every estimate given to a requester.

A job takes its prompt's time (in proportion to the bytes of its request: the tokens are counted only when it runs), so
many tokens at the speed of a lane that has so many neighbours, and a little for the way. How long an answer gets is
learned as a share of `max_tokens`.
"""

import heapq
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

WEIGHT = 0.1
"""Share of the newest job in what is remembered: about the last twenty count."""


@dataclass(frozen=True, slots=True)
class JobWork:
    """What is known of a job before it runs; of one that runs, for how long it has."""

    request_bytes: int
    max_tokens: int
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """A waiting job, what waits before it, and what runs, all of one model."""

    work: JobWork
    position: int
    ahead: Sequence[JobWork]
    running: Sequence[JobWork]


@dataclass(frozen=True, slots=True)
class Took:
    """How long a job took that ran to its end, with so many others beside it on average."""

    work: JobWork
    completion_tokens: int
    prompt_s: float
    generate_s: float
    busy_s: float
    beside: float


@dataclass(slots=True)
class _Ratio:
    """A quotient of two sums in which older jobs count less and less."""

    above: float = 0.0
    below: float = 0.0

    def add(self, above: float, below: float) -> None:
        if below > 0:
            self.above += WEIGHT * (above - self.above) if self.below else above
            self.below += WEIGHT * (below - self.below) if self.below else below

    @property
    def value(self) -> float:
        return self.above / self.below if self.below else 0.0


@dataclass(slots=True)
class _Speeds:
    """Of one model."""

    prompt_s_per_byte: _Ratio = field(default_factory=_Ratio)
    tokens_share: _Ratio = field(default_factory=_Ratio)
    way_s: _Ratio = field(default_factory=_Ratio)
    token_s: dict[int, _Ratio] = field(default_factory=dict)
    """By the number of neighbours."""

    def add(self, took: Took) -> None:
        self.prompt_s_per_byte.add(took.prompt_s, took.work.request_bytes)
        self.tokens_share.add(took.completion_tokens, took.work.max_tokens)
        self.way_s.add(max(0.0, took.busy_s - took.prompt_s - took.generate_s), 1)
        self.token_s.setdefault(round(took.beside), _Ratio()).add(took.generate_s, took.completion_tokens)

    def service_s(self, work: JobWork, beside: int, *, share: float | None = None) -> float:
        """Return how long a job is in its lane; `share` of its `max_tokens` is generated, as learned when None."""
        nearest = min(self.token_s, key=lambda known: (abs(known - beside), -known))
        tokens = work.max_tokens * (self.tokens_share.value if share is None else share)
        prompt_s = work.request_bytes * self.prompt_s_per_byte.value
        return prompt_s + tokens * self.token_s[nearest].value + self.way_s.value

    def left_s(self, work: JobWork, beside: int) -> float:
        """Return how long a running job still runs: one that runs longer than most ends half-way to its longest."""
        left_s = self.service_s(work, beside) - work.elapsed_s
        if left_s > 0:
            return left_s
        return max(0.0, (self.service_s(work, beside, share=1.0) - work.elapsed_s) / 2)


class Pace:
    """The speeds of all models. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._speeds: dict[str, _Speeds] = {}
        self._lanes: dict[str, int] = {}

    def note(self, model: str, took: Took, *, lanes: int) -> None:
        """Take in a job that ran to its end, where so many run at once."""
        with self._lock:
            self._speeds.setdefault(model, _Speeds()).add(took)
            self._lanes[model] = lanes

    def eta_s(self, model: str, line: Line) -> float | None:
        """Return in how many seconds a waiting job may be done; None before any was measured.

        The lanes take what waits in its order, each as it gets free.
        """
        with self._lock:
            if model not in self._speeds:
                return None
            speeds, lanes = self._speeds[model], self._lanes[model]
            beside = min(lanes, len(line.running) + line.position) - 1
            free_s = [speeds.left_s(work, beside) for work in line.running]
            free_s += [0.0] * (lanes - len(free_s))
            heapq.heapify(free_s)
            for work in line.ahead:
                heapq.heapreplace(free_s, free_s[0] + speeds.service_s(work, beside))
            return round(free_s[0] + speeds.service_s(line.work, beside), 1)

    def room_s(self, model: str, running: Sequence[JobWork]) -> float | None:
        """Return in how many seconds the next running job may end; None when that cannot be told."""
        with self._lock:
            if model not in self._speeds or not running:
                return None
            beside = len(running) - 1
            return round(min(self._speeds[model].left_s(work, beside) for work in running), 1)

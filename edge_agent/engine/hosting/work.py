"""What one engine was given to do, and since when it has said nothing of it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.engine.messages import Failed, Finished, JobId, Message, Progress, Ready, Trying

TRIAL = JobId("trial")
"""What it works on while it is tried, before it is ready."""


@dataclass(frozen=True, slots=True)
class WorkSnapshot:
    """How an engine's work stood at one moment. Seconds.

    `busy`: it has jobs, or its trial. `silent_s`: how long it has said nothing of what it has to do, 0 when that is
    nothing. `idle_s`: how long it has had no jobs, 0 while it has some. `unprocessed_tokens`: of prompts, still to be
    computed; an upper bound before it has counted them. `tried`: its trial is under way. `rows` are those of its jobs.
    """

    busy: bool
    silent_s: float
    idle_s: float
    unprocessed_tokens: int
    tried: bool
    rows: frozenset[str] = frozenset()


class EngineWork:
    """Kept by whoever talks with the engine, on any thread.

    Silence is counted against work that the engine holds, and against nothing else: it begins when the engine is given
    something while it has nothing, and anew with each of its words. An engine holds its load from the start until it is
    ready, and one that cannot load holds its own end.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self._unprocessed: dict[JobId, int] = {}
        self._loads = True
        self._since_s = now_s()

    def begin(self, job_id: JobId, tokens: int) -> None:
        """Note that it is given a job, whose prompt has at most so many tokens."""
        with self._lock:
            if not self._unprocessed:
                self._since_s = self._now_s()
            self._unprocessed[job_id] = tokens

    def heard(self, message: Message) -> None:
        """Take in what it says."""
        with self._lock:
            self._since_s = self._now_s()
            match message:
                case Progress(job_id, unprocessed) if job_id in self._unprocessed:
                    self._unprocessed[job_id] = unprocessed
                case Finished() | Failed():
                    self._unprocessed.pop(message.job_id, None)
                case Trying(unprocessed):
                    self._unprocessed[TRIAL] = unprocessed
                case Ready():
                    self._loads = False
                    self._unprocessed.pop(TRIAL, None)
                case _:
                    pass

    def held(self) -> WorkSnapshot:
        """Return how its work stands now."""
        with self._lock:
            since_s = self._now_s() - self._since_s
            busy = bool(self._unprocessed)
            return WorkSnapshot(
                busy=busy,
                silent_s=since_s if busy or self._loads else 0.0,
                idle_s=0.0 if busy else since_s,
                unprocessed_tokens=sum(self._unprocessed.values()),
                tried=TRIAL in self._unprocessed,
                rows=frozenset(job_id.partition(".")[0] for job_id in self._unprocessed if job_id != TRIAL),
            )

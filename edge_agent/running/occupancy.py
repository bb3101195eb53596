"""What one model's engine is doing, and whether the queue is to be asked for more."""

from dataclasses import dataclass, field

from edge_agent.engine.hosting.process import EngineProcess
from edge_agent.engine.messages import JobId
from edge_agent.running.attempt import Attempt


@dataclass(slots=True)
class Occupancy:
    """Kept by the dispatcher.

    The queue is asked when something has `changed`: jobs may be there, or a lane free, that were not when it was asked
    last. While it is being asked (`claiming`) what changes is noted, and it is asked once more: no answer tells of what
    came after the question.

    The engine has been ready since `ready_s`, after `load_s` of loading; `lane_s` are the seconds of work of all its
    lanes together.
    """

    running: dict[JobId, Attempt] = field(default_factory=dict)
    engine: EngineProcess | None = None
    changed: bool = True
    claiming: bool = False
    ready_s: float = 0.0
    load_s: float = 0.0
    lane_s: float = 0.0
    counted_s: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether it has jobs, or gets some in a moment."""
        return bool(self.running) or self.claiming

    @property
    def reserved(self) -> bool:
        """Whether a job runs beside which no other may begin."""
        return any(run.reserved for run in self.running.values())

    def count(self, now_s: float) -> None:
        """Add up the lane seconds; to be called before any job comes or goes."""
        self.lane_s += len(self.running) * (now_s - self.counted_s)
        self.counted_s = now_s

    def release(self, run: Attempt) -> None:
        """Free the lane of an attempt; the seconds have been counted."""
        del self.running[run.id]
        self.changed = True

    def clear(self, now_s: float) -> list[Attempt]:
        """Forget what runs; return the attempts, those whose outcome is decided among them."""
        self.count(now_s)
        runs = list(self.running.values())
        self.running.clear()
        self.changed = True
        return runs

"""Whether threads live: each says when it will be heard of again, and who feeds the watchdog looks whether it was."""

import math
from collections.abc import Callable, Iterable

from edge_agent.base.awake import awake_s

STUCK_S = 60.0
"""What a thread may take for one turn; one that takes longer does not come back. A sync on a dying card takes seconds,
a name server that is away 30 s."""
IDLE_S = 60.0
"""How long a thread sleeps when nothing wakes it."""


class Heartbeat:
    """One thread's word; not started, or ended in order, it has given none."""

    def __init__(self, thread: str, *, now_s: Callable[[], float] = awake_s) -> None:
        self.thread = thread
        self.due_s = math.inf
        self._now_s = now_s

    def __call__(self, wait_s: float = 0.0) -> None:
        """Say that a turn begins, or that one waits so long, or less, for something to do, and a turn begins then."""
        self.due_s = self._now_s() + wait_s + STUCK_S

    def over(self) -> None:
        """Say that the thread ends, as it shall."""
        self.due_s = math.inf


def stuck(beats: Iterable[Heartbeat], *, now_s: float) -> tuple[str, ...]:
    """Return the threads that were not heard of when they had said they would be (pure)."""
    return tuple(beat.thread for beat in beats if beat.due_s < now_s)

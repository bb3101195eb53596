"""Who wants one model in memory, and since when: jobs that wait, administrators, a pin, its keep-alive."""

import threading
from collections.abc import Callable
from dataclasses import replace

from edge_agent.engine.hosting.residency import ModelView
from edge_agent.jobs.overview import Demand


class ModelDemand:
    """Told by anybody, on any thread; `join` belongs to the main thread, which decides.

    `keep_alive_s` is how long a model stays with nothing to do, None for as long as there is room.
    """

    def __init__(self, *, keep_alive_s: float | None, pinned: bool, now_s: Callable[[], float]) -> None:
        self.pinned = pinned
        self._keep_alive_s = keep_alive_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._jobs: Demand | None = None
        self._asked = self._dismissed = self._overruled = False
        self._since_s: float | None = None

    def demand(self, jobs: Demand | None) -> None:
        """Note the jobs that wait for it."""
        self._jobs = jobs

    def ask(self) -> None:
        """Want it loaded, as a job would that waits for it; until it is, or cannot be."""
        with self._lock:
            self._asked, self._dismissed = True, False

    def relent(self) -> None:
        """Want it loaded no longer than jobs do."""
        with self._lock:
            self._asked = False

    def pin(self, *, pinned: bool) -> None:
        """Keep it loaded whatever else needs the memory, or no longer."""
        self.pinned = pinned

    def dismiss(self) -> None:
        """Want it gone, and not back before a job waits for it."""
        with self._lock:
            self._asked, self._dismissed, self._overruled = False, True, False

    def keep(self) -> None:
        """Take a `dismiss` back."""
        with self._lock:
            self._dismissed = self._overruled = False

    def join(self, seen: ModelView) -> ModelView:
        """Return how a model is seen with who wants it.

        Who does waits from the first time it is seen away. Loading it overrules who wanted it gone before.
        """
        with self._lock:
            if not seen.loaded:
                self._overruled = self._dismissed
            elif self._overruled:
                self._dismissed = self._overruled = False
            now_s, jobs = self._now_s(), self._jobs
            waits = not seen.loaded and (jobs is not None or self._asked or self.pinned)
            self._since_s = (now_s if self._since_s is None else self._since_s) if waits else None
            return replace(
                seen,
                rank=None if jobs is None else jobs.rank,
                waiting=0 if jobs is None else jobs.jobs,
                waited_s=0.0 if self._since_s is None else now_s - self._since_s,
                keep_alive_s=self._keep_alive_s,
                pinned=self.pinned,
                asked=self._asked,
                dismissed=self._dismissed,
            )

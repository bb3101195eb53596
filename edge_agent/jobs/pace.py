"""How fast jobs go, as measured: the base of every estimate given to a requester."""

import threading

WEIGHT = 0.2
"""Share of the newest job in the running mean: about the last ten count."""


class Pace:
    """Running mean of the seconds one lane of a model is busy with a job. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mean_s: dict[str, float] = {}
        self._lanes: dict[str, int] = {}

    def note(self, model: str, busy_s: float, *, lanes: int) -> None:
        """Take in one finished job."""
        with self._lock:
            mean_s = self._mean_s.get(model, busy_s)
            self._mean_s[model] = mean_s + WEIGHT * (busy_s - mean_s)
            self._lanes[model] = lanes

    def eta_s(self, model: str, position: int) -> float | None:
        """Return in how many seconds the job at a place (1 is the next) may be done; None before any was measured."""
        with self._lock:
            if model not in self._mean_s:
                return None
            return round(self._mean_s[model] * (1 + position / self._lanes[model]), 1)

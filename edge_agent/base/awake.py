"""The clock by which time-outs are judged: it stands still while this process does.

A process that is frozen (a paused container, SIGSTOP, a suspended machine, a starved one) neither hears nor sees what
others do meanwhile, and mostly they are frozen with it. When it goes on, nobody has used the time that has passed, so
nobody is held to it: a time-out goes on where it was. What must keep to the world's time (a job's time to live) is
told by the queue's clock.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")

PULSE_S = 1.0
"""How often the process shows itself that it goes on."""
LAPSE_S = 3.0
"""At most so much time passes between two pulses; of what is longer, the rest did not happen."""
POLL_S = 0.01
"""The shortest wait: a clock that stands still brings no end nearer."""


class Awake:
    """Seconds, from any thread. Without pulses it is the clock that it is made of."""

    def __init__(self, *, raw_s: Callable[[], float] = time.monotonic) -> None:
        self._raw_s = raw_s
        self._lock = threading.Lock()
        self._pulse_s: float | None = None
        self._lost_s = 0.0

    @property
    def started(self) -> bool:
        """Whether it has had a pulse."""
        return self._pulse_s is not None

    def now_s(self) -> float:
        """Return the time on this clock."""
        with self._lock:
            raw_s = self._raw_s()
            return (raw_s if self._pulse_s is None else min(raw_s, self._pulse_s + LAPSE_S)) - self._lost_s

    def pulse(self) -> None:
        """Note that the process goes on; call it every PULSE_S from the first call on."""
        with self._lock:
            raw_s = self._raw_s()
            if self._pulse_s is not None:
                self._lost_s += max(0.0, raw_s - self._pulse_s - LAPSE_S)
            self._pulse_s = raw_s


_clock = Awake()
awake_s = _clock.now_s
"""The time of this process, in seconds."""


def keep_time() -> None:
    """Let the clock of this process see from now on when it stands still."""
    if not _clock.started:
        _clock.pulse()
        threading.Thread(target=_beat, name="pulse", daemon=True).start()


def _beat() -> None:
    while True:
        time.sleep(PULSE_S)
        _clock.pulse()


def wait_awake(wait: Callable[[float], bool], timeout_s: float, *, now_s: Callable[[], float] = awake_s) -> bool:
    """Return whether `wait`, given how long it may take in seconds, came to something in time by this clock."""
    end_s = now_s() + timeout_s
    while not wait(max(POLL_S, min(end_s - now_s(), timeout_s))):
        if now_s() >= end_s:
            return False
    return True


def result_awake(future: Future[T], timeout_s: float) -> T:
    """Return what comes of something, in time by this clock. Raises TimeoutError, or what it ended with."""
    wait_awake(lambda wait_s: bool(wait([future], wait_s).done), timeout_s)
    return future.result(0)

"""Messages to us that are nobody's job: how often one of them is said in the log."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from edge_agent.base.log import get_logger
from edge_agent.protocol.decode import printable

EACH_S = 600.0
"""One line for each topic in so long."""
MOST, WITHIN_S = 20, 60.0
"""And so many lines in all: whoever can publish can make up topics."""
SHOWN_CHARACTERS = 120

log = get_logger()


class Strangers:
    """May be told on any thread; `now_s` is a monotonic clock."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self._said: OrderedDict[str, float] = OrderedDict()
        self._lines: deque[float] = deque(maxlen=MOST)
        self._unsaid = 0

    def note(self, topic: str, reason: str) -> None:
        """Log, unless that was done lately, that a message on a topic cannot be taken, and why."""
        with self._lock:
            if not self._due(topic, self._now_s()):
                self._unsaid += 1
                return
            unsaid, self._unsaid = self._unsaid, 0
        log.warning("message.misaddressed", topic=printable(topic, SHOWN_CHARACTERS), reason=reason, unsaid=unsaid)

    def _due(self, topic: str, now_s: float) -> bool:
        while self._said and now_s - next(iter(self._said.values())) >= EACH_S:
            self._said.popitem(last=False)
        flooded = len(self._lines) == MOST and now_s - self._lines[0] < WITHIN_S
        if topic in self._said or flooded:
            return False
        self._said[topic] = now_s
        self._lines.append(now_s)
        return True

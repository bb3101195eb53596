"""Messages to us that are nobody's job, or refused: how often one of them is said in the log."""

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable

from edge_agent.base.log import get_logger
from edge_agent.protocol.decode import printable

EACH_S = 600.0
"""One line for each topic in so long."""
MOST, WITHIN_S = 20, 60.0
"""And so many lines in all: whoever can publish can make up topics."""
SHOWN_CHARACTERS = 120
REJECTIONS_MOST = 60
"""Of one client's within the same time: whoever sends ten thousand wrong messages shall not fill the log's disk."""
KEYS_MAX = 1024
"""Of those who said least of late the first is forgotten."""

log = get_logger()


class Sparing:
    """At most `most` lines of each key within `within_s`. May be asked on any thread; `now_s` is a monotonic clock."""

    def __init__(self, now_s: Callable[[], float], *, most: int = MOST, within_s: float = WITHIN_S) -> None:
        self._now_s = now_s
        self._most, self._within_s = most, within_s
        self._lock = threading.Lock()
        self._said: OrderedDict[str, deque[float]] = OrderedDict()
        self._unsaid: Counter[str] = Counter()

    def due(self, key: str) -> int | None:
        """Return whether a line may be written now: how many were not since the last one, None when it may not."""
        with self._lock:
            now_s = self._now_s()
            lines = self._said.setdefault(key, deque(maxlen=self._most))
            self._said.move_to_end(key)
            if len(self._said) > KEYS_MAX:
                forgotten, _ = self._said.popitem(last=False)
                del self._unsaid[forgotten]
            if len(lines) == self._most and now_s - lines[0] < self._within_s:
                self._unsaid[key] += 1
                return None
            lines.append(now_s)
            return self._unsaid.pop(key, 0)


class Strangers:
    """May be told on any thread; `now_s` is a monotonic clock."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self._said: OrderedDict[str, float] = OrderedDict()
        self._all = Sparing(now_s)
        self._rejections = Sparing(now_s, most=REJECTIONS_MOST)
        self._repeated = 0

    def note(self, topic: str, reason: str) -> None:
        """Log, unless that was done lately, that a message on a topic cannot be taken, and why."""
        with self._lock:
            now_s = self._now_s()
            while self._said and now_s - next(iter(self._said.values())) >= EACH_S:
                self._said.popitem(last=False)
            unsaid = None if topic in self._said else self._all.due("")
            if unsaid is None:
                self._repeated += topic in self._said
                return
            self._said[topic] = now_s
            unsaid += self._repeated
            self._repeated = 0
        log.warning("message.misaddressed", topic=printable(topic, SHOWN_CHARACTERS), reason=reason, unsaid=unsaid)

    def rejected(self, event: str, client: str, **fields: str) -> None:
        """Log, unless that was done often lately, that a client's message was refused."""
        unsaid = self._rejections.due(client)
        if unsaid is not None:
            log.info(event, client=client, **fields, **({"unsaid": unsaid} if unsaid else {}))

"""Whether the broker still answers. It must confirm every message of QoS 1; MQTT does not say by when."""

from collections.abc import Callable

SILENT_S = 120.0
"""A broker that owes answers and gave none for so long is given up. One that throttles us, or waits for its disk, still
gives some. All that is sent waits for them: no more than a few messages may be unanswered."""
KEEPALIVES = 2
"""It is waited for so many keepalives at least: whoever made them long has a link on which a message takes long."""


class Silence:
    """How long the broker has answered nothing on this connection."""

    def __init__(self, *, keepalive_s: float, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self.begin(keepalive_s=keepalive_s)

    def begin(self, *, keepalive_s: float | None = None) -> None:
        """Count anew: a connection has begun, with this keepalive, or the broker has answered something."""
        if keepalive_s is not None:
            self._bound_s = max(SILENT_S, KEEPALIVES * keepalive_s)
        self._since_s = self._now_s()

    def too_long(self, *, owed: bool) -> bool:
        """Return whether it lasts too long. Call it often; while no answer is `owed` nothing is counted."""
        if not owed:
            self.begin()
        return self._now_s() - self._since_s >= self._bound_s

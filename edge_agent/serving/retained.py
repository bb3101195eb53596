"""Whether a broker still holds what we said last on a retained topic of ours. PURE."""

from collections import deque

UNHEARD_MAX = 16
MEND_S = 10.0
"""What was overwritten is said again at most so often: two who overwrite each other must not wear the broker out."""


class RetainedTopic:
    """One topic. We are subscribed to it, so all that is said there comes here, in the broker's order."""

    def __init__(self) -> None:
        self._unheard: deque[bytes] = deque(maxlen=UNHEARD_MAX)
        self._newest = b""
        self._heard = False
        self._mended_s = float("-inf")

    def begin(self) -> None:
        """Note that a connection begins: what was kept of an earlier one comes before what is said on this one."""
        self._unheard.clear()
        self._heard = False

    def said(self, payload: bytes) -> None:
        """Note what we say."""
        self._unheard.append(payload)
        self._newest = payload

    def foreign(self, payload: bytes) -> bool:
        """Return whether a message there is somebody else's, and the newest."""
        if payload in self._unheard:
            self._heard = True
            while payload in self._unheard:
                self._unheard.popleft()
            return False
        return self._heard and not self._unheard and payload != self._newest

    def may_mend(self, now_s: float) -> bool:
        """Return whether it may be said again already, and note that it is."""
        if now_s - self._mended_s < MEND_S:
            return False
        self._mended_s = now_s
        return True

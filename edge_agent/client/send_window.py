"""How many jobs a requester lets be on their way to a pool at once.

A broker deals jobs to agents as they come, whether they have room or not, and some lose what they dealt to an agent
that then leaves. So few are sent before they are answered: more while agents take them, one now and then while none
does.
"""

WINDOW_MOST = 16
ANSWER_S = 1.0
"""A job not answered for so long keeps no other back; it is sent again at its own time."""
PAUSE_FIRST_S = 0.2
PAUSE_MOST_S = 2.0
"""When no agent had room, the next job is sent after 0.2 s, 0.4 s …: agents come back before they run dry."""
STIR_S = 0.05
"""How long an agent that has room again needs to come back."""


class SendWindow:
    """Of one pool. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._window = 1
        self._sent: dict[str, float] = {}
        self._opens_s = 0.0
        self._pauses = 0

    def open(self, now_s: float) -> bool:
        """Return whether another job may be sent now."""
        unanswered = sum(now_s - sent_s < ANSWER_S for sent_s in self._sent.values())
        return now_s >= self._opens_s and unanswered < self._window

    def sent(self, job_id: str, now_s: float) -> None:
        """Note that a job was sent."""
        self._sent[job_id] = now_s

    def taken(self, job_id: str) -> None:
        """Note that an agent accepted it."""
        if self._sent.pop(job_id, None) is not None:
            self._window = min(WINDOW_MOST, self._window + 1)
            self._pauses = 0

    def full(self, job_id: str, now_s: float) -> None:
        """Note that no agent had room for it."""
        if self._sent.pop(job_id, None) is not None:
            self._window = 1
            self._opens_s = now_s + min(PAUSE_MOST_S, PAUSE_FIRST_S * 2**self._pauses)
            self._pauses = min(self._pauses + 1, 8)

    def stir(self, now_s: float) -> None:
        """Note that an agent may have room now: a job of ours began there, or ended."""
        self._pauses = 0
        self._opens_s = min(self._opens_s, now_s + STIR_S)

    def forget(self, job_id: str) -> None:
        """Note that it does not matter any more."""
        self._sent.pop(job_id, None)

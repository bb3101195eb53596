"""Where a job is, as far as its requester can tell, and what is due for it. PURE.

A job is offered to its pool, or sent to its agent, until somebody accepts it; from then on it is asked after when it
falls silent, and offered or sent again when whoever had it is gone or has lost it.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from edge_agent.base.errors import Code
from edge_agent.jobs.job import Failure
from edge_agent.mqtt.redial import backoff_s

RESEND_FIRST_S = 5.0
RESEND_MOST_S = 60.0
"""An unanswered job is sent again after 5 s, then after twice as long each time."""
POOL_RESEND_MOST_S = 20.0
"""The same for a pool: some brokers drop without a word what no agent took."""
UNHEARD_FIRST_S = 0.5
"""The same when the broker said that nobody listens yet."""
LAST_WORD_S = 10.0
"""How long a job nobody accepted is asked after when its time to live is over: an answer may have been lost."""
ASK_S = 30.0
"""An accepted job nothing was heard of for so long is asked after."""
ASKS_MOST = 3
"""An agent of a pool that is asked so often in vain, every 5 s, is as good as offline: its will may be lost."""
CANCEL_GRACE_S = 2.0
"""How long a canceled job of a pool may still be accepted by an agent it was on its way to."""


class Due(Enum):
    """What a requester has to do for a job now."""

    OFFER = auto()
    """Send it to its pool."""
    SEND = auto()
    """Send it to its agent."""
    ASK = auto()
    """Ask its agent what became of it."""


class Voice(Enum):
    """What an agent of the pool that has a job is to its requester."""

    FIRST = auto()
    """The first that accepts: it is followed from now on."""
    FOLLOWED = auto()
    LATE = auto()
    """Another one is followed: it shall drop the job."""
    SPENT = auto()
    """Another one is followed, and it has ended the job already."""


class RefusalMeaning(Enum):
    """What a refusal means."""

    OVER = auto()
    """Nobody will do the job."""
    NO_ROOM = auto()
    """The agent had no room: another one of the pool may, or it soon."""
    ELSEWHERE = auto()
    """The agent cannot do it: another one of the pool may."""
    NOTHING = auto()
    """It does not concern us, or only says that the job must be sent or asked after again."""


def _doubling_s(tries: int, first_s: float, most_s: float) -> float:
    return backoff_s(tries, first_s=first_s, most_s=most_s, chance=1.0)


@dataclass(slots=True)
class Placement:
    """Of one open job; times are monotonic seconds, `ends_s` is when its time to live is over.

    Of a job of a pool: `agent` is the one that is followed, None while nobody has accepted it; `holders` are all that
    have, `dismissed` those that were told to drop it because another was first; `refusal` is why it was last refused.
    `connection` is the number of the one it was last sent on. `uploading` are parts of its images, by message id, that
    the broker has not answered.
    """

    agent: str | None
    pool: str | None
    ends_s: float
    accepted: bool = False
    tries: int = 0
    next_s: float = 0.0
    connection: int = 0
    canceled_s: float | None = None
    state_seq: int = -1
    attempt: int = 0
    chunk_seqs: set[int] = field(default_factory=set)
    holders: set[str] = field(default_factory=set)
    dismissed: set[str] = field(default_factory=set)
    refusal: Failure | None = None
    uploading: set[int] = field(default_factory=set)
    throttled: bool = False
    """Whether the broker last said that it takes no more of us for now."""
    denied: bool = False
    """Whether its agent said, its time to live being over, that it has no such job."""

    @property
    def offered(self) -> bool:
        """Whether it is a pool's, and nobody's yet."""
        return self.agent is None

    def left_s(self, now_s: float) -> int:
        """Return its time to live that is left, at least a second."""
        return max(1, round(self.ends_s - now_s))

    # What is due

    def end(self, now_s: float) -> Failure | None:
        """Return why it is not waited for any longer; None while it is."""
        if not self.accepted and (self.denied or now_s >= self.ends_s + LAST_WORD_S):
            sentence = "ttl_s: no agent accepted the job within its time to live"
            if self.throttled:
                sentence += "; the broker took no more of us (quota exceeded): send less, or raise its limit"
            return self.refusal or Failure.because(Code.EXPIRED, sentence)
        if self.offered and self.canceled_s is not None:
            grace_s = CANCEL_GRACE_S if self.connection else 0.0
            if now_s >= self.canceled_s + grace_s:
                return Failure.because(Code.CANCELED, "canceled before any agent of the pool had accepted it")
        return None

    def due(self, now_s: float) -> Due | None:
        """Return what is to be done, the broker being there; an agent of a pool that says nothing is given up."""
        if now_s < self.next_s:
            return None
        if self.pool is not None and self.accepted and self.tries >= ASKS_MOST:
            self.lose(now_s)
        over = now_s >= self.ends_s
        if self.offered:
            # Once it is over an agent may still have accepted it whose answer is to come.
            return None if over or self.canceled_s is not None else Due.OFFER
        return Due.ASK if self.accepted or over else Due.SEND

    def sent(self, due: Due, now_s: float, *, connection: int) -> None:
        """Note that it was done, and when it is to be done again if nobody answers."""
        match due:
            case Due.OFFER:
                wait_s = _doubling_s(self.tries, RESEND_FIRST_S, POOL_RESEND_MOST_S)
            case Due.SEND:
                wait_s = _doubling_s(self.tries, RESEND_FIRST_S, RESEND_MOST_S)
            case Due.ASK:
                wait_s = ASK_S if self.accepted and self.pool is None else RESEND_FIRST_S
        self.next_s, self.connection = now_s + wait_s, connection
        self.tries += 1

    def resume(self, connection: int) -> None:
        """Be due at once if it was sent over an earlier connection; an offer may be accepted, which is heard first."""
        if self.connection != connection and not self.offered:
            self.tries, self.next_s = 0, 0.0

    def unheard(self, now_s: float) -> None:
        """Try again what nobody heard; an agent of a pool may still be on its way back after the broker was."""
        if self.offered:
            self.tries, self.next_s = 0, now_s
        else:
            self.next_s = now_s + _doubling_s(self.tries, UNHEARD_FIRST_S, RESEND_MOST_S)

    # What is heard

    def lose(self, next_s: float) -> None:
        """Let it be offered or sent again: nobody has it, as far as we know."""
        if self.pool is not None:
            self.agent = None
        self.accepted, self.tries, self.next_s = False, 0, next_s

    def voice(self, agent: str, *, ended: bool) -> Voice:
        """Take in that an agent of the pool has it, or `ended` it: the first is followed, later ones shall drop it."""
        first = self.offered and not (ended and agent in self.dismissed)
        if first:
            self.agent, self.accepted, self.state_seq, self.attempt = agent, True, -1, 0
            self.chunk_seqs.clear()
        if agent == self.agent:
            self.holders.add(agent)
            return Voice.FIRST if first else Voice.FOLLOWED
        if ended:
            return Voice.SPENT
        self.dismissed.add(agent)
        return Voice.LATE

    def state(self, state_seq: int, now_s: float) -> bool:
        """Take in a state that its agent tells; return whether it is no older than the newest."""
        self.next_s = now_s + ASK_S
        if state_seq < self.state_seq:
            return False
        self.accepted, self.tries, self.state_seq = True, 0, state_seq
        return True

    def chunk(self, agent: str, attempt: int, seq: int, now_s: float) -> bool:
        """Take in that text came; return whether it is new, and of the agent that is followed."""
        if agent != self.agent:
            return False
        self.accepted, self.tries, self.next_s = True, 0, now_s + ASK_S
        if attempt > self.attempt:
            self.attempt = attempt
            self.chunk_seqs.clear()
        if attempt < self.attempt or seq in self.chunk_seqs:
            return False
        self.chunk_seqs.add(seq)
        return True

    def result(self, agent: str, *, succeeded: bool) -> bool:
        """Return whether a result counts: of several agents the first success, or what the followed one says."""
        if self.pool is not None:
            self.holders.discard(agent)
            follows = agent == self.agent or (self.offered and agent not in self.dismissed)
            if not succeeded and not follows:
                return False
            self.agent = agent
        return True

    def refused(self, agent: str, failure: Failure, now_s: float) -> RefusalMeaning:
        """Take in that an agent refuses it, or a question after it; return what that means."""
        if self.pool is not None and not self.offered and agent != self.agent:
            self.holders.discard(agent)  # one we did not follow anyway
            return RefusalMeaning.NOTHING
        if failure.code is Code.UNKNOWN_JOB:
            self.denied = self.pool is None and now_s >= self.ends_s
            self.lose(now_s)
            return RefusalMeaning.NOTHING
        if self.accepted and failure.code is Code.STORAGE_FULL:
            # The question was refused, not the job, which the agent has: ask again.
            self.next_s = now_s + (failure.retry_after_s or ASK_S)
            return RefusalMeaning.NOTHING
        if self.pool is None or not failure.retryable:
            return RefusalMeaning.OVER
        if failure.code is Code.QUEUE_FULL:
            self.lose(now_s)
            return RefusalMeaning.NO_ROOM
        tries = self.tries
        self.lose(now_s if self.accepted else self.next_s)
        self.tries, self.refusal = tries, failure
        return RefusalMeaning.ELSEWHERE

"""Which lane a prompt is computed in, and what of it is there already (pure).

A lane keeps the keys and values of its last sequence until another one needs the room: a prompt of the same owner with
the same beginning computes only the rest. No memory is taken for it beyond that of the lanes themselves.

What an owner finds depends on what others ask, but not on what they say: on when they came and went, and on nothing
that is in their prompts. So which lane an owner takes from another is settled by counts and times alone, and only
among the owner's own lanes do texts decide.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from edge_agent.engine.batching.prefill import LONGROPE_TOKENS, shared_tokens

NOBODY = ""
"""Owns what no owner has asked for: the lanes at first. Where owners do not matter it owns everything."""
NOWHERE = -1
"""The number of a lane that is none of a model's: it holds nothing."""
KEPT_TOKENS_MIN = 16
"""A shorter common beginning is that of the chat template, and no reason to choose a lane."""
IDLE_LANES_MAX = 3
"""Between two lanes in one batch: one of four takes little longer than one sequence alone, of eight twice as long."""
IDLE_TOKENS_MAX = 2048
"""In the idle lanes between: attention reads their keys and values too, 0.8 MB a token."""


@dataclass(slots=True, eq=False)
class Lane:
    """Room for one sequence of its `owner`'s.

    The keys and values of `tokens` are computed, with longrope's long factors if `long`.
    """

    number: int
    owner: str = NOBODY
    tokens: list[int] = field(default_factory=list)
    long: bool = False
    taken: bool = False
    last_used: int = 0

    def begin_long(self) -> None:
        """Forget everything, for the same sequence to be computed with the long factors."""
        self.tokens = []
        self.long = True


@dataclass(frozen=True, slots=True)
class LaneChoice:
    """A lane for a prompt; it keeps its first `kept` tokens, which `copy_from` holds where that is another lane."""

    lane: Lane
    kept: int = 0
    copy_from: Lane | None = None


class Lanes:
    """All lanes of a model. `copies`: whether a beginning can be copied from one lane to another."""

    def __init__(self, number: int, *, longrope: bool, copies: bool) -> None:
        self.all = tuple(Lane(each) for each in range(number))
        self._longrope = longrope
        self._copies = copies
        self._clock = count(1)
        self._freed: dict[str, int] = {}

    def take(self, prompt: Sequence[int], owner: str = NOBODY) -> LaneChoice:
        """Take a free lane for a prompt and cut it to what it shares; copying is for the caller to do.

        Another beginning is continued where it lies if that keeps more than it loses. Otherwise the lane that was
        used least recently is overwritten, with a copy of the longest beginning there is. All that among the lanes of
        the prompt's owner, who may get one more before. Raises ValueError when all are taken.
        """
        long = self._longrope and len(prompt) >= LONGROPE_TOKENS
        self._grant(owner)
        own = [lane for lane in self.all if lane.owner == owner]
        free = [lane for lane in own if not lane.taken]
        shared = {lane: self._shared(lane, prompt, long=long) for lane in (own if self._copies else free)}
        source = max(shared, key=lambda lane: (shared[lane], not lane.taken, -lane.last_used))
        kept = shared[source]
        lost = len(source.tokens) - kept
        elsewhere = source.taken or (self._copies and kept <= lost)
        target = min(free, key=lambda lane: lane.last_used) if elsewhere else source
        target.taken = True
        target.tokens = list(prompt[:kept])
        target.long = long
        return LaneChoice(target, kept, None if target is source or not kept else source)

    def common(self, one: Sequence[int], other: Sequence[int]) -> int:
        """Return how many tokens of one prompt another will find, once they are computed."""
        if self._longrope and (len(one) >= LONGROPE_TOKENS) is not (len(other) >= LONGROPE_TOKENS):
            return 0
        return _worth(shared_tokens(one, other))

    def free(self, lane: Lane) -> None:
        """Give a lane back; what it holds stays until the room is needed."""
        lane.taken = False
        lane.last_used = self._freed[lane.owner] = next(self._clock)

    def batches(self, numbers: Iterable[int]) -> list[range]:
        """Return these lanes as ranges to be computed in one call each, one more token per lane.

        There may be idle ones in between. All of a range are on the same side of LONGROPE_TOKENS.
        """
        ranges: list[range] = []
        for number in sorted(numbers):
            if ranges and self._may_join(ranges[-1], number):
                ranges[-1] = range(ranges[-1].start, number + 1)
            else:
                ranges.append(range(number, number + 1))
        return ranges

    def _grant(self, owner: str) -> None:
        """Give an owner a free lane of another who has more to spare, nobody's first; any when there is no own.

        Of those who have as many, who used theirs least recently loses the one used least recently.
        """
        lanes = Counter(lane.owner for lane in self.all)
        spare = [lane for lane in self.all if not lane.taken and lane.owner != owner]
        if not spare:
            return
        lane = min(
            spare,
            key=lambda lane: (
                lane.owner != NOBODY,
                -lanes[lane.owner],
                self._freed.get(lane.owner, 0),
                lane.last_used,
            ),
        )
        needed = not any(lane.owner == owner and not lane.taken for lane in self.all)
        if needed or (owner != NOBODY and (lane.owner == NOBODY or lanes[lane.owner] > lanes[owner] + 1)):
            if lanes[lane.owner] == 1:
                self._freed.pop(lane.owner, None)
            lane.owner, lane.tokens, lane.last_used = owner, [], 0

    def _may_join(self, batch: range, number: int) -> bool:
        idle = self.all[batch.stop : number]
        sides = {self._beyond(lane) for lane in self.all[batch.start : number + 1]}
        idle_tokens = sum(len(lane.tokens) for lane in idle)
        return len(sides) == 1 and len(idle) <= IDLE_LANES_MAX and idle_tokens <= IDLE_TOKENS_MAX

    def _beyond(self, lane: Lane) -> bool:
        """Return whether a lane's next token is computed with the long factors."""
        return self._longrope and len(lane.tokens) + 1 >= LONGROPE_TOKENS

    @staticmethod
    def _shared(lane: Lane, prompt: Sequence[int], *, long: bool) -> int:
        """Return how many tokens need not be computed; the last one always must, for its logits."""
        if lane.long is not long:
            return 0  # keys turned by the other factors
        return _worth(shared_tokens(lane.tokens, prompt[:-1]))


def _worth(shared: int) -> int:
    return shared if shared >= KEPT_TOKENS_MIN else 0

"""Whether following guides holds up all lanes: by one token that takes long, or by many that take a little."""

from dataclasses import dataclass

from edge_agent.engine.guides.guide import ALLOWED_S, EASY_S, SLOW_S

TIMES = 2.0
"""A step may take so many times as long as usual whatever it does, and SLOW_S more."""
FORGOTTEN = 1.02
"""The usual time grows by this with each step that takes longer, so that longer texts and more of them become usual."""
BORNE = 5.0
"""All steps of guided texts may take so many times as long as steps of others: texts grow long, machines hot."""


class GuideAllowance:
    """What tokens may take: SLOW_S one of them, ALLOWED_S all of them beyond EASY_S each."""

    def __init__(self) -> None:
        self._over_s = 0.0

    def spent(self, took_s: float) -> bool:
        """Take in what one took; return whether that was too much, or too much in all."""
        self._over_s = max(0.0, self._over_s + took_s - EASY_S)
        return took_s > SLOW_S or self._over_s > ALLOWED_S


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What a step took: by the clock, and of the processors."""

    wall_s: float
    cpu_s: float

    def times(self, factor: float) -> "StepTimes":
        """Return so many times that."""
        return StepTimes(self.wall_s * factor, self.cpu_s * factor)

    def least(self, other: "StepTimes") -> "StepTimes":
        """Return the lesser by either clock."""
        return StepTimes(min(self.wall_s, other.wall_s), min(self.cpu_s, other.cpu_s))

    def beyond(self, other: "StepTimes") -> float:
        """Return by how many seconds it took longer, by both clocks: others slow one, threads blur the other."""
        return min(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)


class Burden:
    """Knows what steps usually take, for a library that chooses tokens by guides inside its own step."""

    def __init__(self) -> None:
        self._usual: StepTimes | None = None
        self._plain: dict[int, StepTimes] = {}
        self._allowance = GuideAllowance()

    def heavy(self, took: StepTimes, *, texts: int, guided: bool) -> bool:
        """Take in a step that computed one token of so many texts and nothing else; `guided`: some of them are.

        Returns whether guides took far too long, in this step or in all.
        """
        usual, plain = self._usual or took, self._plainly(texts) or took
        self._usual = took.least(usual.times(FORGOTTEN))
        self._plain[texts] = took.least(plain.times(1.0 if guided else FORGOTTEN))
        beyond_s = min(took.beyond(plain.times(BORNE)), SLOW_S)  # one that takes longer is judged by what is usual
        heavy = guided and (self._allowance.spent(beyond_s) or took.beyond(usual.times(TIMES)) > SLOW_S)
        if heavy or not guided:
            self._allowance = GuideAllowance()
        return heavy

    def _plainly(self, texts: int) -> StepTimes | None:
        """Return what a step of so many texts takes, or would if more took in proportion; None where nothing tells."""
        fewer = max((each for each in self._plain if each <= texts), default=None)
        return None if fewer is None else self._plain[fewer].times(texts / fewer)

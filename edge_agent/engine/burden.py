"""Whether following guides holds up all lanes, for a library that chooses tokens by them inside its own step."""

from dataclasses import dataclass

from edge_agent.engine.guide import SLOW_S

TIMES = 2.0
"""A step may take so many times as long as usual whatever it does, and SLOW_S more."""
FORGOTTEN = 1.02
"""The usual time grows by this with each step that takes longer, so that longer texts and more of them become usual."""


@dataclass(frozen=True, slots=True)
class Took:
    """What a step took: by the clock, and of the processors."""

    wall_s: float
    cpu_s: float


class Burden:
    """Knows what steps usually take. Both clocks must agree: other programs slow one, many threads blur the other."""

    def __init__(self) -> None:
        self._usual: Took | None = None

    def heavy(self, took: Took) -> bool:
        """Take in a step that computed one token of each text and nothing else; return whether it took far too long."""
        usual = self._usual or took
        self._usual = Took(
            min(took.wall_s, usual.wall_s * FORGOTTEN),
            min(took.cpu_s, usual.cpu_s * FORGOTTEN),
        )
        return took.wall_s - TIMES * usual.wall_s > SLOW_S and took.cpu_s - TIMES * usual.cpu_s > SLOW_S

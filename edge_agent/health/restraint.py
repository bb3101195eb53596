"""How far the agent holds back at this moment: what the governor decided, for those who have to keep to it."""

from collections.abc import Callable
from pathlib import Path

from edge_agent.base.awake import awake_s
from edge_agent.base.log import get_logger
from edge_agent.base.signal import Signal
from edge_agent.engine.hosting.engines import Engines
from edge_agent.health.governor import MachineView, Policy, RestraintLevel, State, govern, level_of, reasons
from edge_agent.health.snapshot import free_bytes, told_by
from hardware.readings import Readings

REST_SHARE = 0.5
"""The share of the time an engine rests while pauses are called for: half the heat, half the speed."""

log = get_logger()


class Restraint:
    """Asked by everybody, moved by `look` alone; `on_changed` is told after every step.

    Without a policy nothing is ever held back.
    """

    def __init__(
        self,
        policy: Policy | None,
        *,
        memory_total_bytes: int | None,
        state_dir: Path,
        engines: Engines,
        now_s: Callable[[], float] = awake_s,
    ) -> None:
        self._policy = policy
        self._memory_total_bytes = memory_total_bytes
        self._state_dir = state_dir
        self.on_changed: Signal[[]] = Signal()
        self._engines = engines
        self._now_s = now_s
        self._state: State = {}

    def look(self, seen: Readings) -> None:
        """Take in what the machine shows, and decide anew."""
        if self._policy is None:
            return
        free = told_by(lambda: free_bytes(self._state_dir))
        view = MachineView(seen, self._memory_total_bytes, free, self._engines.freed_bytes)
        self._state, steps = govern(self._state, view, policy=self._policy, now_s=self._now_s())
        for step in steps:
            log.warning(
                "governor.step",
                cause=step.cause,
                before=step.before.words,
                after=step.after.words,
                reason=step.reason,
                level=self.level.words,
            )
        if steps:
            self.on_changed()

    @property
    def level(self) -> RestraintLevel:
        """How far."""
        return level_of(self._state)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is held back and why, for each cause."""
        return reasons(self._state)

    def lanes(self, parallel: int) -> int:
        """Return how many of an engine's lanes may be used: half when fewer, one when it works in pauses."""
        if self.level is RestraintLevel.FREE:
            return parallel
        return 1 if self.level >= RestraintLevel.PAUSES else max(1, parallel // 2)

    @property
    def in_pools(self) -> bool:
        """Whether jobs may be taken that others could do as well."""
        return self.level < RestraintLevel.NO_POOLS

    @property
    def rest_share(self) -> float:
        """The share of the time an engine shall rest between its steps."""
        return REST_SHARE if self.level is RestraintLevel.PAUSES else 0.0

    @property
    def unloads(self) -> str:
        """Why no engine may be loaded; empty while they may."""
        causes = (held.reason for held in self._state.values() if held.level is RestraintLevel.UNLOADED)
        return "; ".join(causes)

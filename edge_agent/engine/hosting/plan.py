"""What to do with one engine (pure): from how it is seen to one action, with its reason."""

from dataclasses import dataclass
from enum import StrEnum

from edge_agent.base.errors import Code
from edge_agent.engine.phase import Phase
from edge_agent.jobs.job import Failure

SILENCE_S = 30.0
PROMPT_SLACK = 4.0
"""A child is hung when nothing came for SILENCE_S + PROMPT_SLACK times the time its prompts take as measured."""
PREFILL_PER_S_UNKNOWN = 10.0
"""Prompt tokens per second assumed before any were measured: slower than any device the project is for."""
LOAD_S = 900.0
"""A load from a slow card takes minutes; one that takes longer than this will not end."""
STEADY_S = 300.0
"""An engine that lived this long begins again with the shortest backoff."""
CLOSE_S = 5.0
EXIT_S = 1.0
"""A child that ends by itself closes its socket first, and is gone after so long."""
IDLE_S = 5.0
"""An engine that had nothing to do for so long makes room for another try at a better place."""


@dataclass(frozen=True, slots=True)
class EngineView:
    """What a decision about an engine rests on. Seconds and bytes; None: not known.

    `busy`: it has jobs, or gets some in a moment. `silent_s`: how long it has said nothing of what it holds, 0 when
    that is nothing: what it may get is not held yet. `idle_s`: how long it has had no jobs.
    `unloads` says why no engine may be there now; empty while they may. `rests` says why this one shall not as soon as
    nothing runs in it; empty while it shall. `tried`: its trial is under way. `condemned`: why it is to be ended, and
    another place tried; `better`: whether a better place than its own has waited long enough.
    """

    phase: Phase
    alive: bool = False
    exited: bool = False
    busy: bool = False
    silent_s: float = 0.0
    idle_s: float = 0.0
    unprocessed_tokens: int = 0
    prefill_per_s: float = 1.0
    anonymous_bytes: int | None = None
    memory_bytes: int | None = None
    waited_s: float = 0.0
    backoff_s: float = 0.0
    silence_s: float = SILENCE_S
    unloads: str = ""
    rests: str = ""
    tried: bool = False
    marked_for_kill: Failure | None = None
    better: bool = False


class Act(StrEnum):
    """What to do with an engine."""

    KEEP = "keep"
    START = "start"
    BURY = "bury"
    KILL = "kill"
    UNLOAD = "unload"
    MOVE = "move"
    """Let go in order, and start at a better place."""


@dataclass(frozen=True, slots=True)
class Action:
    """What to do and why; `code` is what its jobs are told."""

    act: Act
    reason: str = ""
    code: Code = Code.ENGINE_DIED


def plan(view: EngineView) -> Action:
    """Decide what to do with an engine."""
    if view.unloads and not view.exited:
        done = not view.alive and view.phase is Phase.UNLOADED
        return Action(Act.KEEP if done else Act.UNLOAD, view.unloads)
    if not view.alive:
        return _absent(view)
    if (end := _end(view)) is not None:
        return end
    if view.rests and not view.busy:
        return Action(Act.UNLOAD, view.rests)
    if view.better and view.phase is Phase.READY and not view.busy and view.idle_s > IDLE_S:
        return Action(Act.MOVE, "a better device is tried again")
    return Action(Act.KEEP, view.rests)


def _end(view: EngineView) -> Action | None:
    """Return how a running engine ends by force or by itself, if it does now."""
    if view.marked_for_kill is not None:
        return Action(Act.KILL, view.marked_for_kill.message, view.marked_for_kill.code)
    if view.exited:
        return Action(Act.BURY, "the engine ended by itself")
    if view.anonymous_bytes is not None and view.memory_bytes is not None and view.anonymous_bytes > view.memory_bytes:
        mebibytes = view.anonymous_bytes // 2**20, view.memory_bytes // 2**20
        reason = "the engine took {} MiB, its reservation is {} MiB".format(*mebibytes)
        return Action(Act.KILL, reason, Code.OUT_OF_MEMORY)
    stuck = _stuck(view)
    return Action(Act.KILL, stuck) if stuck else None


def _absent(view: EngineView) -> Action:
    if view.waited_s < view.backoff_s:
        return Action(Act.KEEP, "waits to be started again")
    if view.rests:
        return Action(Act.KEEP if view.phase is Phase.UNLOADED else Act.UNLOAD, view.rests)
    return Action(Act.START)


def _stuck(view: EngineView) -> str:
    """Return why an engine is not waited for any longer; empty while it is."""
    bound_s = view.silence_s + PROMPT_SLACK * view.unprocessed_tokens / view.prefill_per_s
    if view.phase is Phase.STARTING and view.tried and view.silent_s > bound_s:
        return f"the engine said nothing for {view.silent_s:.0f} s while it was tried"
    if view.phase is Phase.STARTING and view.silent_s > LOAD_S:
        return f"the model was not loaded after {LOAD_S:.0f} s"
    if view.phase is Phase.FAILED and view.silent_s > view.silence_s:
        return "the engine could not load the model and did not exit"
    if view.phase is Phase.READY and view.silent_s > bound_s:
        return f"the engine said nothing for {view.silent_s:.0f} s"
    return ""

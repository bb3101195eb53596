"""The served models as others see them, and which of them a request means (pure)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.messages import ModelLimits
from edge_agent.engine.phase import Phase
from edge_agent.jobs.job import Failure, Fallback


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What others may know of an engine.

    `limits` are as it said when it was last loaded; None before that. `load_s` is how long
    that took. `planned`: it was unloaded, and not lost, when it was loaded. `host` computes in this device's place.
    `by_name`: for jobs that name it alone. `failure` is what its engine said when it could not load it the last time,
    until it can: a further try most likely ends as that one did. None for what may pass by itself.
    """

    model: str
    backend: str
    phase: Phase
    reason: str = ""
    code: Code | None = None
    limits: ModelLimits | None = None
    library: str = ""
    device: str = ""
    variant: str | None = None
    revision: str | None = None
    host: str | None = None
    by_name: bool = False
    load_ms: float = 0.0
    load_s: float = 0.0
    starts: int = 0
    fallback: Fallback | None = None
    planned: bool = False
    pinned: bool = False
    failure: Failure | None = None


def resolve(model: str, engines: Sequence[EngineStatus], *, images: int = 0) -> str:
    """Return the served model that a request with so many images means.

    `auto` is the first that takes images when there are some, else the first text model if there is one, but none that
    is to be named. A model that was never loaded may be taken for either.
    Raises EdgeAgentError UNKNOWN_MODEL, UNSUPPORTED, or the reason why a known one cannot be loaded.
    """
    if not engines:
        raise EdgeAgentError(Code.MODEL_MISSING, "this agent serves no model; add [[models.serve]] to its settings")
    statuses = {engine.model: engine for engine in engines}
    most = {name: each.limits.images_per_prompt if each.limits else None for name, each in statuses.items()}
    unnamed = {name: most[name] for name, each in statuses.items() if not each.by_name}
    if model == "auto" and not unnamed:
        sentence = f"model: name one of {', '.join(statuses)}; auto sends nothing to another machine"
        raise EdgeAgentError(Code.UNKNOWN_MODEL, sentence)
    name = automatic(unnamed, images=images) if model == "auto" else model
    if name not in statuses:
        raise EdgeAgentError(Code.UNKNOWN_MODEL, f"model: this agent serves {', '.join(statuses)}")
    check_images(name, most, images=images)
    status = statuses[name]
    if status.failure is not None:
        raise EdgeAgentError(status.failure.code, f"model: cannot be loaded: {status.failure.message}")
    if status.phase is Phase.FAILED:
        raise EdgeAgentError(status.code or Code.MODEL_MISSING, f"model: cannot be loaded: {status.reason}")
    if status.phase is Phase.FETCHING:
        raise EdgeAgentError(Code.MODEL_MISSING, f"model: is not here yet: {status.reason}")
    return name


def automatic(most: Mapping[str, int | None], *, images: int) -> str:
    """Return the model that `auto` means (pure), given how many images each takes; None: not known yet."""
    known = {name: takes for name, takes in most.items() if takes is not None}
    wanted = [name for name, takes in known.items() if (takes >= images if images else takes == 0)]
    unknown = [name for name in most if name not in known]
    return next(iter([*wanted, *unknown, *most]))


def check_images(name: str, most: Mapping[str, int | None], *, images: int) -> None:
    """Raise EdgeAgentError UNSUPPORTED, saying what would do, when a model is known to take fewer images."""
    takes = most[name]
    if takes is None or images <= takes:
        return
    others = [other for other, count in most.items() if count and count >= images]
    instead = f"; this agent's {', '.join(others)} would" if others else "; no model of this agent does"
    sentence = f"takes at most {takes} images" if takes else "is a text model and takes no images"
    raise EdgeAgentError(Code.UNSUPPORTED, f"messages: {name} {sentence}{instead}")

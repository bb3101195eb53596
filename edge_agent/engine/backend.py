"""The contract every backend keeps, and how one is found that keeps it.

Pull, one step at a time: the child's loop asks for a step, sends its events, looks for
commands, asks again. So batching, cancelling and joining mid-way need no threads.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edge_agent.base.errors import BackendMissingError, Code, EdgeAgentError
from edge_agent.engine.messages import Canary, Event, Generation, Guide, JobId, ModelLimits
from edge_agent.engine.model_folder import check
from edge_agent.engine.registry import backends, facts_of, on

NOWHERE = Path()
"""The path of a model that is not on this device."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What to load and within what bounds.

    `path` is the folder of the build, NOWHERE for a model elsewhere: then `options` say where, and `host` who answers.
    `context_tokens` bounds prompt and answer of one sequence together; `parallel` is the
    number of sequences at once; `threads` is the number of compute threads; `device` is what it runs on, in the
    backend's own lower-case name (`cpu`, `cuda`, `gpu`, `npu`); `options` are settings of the library for that
    device, in its own spelling, as the decision and the calibration say. `variant` and `revision` name the build in
    results; None when it is nobody's. `canary` is what the model is asked before it is ready; None: no trial.
    `apart`: what it computes for one owner must serve no other, see Generation.
    """

    path: Path
    backend: str
    context_tokens: int
    parallel: int
    threads: int
    device: str = "cpu"
    options: Mapping[str, str] = field(default_factory=dict)
    variant: str | None = None
    revision: str | None = None
    host: str | None = None
    canary: Canary | None = None
    apart: bool = False


class LoadedModel(Protocol):
    """A model in memory, answering generations step by step.

    `start` may be called whenever fewer than `limits.parallel` generations are under way. Whatever goes wrong in one
    generation ends that one, see contained.py, and gives back what it held: no method raises for it but `start`, and
    that an EdgeAgentError. Anything else that is raised means that the next step is impossible for everybody, and
    ends the engine.
    """

    @property
    def limits(self) -> ModelLimits:
        """What the model can take, never more than its ModelSpec asked for."""

    @property
    def library(self) -> str:
        """Name and version of the library, as `name version`."""

    @property
    def device(self) -> str:
        """What it runs on, such as `cpu` or `cuda`."""

    def start(self, generation: Generation) -> None:
        """Validate and count tokens only, no compute. `max_tokens` beyond the context is cut to what fits.

        Raises EdgeAgentError, with Code.PROMPT_TOO_LONG and the counts when the prompt leaves no room for an answer.
        """

    def step(self) -> Iterable[Event]:
        """Advance every decoding generation by one token and compute at most one piece of a prompt, see Turns.

        The work is done while the events are iterated, each yielded as it happens: a `Progress` comes *before* the
        call it announces. Iterate to the end. Nothing to do gives no events. What goes wrong in one generation is a
        `Failed` event. Raises BrokenError when a call that computes all of them together fails.
        """

    def cancel(self, job_id: JobId) -> Iterable[Event]:
        """Stop a generation: its `Finished` event with reason `canceled`, or nothing if it is not under way.

        `Failed` when even that goes wrong.
        """

    def close(self) -> None:
        """Free the model."""


class Follower(Protocol):
    """What compiles guides for a vocabulary, apart from any model."""

    keeps: bool
    """Whether its library keeps what it compiles for as long as a model is loaded, in an engine too."""

    def follow(self, guide: Guide, go_on: Callable[[], bool]) -> None:
        """Compile a guide and choose tokens by it at random; calls `go_on` after each step, until that says no.

        Raises EdgeAgentError BAD_REQUEST, UNSUPPORTED for a guide that cannot be followed.
        """


Loader = Callable[..., LoadedModel]
"""Takes a ModelSpec, and by keyword what tests put in the place of clocks and chance."""


_TELEMETRY_OFF = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""The onnxruntime-genai wheel reports its use to its makers unless this is set before its import."""
_UNWANTED = ("openvino_telemetry",)
"""`import openvino` reports itself through this package, and asks nobody; without it, it goes on in silence."""


def backend_of(folder: Path) -> str:
    """Return the backend whose files lie in a model folder, or whose file it is.

    Raises EdgeAgentError MODEL_MISSING when there is none.
    """
    try:
        for name, facts in backends().items():
            if facts.file_suffix and folder.suffix == facts.file_suffix and folder.is_file():
                return name
        there = folder.is_dir()
    except OSError as error:
        raise EdgeAgentError(
            Code.MODEL_MISSING, f"{folder} cannot be read: {error.strerror}; let the agent's user read it"
        ) from error
    if not there:
        raise EdgeAgentError(
            Code.MODEL_MISSING, f"{folder} is not a folder; put a model there or mend models.serve.path"
        )
    for name, facts in backends().items():
        if any(next(folder.glob(mark), None) for mark in facts.marks):
            return name
    raise EdgeAgentError(Code.MODEL_MISSING, f"{folder} holds none of {marks()}; point models.serve.path at a build")


def marks() -> str:
    """Return a file's name by which a folder of each backend is known, in words."""
    return ", ".join(f"{facts.marks[-1]} ({name})" for name, facts in backends().items() if facts.marks)


def compiles(name: str) -> bool:
    """Return whether a backend compiles guides on this device."""
    return bool(facts_of(name).guides)


def follower_of(name: str) -> Callable[[Path], Follower]:
    """Return what opens the vocabulary of a backend's model, with its library's telemetry off."""
    isolate()
    opened: Callable[[Path], Follower] = named(facts_of(name).guides)

    def checked(path: Path) -> Follower:
        check(path)
        return opened(path)

    return checked


def find(name: str, device: str = "cpu") -> Loader:
    """Return the load function of a backend for a device, and import its library, with its telemetry off.

    It refuses a folder that would have the library run or read what is not the model's, see model_folder.py. Raises
    BackendMissingError with the install line when its library is absent, EdgeAgentError UNSUPPORTED when there is no
    such backend.
    """
    facts = facts_of(name)
    isolate()
    try:
        load: Loader = named(on(name, device).load or facts.load)
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        if library not in facts.libraries:
            raise
        mend = f"install it with: pip install 'edge-slm-agent[{facts.extra}]'"
        mend += f" (from a checkout: pip install '.[{facts.extra}]')"
        raise BackendMissingError(
            f"{library} is not installed; {mend if facts.extra else f'the backend {name} stands on it'}"
        ) from error

    @functools.wraps(load)
    def checked(spec: ModelSpec, **told: Any) -> LoadedModel:
        if spec.path != NOWHERE:
            check(spec.path)
        return load(spec, **told)

    return checked


def named(reference: str) -> Any:
    """Return what `module:name` stands for."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


def isolate() -> None:
    """Switch off the libraries' telemetry; to be called before any of them is imported."""
    os.environ.update(_TELEMETRY_OFF)
    for unwanted in _UNWANTED:
        sys.modules.setdefault(unwanted, None)  # type: ignore[arg-type] # the language's way to say: not there

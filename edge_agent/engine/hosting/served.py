"""What is served, and where it can run."""

from dataclasses import dataclass
from typing import Protocol

from edge_agent.engine.backend import ModelSpec
from edge_agent.jobs.job import Fallback


class NotYetError(Exception):
    """The build is being chosen or fetched; the message says how far that is."""


class Places(Protocol):
    """Where a model can run, best first, and what became of it there."""

    def appraise(self, reserved_bytes: int) -> int | None:
        """Return how much memory that may take which `prepare` would load; changes nothing, raises the same."""

    def prepare(self, reserved_bytes: int) -> tuple[ModelSpec, int | None]:
        """Return what to load and how much memory it may take, anew at every start.

        `reserved_bytes` were granted to other engines, which have not taken them yet; less than none when some of what
        they hold is to be had too. Raises NotYetError while the build is not there yet, EdgeAgentError when the model
        cannot be loaded as things are.
        """

    def spare(self, spec: ModelSpec) -> bool:
        """Return whether there is another place to go to."""

    def failed(self, spec: ModelSpec, reason: str) -> bool:
        """Note that a place failed; return whether the next start is at another one."""

    def works(self, spec: ModelSpec, heard: str) -> None:
        """Note that a model is ready there, and what it began with when it was tried."""

    def better(self, spec: ModelSpec) -> bool:
        """Return whether a better place should be tried again."""

    def fallback(self, spec: ModelSpec) -> Fallback | None:
        """Return the better place that this one stands in for."""

    def reset_backoff(self) -> None:
        """Note that a job was to blame for what places were said to have done."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model to serve, and where.

    `keep_alive_s` is how long it stays loaded with nothing to do, None for as long as there is room. `by_name`: for
    jobs that name it alone.
    """

    name: str
    places: Places
    keep_alive_s: float | None = None
    by_name: bool = False

"""What goes wrong in one generation ends that one; only what makes the next step impossible ends the engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from edge_agent.base.errors import Code, EdgeAgentError

_PANIC = "PanicException"
"""What a library written in Rust raises (pyo3): it is no Exception, and its class cannot be imported."""


class BrokenError(Exception):
    """The next step is impossible for everybody: the engine ends, and is started again."""


@contextmanager
def contained(*, computes: bool = True) -> Iterator[None]:
    """Make of whatever goes wrong inside an EdgeAgentError, INTERNAL where it was none; but of a BrokenError.

    For all that is done for one generation alone. What an error says is left out: it may hold what the requester sent.
    Where nothing `computes` a MODEL_ERROR is INTERNAL too: it would be laid at the device's door.
    """
    try:
        yield
    except BrokenError:
        raise
    except EdgeAgentError as error:
        if not computes and error.code is Code.MODEL_ERROR:
            raise EdgeAgentError(Code.INTERNAL, error.message) from error
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise  # the end of a generator, a task, the process
        said = f"the engine failed at this job ({type(error).__name__} in {_place(error.__traceback__)})"
        raise EdgeAgentError(Code.INTERNAL, f"{said}; ask otherwise, and tell its makers") from error


def _place(trace: TracebackType | None) -> str:
    """Return where an error was raised, as `module.py:12`."""
    place = ""
    while trace is not None:
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place

"""What goes wrong in other people's libraries, in our words: they have no codes, only texts."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from edge_agent.base.errors import Code, EdgeAgentError

ERRORS: tuple[type[Exception], ...] = (RuntimeError, MemoryError)
"""What the bindings of C++ raise; MemoryError stands for its bad_alloc."""
_MEMORY = re.compile(r"bad[_ ]alloc|\ballocated?\b|out of memory|larger than available memory", re.IGNORECASE)


@contextmanager
def library(name: str, errors: tuple[type[Exception], ...] = ERRORS, *, last_line: bool = False) -> Iterator[None]:
    """Turn a library's errors into ours: OUT_OF_MEMORY or MODEL_ERROR, with a line of what it said.

    `last_line` for one that says first where in its source an error was raised.
    """
    try:
        yield
    except errors as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or ["memory ran out"]
        said = lines[-1 if last_line else 0]
        if isinstance(error, MemoryError) or _MEMORY.search(str(error)):
            raise EdgeAgentError(
                Code.OUT_OF_MEMORY, f"memory ran out ({said}); lower max_tokens or shorten the prompt"
            ) from error
        raise EdgeAgentError(Code.MODEL_ERROR, f"{name} said: {said}") from error

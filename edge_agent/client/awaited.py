"""What a program has asked of an agent and waits for: what is told of it on the way, and its end."""

import queue as stdlib_queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

from edge_agent.base.errors import EdgeAgentError

U = TypeVar("U")
"""What is told of it, its result at last."""
R = TypeVar("R")
"""Its result."""


class Awaited(Generic[U, R]):
    """Something asked for, called `what` in sentences. Iterate over `updates()`, or wait for `result()`."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._updates: stdlib_queue.SimpleQueue[U | None] = stdlib_queue.SimpleQueue()
        self._done = threading.Event()
        self._result: R | None = None
        self._error: EdgeAgentError | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended or was refused."""
        return self._done.is_set()

    def updates(self, timeout_s: float | None = None) -> Iterator[U]:
        """Yield what is told of it, each once, as it comes, and at last its result; one reader only.

        Raises EdgeAgentError when it was refused or nobody took it, TimeoutError when nothing came for `timeout_s`.
        """
        while True:
            try:
                update = self._updates.get(timeout=timeout_s)
            except stdlib_queue.Empty:
                raise TimeoutError(f"nothing was heard of the {self._what} for {timeout_s} s") from None
            if update is None:
                self._check()
                return
            yield update

    def result(self, timeout_s: float | None = None) -> R:
        """Wait for its result. Raises EdgeAgentError when it was refused or nobody took it, TimeoutError."""
        if not self._done.wait(timeout_s):
            raise TimeoutError(f"the {self._what} has not ended after {timeout_s} s")
        self._check()
        assert self._result is not None  # noqa: S101 - done means one or the other
        return self._result

    def _check(self) -> None:
        if self._error is not None:
            # Another one each time: an error that was raised holds whoever it passed, and grows with every raise.
            raise type(self._error)(self._error.code, self._error.message)

    # What the client tells

    def put(self, update: U) -> None:
        """Hand over an update."""
        self._updates.put(update)

    def finish(self, result: R | None, error: EdgeAgentError | None) -> None:
        """End; there is one of the two."""
        self._result, self._error = result, error
        self._done.set()
        self._updates.put(None)

"""What a program has asked of an agent and waits for: what is told of it on the way, and its end."""

import asyncio
import queue as stdlib_queue
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

from edge_agent.base.errors import EdgeAgentError

U = TypeVar("U")
"""What is told of it, its result at last."""
R = TypeVar("R")
"""Its result."""


class Awaited(Generic[U, R]):
    """Something asked for, called `what` in sentences. Iterate over `updates()`, or wait for `result()`.

    In asyncio `async for` and `await` do the same: they raise the same errors; `asyncio.timeout` bounds them.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._updates: stdlib_queue.SimpleQueue[U | None] = stdlib_queue.SimpleQueue()
        self._done = threading.Event()
        self._result: R | None = None
        self._error: EdgeAgentError | None = None
        self._wakers: list[Callable[[], None]] = []

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
                self._end_updates()
                return
            yield update

    def _end_updates(self) -> None:
        self._updates.put(None)  # who iterates once more finds the end again
        self._check()

    def result(self, timeout_s: float | None = None) -> R:
        """Wait for its result. Raises EdgeAgentError when it was refused or nobody took it, TimeoutError."""
        if not self._done.wait(timeout_s):
            raise TimeoutError(f"the {self._what} has not ended after {timeout_s} s")
        self._check()
        assert self._result is not None  # noqa: S101 - done means one or the other
        return self._result

    async def __aiter__(self) -> AsyncIterator[U]:
        with self._news() as news:
            while True:
                try:
                    update = self._updates.get_nowait()
                except stdlib_queue.Empty:
                    await news.wait()
                    news.clear()
                    continue
                if update is None:
                    self._end_updates()
                    return
                yield update

    def __await__(self) -> Generator[Any, None, R]:
        return self._ended().__await__()

    async def _ended(self) -> R:
        with self._news() as news:
            while not self.done:
                await news.wait()
                news.clear()
        return self.result()

    @contextmanager
    def _news(self) -> Iterator[asyncio.Event]:
        """Give an event of the running loop that is set whenever the client tells something."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop was closed, and nobody waits there any more
                loop.call_soon_threadsafe(news.set)

        self._wakers.append(wake)
        try:
            yield news
        finally:
            self._wakers.remove(wake)

    def _wake(self) -> None:
        for wake in tuple(self._wakers):
            wake()

    def _check(self) -> None:
        if self._error is not None:
            # Another one each time: an error that was raised holds whoever it passed, and grows with every raise.
            error = self._error
            raise type(error)(error.code, error.message, retry_after_s=error.retry_after_s)

    # What the client tells

    def put(self, update: U) -> None:
        """Hand over an update."""
        self._updates.put(update)
        self._wake()

    def finish(self, result: R | None, error: EdgeAgentError | None) -> None:
        """End; there is one of the two."""
        self._result, self._error = result, error
        self._done.set()
        self._updates.put(None)
        self._wake()

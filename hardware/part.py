"""One part of the probe on a thread of its own: a read that never comes back holds nobody else."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def start(name: str, read: Callable[[], T]) -> Future[T]:
    """Start reading and return where the result will stand; an error is raised to whoever asks for it.

    A read of a sick driver's file cannot be interrupted, so the thread is a daemon and may be left behind. That is
    also why no pool does this: a pool waits for its threads when the program ends.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(read())
        except BaseException as error:  # noqa: BLE001 - handed on, not swallowed
            future.set_exception(error)

    Thread(target=run, name=f"probe-{name}", daemon=True).start()
    return future

"""How one part of a program tells others that something happened, without knowing them."""

from collections.abc import Callable
from typing import Generic, ParamSpec

P = ParamSpec("P")


class Signal(Generic[P]):
    """Something that happens to its owner, who calls it. Those whom it concerns were connected before it can happen.

    They are called one after the other, in the order they were connected, on the thread of whoever calls: none may
    block.
    """

    def __init__(self) -> None:
        self._handlers: tuple[Callable[P, object], ...] = ()

    def connect(self, *handlers: Callable[P, object]) -> None:
        """Have these called as well."""
        self._handlers += handlers

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Tell everybody."""
        for handler in self._handlers:
            handler(*args, **kwargs)

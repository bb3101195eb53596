"""When what is left of erased text is removed: often enough to be gone in seconds, seldom enough to cost nothing."""

import math
from collections.abc import Callable

from edge_agent.base.log import get_logger
from edge_agent.jobs.database import StorageError, translated
from edge_agent.jobs.leftovers import Leftovers

ERASED_S = 1.0
"""How long erased text may lie in the files: all that is erased meanwhile costs the disk one cleaning."""
TOLD_S = 10.0
"""A cleaning that another program has kept from being done for so long is told."""

log = get_logger()


class Cleaning:
    """Calls for `leftovers` in time. Call `turn` after every commit, and when `wait_s` is over."""

    def __init__(self, leftovers: Leftovers, *, now_s: Callable[[], float]) -> None:
        self._leftovers = leftovers
        self._now_s = now_s
        self._since_s: float | None = None
        self._due_s = math.inf
        self._next_gift_s = 0.0
        self._failed_s: float | None = None
        self._told = False

    @property
    def wait_s(self) -> float | None:
        """How long there is nothing to do, if no more is written; None: for ever."""
        return None if self._since_s is None else max(0.0, self._due_s - self._now_s())

    def turn(self, *, cut: bool = True) -> None:
        """Clean if it is time to, and give back to the disk some of what has become free.

        Without `cut` the log is only emptied: what it holds of a full disk is ours to write to, cut others took it.
        """
        now_s = self._now_s()
        try:
            with translated():
                self._turn(now_s, cut=cut)
        except StorageError as error:
            self._failed(error, now_s)

    def _turn(self, now_s: float, *, cut: bool) -> None:
        if now_s >= self._due_s or (self._failed_s is None and self._leftovers.long):
            self._clean(now_s, truncate=cut and now_s >= self._due_s)
        if cut and self._since_s is None and now_s >= self._next_gift_s and self._leftovers.surplus:
            # What keeps us from it keeps us from cleaning too, which tells of it.
            self._next_gift_s = now_s if self._leftovers.give_back() is None else now_s + TOLD_S
        if self._since_s is None and self._leftovers.pending:
            self._since_s, self._due_s = now_s, now_s + ERASED_S

    def _clean(self, now_s: float, *, truncate: bool) -> None:
        error = self._leftovers.clear(truncate=truncate)
        if error is not None:
            self._failed(error, now_s)
            return
        if self._told:
            log.info("store.erased", after_s=round(now_s - (self._failed_s or now_s), 1))
        self._failed_s, self._told = None, False
        if truncate:
            self._since_s, self._due_s = None, math.inf

    def _failed(self, error: StorageError, now_s: float) -> None:
        """Try again in a while, with all that is to be done."""
        if self._since_s is None:
            self._since_s = now_s
        if self._failed_s is None:
            self._failed_s = now_s
        self._due_s = now_s + ERASED_S
        if not self._told and now_s - self._failed_s >= TOLD_S:
            stays = "until then queue.db-wal grows, and keeps what was erased"
            log.warning("store.unerased", reason=str(error), next=f"{error.mend}; {stays}")
            self._told = True

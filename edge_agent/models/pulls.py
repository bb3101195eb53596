"""Builds that somebody asked for, fetched one after the other on a thread of their own."""

import contextlib
import queue as stdlib_queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.heartbeat import Heartbeat
from edge_agent.base.log import get_logger
from edge_agent.base.signal import Signal
from edge_agent.models.catalogue import Catalogue, Variant
from edge_agent.models.choose import Decision
from edge_agent.models.fetch import TELLS_S, PullProgress

WAITING_MAX = 8
STOP_S = 5.0
"""How long a fetch may take to hear that it shall stop."""

log = get_logger()

Bring = Callable[[Variant, Callable[[PullProgress], None], threading.Event], Path]
"""Fetches a variant into the store; see `fetch.fetch`."""


@dataclass(frozen=True, slots=True)
class _Pull:
    variant: Variant
    progress: Callable[[PullProgress], None]
    done: Callable[[EdgeAgentError | None], None]


class Pulls:
    """Takes orders for builds. `decisions` say which build is the best of a served model; `on_pulled`: one came.

    The thread begins with the first order and ends with the agent.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        bring: Bring,
        decisions: Callable[[], Mapping[str, Decision]],
    ) -> None:
        self._catalogue = catalogue
        self._bring = bring
        self._decisions = decisions
        self.on_pulled: Signal[[]] = Signal()
        self._inbox: stdlib_queue.Queue[_Pull | None] = stdlib_queue.Queue(WAITING_MAX)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.beat = Heartbeat("pulls")
        self._thread: threading.Thread | None = None

    def add(
        self, name: str, *, progress: Callable[[PullProgress], None], done: Callable[[EdgeAgentError | None], None]
    ) -> None:
        """Fetch a build, or the best one of a served model; `progress` and then `done` are called on the thread.

        Raises EdgeAgentError UNKNOWN_MODEL, QUEUE_FULL or SHUTTING_DOWN.
        """
        pull = _Pull(self._variant(name), progress, done)
        with self._lock:
            if self._stopping.is_set():
                raise EdgeAgentError(Code.SHUTTING_DOWN, "this agent is stopping; order it again")
            try:
                self._inbox.put_nowait(pull)
            except stdlib_queue.Full:
                sentence = f"{WAITING_MAX} pulls wait already; order it again later"
                raise EdgeAgentError(Code.QUEUE_FULL, sentence, retry_after_s=60.0) from None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pulls", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Stop fetching; what has arrived is kept and continued next time."""
        with self._lock:
            self._stopping.set()
        with contextlib.suppress(stdlib_queue.Full):  # else the thread looks anyway when this fetch has ended
            self._inbox.put_nowait(None)
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _variant(self, name: str) -> Variant:
        decision = self._decisions().get(name)
        if decision is not None and decision.candidates:
            return decision.candidates[0].variant
        for variant in self._catalogue.variant:
            if variant.name == name:
                return variant
        several = [each.name for each in self._catalogue.builds_of(name)]
        if several:
            raise EdgeAgentError(Code.UNKNOWN_MODEL, f"model: has several builds; name one: {', '.join(several)}")
        raise EdgeAgentError(Code.UNKNOWN_MODEL, "model: is no build of this agent's catalogue")

    def _run(self) -> None:
        while (pull := self._inbox.get()) is not None and not self._stopping.is_set():
            self._fetch(pull)
            self.beat.over()  # until somebody wants another

    def _fetch(self, pull: _Pull) -> None:
        def tell(progress: PullProgress) -> None:
            self.beat(TELLS_S)
            pull.progress(progress)

        self.beat(TELLS_S)
        try:
            self._bring(pull.variant, tell, self._stopping)
        except EdgeAgentError as error:
            log.error("pull.failed", variant=pull.variant.name, code=error.code, reason=error.message)
            pull.done(error)
            return
        log.info("pull.done", variant=pull.variant.name)
        self.on_pulled()
        pull.done(None)

"""A job on its way, as the program sees it that sent it."""

import queue as stdlib_queue
import threading
from collections.abc import Callable, Iterator, Mapping

from edge_agent.errors import EdgeAgentError
from edge_agent.jobs.request import Request
from edge_agent.mqtt.payloads import Chunk, Result, Status
from edge_agent.mqtt.placement import Placement

Update = Status | Chunk | Result


class JobRejectedError(EdgeAgentError):
    """The job was refused; `code` and `message` say why."""


class Handle:
    """A job on its way. Iterate over `updates()`, or wait for `result()`."""

    def __init__(
        self,
        *,
        placement: Placement,
        request: Request,
        payload: bytes,
        cancel: Callable[["Handle"], None],
        uploads: Mapping[str, bytes] | None = None,
    ) -> None:
        self.placement = placement
        """Where it is; belongs to the client's thread."""
        self.request = request
        self.payload = payload
        self.uploads = uploads or {}
        """Images that are sent apart once the agent asks for them, by hash."""
        self._cancel = cancel
        self._updates: stdlib_queue.SimpleQueue[Update | None] = stdlib_queue.SimpleQueue()
        self._done = threading.Event()
        self._result: Result | None = None
        self._error: EdgeAgentError | None = None
        self.status: Status | None = None
        """The newest state heard of."""
        self.unheard = False
        """Whether the broker last said that nobody listens there; the job is sent again all the same."""

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.request.job_id

    @property
    def agent(self) -> str | None:
        """Who has it: from the start, or of a job of a pool once one has accepted it."""
        return self.placement.agent

    @property
    def pool(self) -> str | None:
        """The pool it was sent to, if it was."""
        return self.placement.pool

    @property
    def done(self) -> bool:
        """Whether the job has ended or was refused."""
        return self._done.is_set()

    def updates(self, timeout_s: float | None = None) -> Iterator[Update]:
        """Yield states, text and at last the result, each once, as they come; one reader only.

        A chunk of a higher `attempt`, or of another agent of the pool, begins the text anew. Raises JobRejectedError,
        or TimeoutError when nothing came for `timeout_s`.
        """
        while True:
            try:
                update = self._updates.get(timeout=timeout_s)
            except stdlib_queue.Empty:
                raise TimeoutError(f"nothing was heard of the job for {timeout_s} s") from None
            if update is None:
                if self._error:
                    raise self._error
                return
            yield update

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the result, whatever became of the job. Raises JobRejectedError or TimeoutError."""
        if not self._done.wait(timeout_s):
            raise TimeoutError(f"the job has not ended after {timeout_s} s")
        if self._error:
            raise self._error
        assert self._result is not None  # noqa: S101 - done means one or the other
        return self._result

    def cancel(self) -> None:
        """Ask for the job to end; its result then says `canceled`, unless it ended before.

        A job that no agent of its pool has accepted yet ends with JobRejectedError CANCELED.
        """
        self._cancel(self)

    # What the client tells

    def put(self, update: Update) -> None:
        """Hand over an update."""
        self._updates.put(update)

    def finish(self, result: Result | None, error: EdgeAgentError | None) -> None:
        """End; there is one of the two."""
        self._result, self._error = result, error
        self._done.set()
        self._updates.put(None)

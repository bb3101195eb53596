"""A job on its way, as the program sees it that sent it."""

from collections.abc import Callable, Mapping

from edge_agent.base.errors import EdgeAgentError
from edge_agent.client.awaited import Awaited
from edge_agent.client.placement import Placement
from edge_agent.jobs.request import Request
from edge_agent.protocol.payloads import Chunk, Result, Status

Update = Status | Chunk | Result


class JobRejectedError(EdgeAgentError):
    """The job was refused; `code` and `message` say why."""


class Handle(Awaited[Update, Result]):
    """A job on its way. Iterate over `updates()`, or wait for `result()`; both raise JobRejectedError if it is refused.

    Updates are states, text and at last the result, which comes whatever became of the job. A chunk of a higher
    `attempt`, or of another agent of the pool, begins the text anew.
    """

    def __init__(
        self,
        *,
        placement: Placement,
        request: Request,
        payload: bytes,
        cancel: Callable[["Handle"], None],
        uploads: Mapping[str, bytes] | None = None,
    ) -> None:
        super().__init__("job")
        self.placement = placement
        """Where it is; belongs to the client's thread."""
        self.request = request
        self.payload = payload
        self.uploads = uploads or {}
        """Images that are sent apart once the agent asks for them, by hash."""
        self._cancel = cancel
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
    def throttled(self) -> bool:
        """Whether the broker last said that it takes no more of us for now; the job is sent again all the same."""
        return self.placement.throttled

    def cancel(self) -> None:
        """Ask for the job to end; its result then says `canceled`, unless it ended before.

        A job that no agent of its pool has accepted yet ends with JobRejectedError CANCELED.
        """
        self._cancel(self)

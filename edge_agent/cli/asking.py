"""A test prompt for one agent: sent, followed, and shown as far as it has come."""

from types import TracebackType
from typing import Self

from edge_agent.base.errors import EdgeAgentError
from edge_agent.cli.follow import summary
from edge_agent.client.client import EdgeClient
from edge_agent.client.handle import Handle, JobRejectedError, Update
from edge_agent.mqtt.access import Access
from edge_agent.protocol.payloads import Chunk, Result, Status

MAX_TOKENS = 96
TTL_S = 120
"""A test is short, and not waited for when the agent has much to do."""
TEXT_MAX = 4000
SENT = "sent"


class Asking:
    """One prompt after the other, each to one agent. Use it as a context manager; `attend` takes in what came.

    The connection is made at the first prompt. `name` is the requester's: the broker must let it send jobs.
    """

    def __init__(self, access: Access, *, name: str, root: str) -> None:
        self._access = access
        self._name = name
        self._root = root
        self._client: EdgeClient | None = None
        self._handle: Handle | None = None
        self._attempt = 0
        self.agent: str | None = None
        self.prompt = ""
        self.state = ""
        """How it stands, in a word or a sentence."""
        self.text = ""
        """What was answered so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.__exit__(kind, error, trace)

    def ask(self, agent: str, prompt: str) -> None:
        """Send a prompt; one that was not answered yet is canceled."""
        if self._client is None:
            self._client = EdgeClient(self._access, name=self._name, root=self._root).__enter__()
        if self._handle is not None and not self._handle.done:
            self._handle.cancel()
        self.agent, self.prompt, self.text, self.state, self._attempt = agent, prompt, "", SENT, 0
        try:
            self._handle = self._client.submit(agent, prompt=prompt, max_tokens=MAX_TOKENS, ttl_s=TTL_S, priority=9)
        except EdgeAgentError as error:
            self._handle, self.state = None, error.message

    def attend(self) -> bool:
        """Take in what came; return whether there was anything. Returns at once."""
        if self._handle is None:
            return False
        news = self._handle.unheard and self.state == SENT
        if news:
            self.state = "nobody listens there yet; it is sent again"
        try:
            for update in self._handle.updates(timeout_s=0):
                self._take(update)
                news = True
        except TimeoutError:
            return news
        except JobRejectedError as error:
            self.state = f"rejected: {error.code}: {error.message}"
        self._handle = None
        return True

    def _take(self, update: Update) -> None:
        match update:
            case Status():
                self.state = str(update.state)
            case Chunk():
                if update.attempt != self._attempt:
                    self._attempt, self.text = update.attempt, ""
                self.text = (self.text + update.text)[:TEXT_MAX]
            case Result():
                self.text, self.state = update.text[:TEXT_MAX], summary(update)

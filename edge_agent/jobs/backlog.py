"""How much is unfinished: of everybody, and of each requester."""

from collections.abc import Iterable
from dataclasses import dataclass

from edge_agent.jobs.ids import watch_of


@dataclass(frozen=True, slots=True)
class Backlog:
    """Unfinished jobs and the bytes of their requests."""

    jobs: int = 0
    request_bytes: int = 0

    def plus(self, jobs: int, request_bytes: int) -> "Backlog":
        """Return the sum."""
        return Backlog(self.jobs + jobs, self.request_bytes + request_bytes)


class Ledger:
    """Counts beside the table, so that nobody asks it for every new job: `total`, and what of it watch rules made.

    Follows a transaction: `begin`, `undo`, and `undo` back to a `mark` in the middle of it.
    """

    def __init__(self, clients: Iterable[tuple[str, int, int]]) -> None:
        self.total = Backlog()
        self.watched = Backlog()
        self._clients: dict[str, Backlog] = {}
        self._entries: list[tuple[str, int, int]] = []
        for client, jobs, request_bytes in clients:
            self.add(client, jobs, request_bytes)

    def of(self, client: str) -> Backlog:
        """Return what one requester has unfinished."""
        return self._clients.get(client, Backlog())

    @property
    def asked(self) -> Backlog:
        """What requesters have unfinished, all together."""
        return self.total.plus(-self.watched.jobs, -self.watched.request_bytes)

    def begin(self) -> None:
        """Remember where a transaction began."""
        self._entries.clear()

    def add(self, client: str, jobs: int, request_bytes: int) -> None:
        """Count so many jobs more, or fewer."""
        self._entries.append((client, jobs, request_bytes))
        self.total = self.total.plus(jobs, request_bytes)
        if watch_of(client):
            self.watched = self.watched.plus(jobs, request_bytes)
        theirs = self.of(client).plus(jobs, request_bytes)
        if theirs.jobs:
            self._clients[client] = theirs
        else:
            self._clients.pop(client, None)

    @property
    def mark(self) -> int:
        """Where the transaction is."""
        return len(self._entries)

    def undo(self, mark: int = 0) -> None:
        """Go back to a mark, or to where the transaction began."""
        for client, jobs, request_bytes in self._entries[mark:]:
            self.add(client, -jobs, -request_bytes)
        del self._entries[mark:]

"""Who runs next: by rank, and those that must run alone take turns with everybody else.

A job that failed beside others, or may have ended an engine with others in it, runs by itself from then on. It keeps
its place, which is before that of most who wait, and nobody else runs meanwhile. So between two such runs, of whomever,
what waits goes first; those who have such jobs have one run each in turn; and until an engine is idle others pass.
"""

from dataclasses import dataclass

from pydantic_core import to_json

from edge_agent.jobs.clock import Clock
from edge_agent.jobs.database import Database
from edge_agent.jobs.job import Job

PASSING_STEPS = 9
"""So many steps of age are there between the least priority and the highest: who was accepted later passes nobody."""
_LAST_ROW = 2**63 - 1


@dataclass(frozen=True, slots=True)
class FirstInLine:
    """The first of those that may be claimed, of one kind; the earliest rank is claimed first."""

    rank: float
    row: int
    accepted_s: float


def next_of(
    plain: FirstInLine | None, alone: FirstInLine | None, *, owed: bool, idle: bool, passing_s: float
) -> FirstInLine | None:
    """Return who is claimed: the first of the plain jobs, the first that must run alone, or nobody for now.

    | what is seen | who |
    |---|---|
    | a plain job has waited since the last run of one alone (`owed`) | the plain one: nobody waits for two such runs |
    | the plain one has the earlier rank | the plain one |
    | the engine is `idle` | the one alone |
    | it is not, the plain one came up to `passing_s` later | the plain one: running jobs may take minutes to end |
    | it is not, the plain one came later still | nobody: the one alone has waited for long |
    """
    if plain is None or alone is None:
        return plain or (alone if idle else None)
    if owed or (plain.rank, plain.row) < (alone.rank, alone.row):
        return plain
    if idle:
        return alone
    return plain if plain.accepted_s <= alone.accepted_s + passing_s else None


@dataclass(slots=True)
class AloneTurns:
    """Who has had a run alone of late, of one model. Kept in memory: a restart costs others one more run at most.

    Jobs up to the row `owed` go before the next run alone; `ran`: there was one since that was settled. `left` are the
    clients who have not had one in this round; who comes later has to wait for the next, so that no round is endless.
    """

    owed: int = 0
    ran: bool = False
    left: frozenset[str] = frozenset()


class Claims:
    """Claims jobs, see Queue. `age_step_s` is how many seconds of waiting weigh as much as a step of priority."""

    def __init__(self, db: Database, clock: Clock, *, age_step_s: float) -> None:
        self._db = db
        self._clock = clock
        self._passing_s = PASSING_STEPS * age_step_s
        self._turns: dict[str, AloneTurns] = {}

    def claim(self, model: str, *, idle: bool) -> Job | None:
        """Give the next job of a model to an engine, or None; one that must run alone only to an idle one."""
        turns = self._turns.setdefault(model, AloneTurns())
        if turns.ran:
            turns.owed, turns.ran = self._db.row("last_row")[0], False
        alone = self._first_alone(model, turns)
        first = next_of(
            self._first("first_plain", model, last=_LAST_ROW),
            alone,
            owed=alone is not None and self._first("first_plain", model, last=turns.owed) is not None,
            idle=idle,
            passing_s=self._passing_s,
        )
        if first is None:
            return None
        (job,) = self._db.change("claim", row=first.row, now=self._clock.now_s())
        if job.alone:
            turns.ran, turns.left = True, turns.left - {job.client}
        return job

    def _first_alone(self, model: str, turns: AloneTurns) -> FirstInLine | None:
        """Return the first that must run alone of the clients whose turn it is; after a round another begins."""
        first = self._first("first_alone", model, clients=to_json(turns.left).decode())
        if first is None:
            found = self._db.rows("clients_alone", model=model, now=self._clock.now_s())
            turns.left = frozenset(client for (client,) in found)
            first = self._first("first_alone", model, clients=to_json(turns.left).decode()) if found else None
        return first

    def _first(self, name: str, model: str, **arguments: int | str) -> FirstInLine | None:
        found = self._db.row(name, model=model, now=self._clock.now_s(), **arguments)
        return None if found is None else FirstInLine(*found)

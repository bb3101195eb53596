"""Whose fault a failure is while a job runs (pure): the device's, which is set aside, or the job's, which is struck.

| what is seen | whose |
|---|---|
| the engine died, or was killed, with one job in it, and had answered others since its start | the job's |
| the engine died, or was killed, with one job in it, which was there too when it died the last time | the job's |
| the engine died otherwise, or was killed for its silence | the device's: drivers crash and hang, prompts seldom do |
| it took more memory than its reservation | the device's: what the next candidate needs is reckoned anew |
| the model computed no numbers, a token that is none, or the library said that it failed | the device's |
| memory ran out, said the library, and the job was alone | the device's: no neighbour can have taken it |
| memory ran out beside others | the job's: it is tried again alone |
| anything else: too long, malformed, an image that is gone | the job's: it would fail on every device |

That holds while there is a candidate to go to. The last one is never blamed: there the job's strikes count, so a job
that kills every engine ends. And a job blames each candidate once: who fails on the same one again, or had a strike
already, is the one to blame. Nobody waits for what is a job's fault: the engine starts again at once, where it was.
"""

from collections import OrderedDict
from collections.abc import Collection

from edge_agent.base.errors import Code

FALLS_MAX = 1000
"""Jobs whose failures are remembered; more than run at once on any machine."""


def is_the_devices(code: Code, *, lost: bool, alone: bool, strikes: int, fell_before: bool) -> bool:
    """Return whether a failure is laid at the device's door, there being another candidate.

    `lost`: the engine is gone, by itself or by our hand. `alone`: with this job only. `strikes` are the job's, its
    present claim included; `fell_before`: it failed on this candidate before.
    """
    suspect = strikes > 1 or fell_before
    return not suspect and (lost or code is Code.MODEL_ERROR or (alone and code is Code.OUT_OF_MEMORY))


def is_the_jobs(rows: Collection[str], *, served: bool, before: Collection[str]) -> bool:
    """Return whether an engine's end is laid at the door of the job in it.

    `rows` are those of the jobs that were in it, `before` of those in the last that ended so. `served`: it has brought
    jobs to their end.
    """
    return len(rows) == 1 and (served or set(rows) <= set(before))


class FailureLog:
    """Which jobs, by row, failed at which places; of so many that ran last."""

    def __init__(self, most: int = FALLS_MAX) -> None:
        self._most = most
        self._places: OrderedDict[int, frozenset[str]] = OrderedDict()

    def note(self, row: int, place: str) -> None:
        """Remember that a job failed there."""
        self._places[row] = self.of(row) | {place}
        self._places.move_to_end(row)
        while len(self._places) > self._most:
            self._places.popitem(last=False)

    def of(self, row: int) -> frozenset[str]:
        """Return the places where a job failed."""
        return self._places.get(row, frozenset())

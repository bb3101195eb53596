"""How long a place where a model failed is left alone (pure): twice as long each time, forgotten once it works."""

from dataclasses import dataclass

ASIDE_FIRST_S = 60.0
"""A driver that was reset is back after seconds; a load that fails again costs as much as it takes."""
ASIDE_MOST_S = 3600.0


@dataclass(frozen=True, slots=True)
class Aside:
    """A place that failed at `since_s` and is left alone for `wait_s`; `works_s`: since when it works again."""

    reason: str
    since_s: float
    wait_s: float
    works_s: float | None = None

    @property
    def waits(self) -> bool:
        """Whether it has not worked since it failed."""
        return self.works_s is None

    def held(self, now_s: float) -> bool:
        """Return whether it is left alone."""
        return self.waits and now_s < self.since_s + self.wait_s


def failed(before: Aside | None, reason: str, *, now_s: float, first_s: float = ASIDE_FIRST_S) -> Aside:
    """Return what follows from a failure: the shortest wait, or twice the last when it did not work for as long."""
    steady = before is None or (before.works_s is not None and now_s - before.works_s > before.wait_s)
    wait_s = first_s if steady or before is None else min(2 * before.wait_s, ASIDE_MOST_S)
    return Aside(reason, now_s, wait_s)


def works(before: Aside, *, now_s: float) -> Aside:
    """Return what is remembered of a place that works again; how long it waited counts until it lasts."""
    return Aside(before.reason, before.since_s, before.wait_s, now_s)


def forgiven(before: Aside, *, now_s: float) -> Aside:
    """Return what follows when it turns out that a job was to blame: it may be tried at once."""
    return Aside(before.reason, now_s - before.wait_s, before.wait_s / 2, before.works_s)

"""Which models are in memory (pure): from what waits, runs and fits to what comes, stays and goes, with the reasons.

A model whose jobs wait is loaded when it fits beside those that are there. When it does not, others make room: one
that has nothing to do after it was idle for a moment, one that has after its turn, so that its jobs run in batches and
loading takes no more than a fifth of the time however mixed they come. One that would soon be done may finish first:
it need not come back for the rest. Who leaves takes no new jobs, ends what runs, and goes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

LINGER_S = 1.0
"""So long a model with nothing to do stays though another waits: who has got an answer often asks again at once."""
LINGER_LOADS = 1 / 3
"""But no longer than this share of what loading the other, and itself again, takes."""
TURN_LOADS = 4.0
"""A turn lasts at least so many times as long as loading the next took last time."""
FINISH_TURNS = 0.25
"""Who would be done within this share of a turn more may finish, which spares it a swap there and one back."""


class Fate(StrEnum):
    """What becomes of a model."""

    LOAD = "load"
    STAY = "stay"
    DRAIN = "drain"
    """It takes no new jobs and is unloaded when nothing runs in it."""
    REST = "rest"
    """It is not loaded, and stays so."""
    BARRED = "barred"
    """Pinned models leave no room for it, whoever else goes."""


@dataclass(frozen=True, slots=True)
class ModelView:
    """A served model. Seconds and bytes.

    loaded: its engine is there, or starting; ready_s: for how long it has been ready, 0 while it starts.
    rank: of its first waiting job, the smallest goes first; None when none waits. waited_s: for how long jobs have
    waited for it to be loaded. busy: something runs in it; idle_s: for how long nothing has.
    keep_alive_s: how long it stays with nothing to do, None for as long as there is room.
    asked, dismissed: somebody wants it loaded, or gone. needs_bytes: what it holds, or would; None when nobody knows.
    load_s: how long loading took last time. worn: it should begin anew. waiting: how many jobs wait; job_s: how long
    each took of late, all lanes together.
    """

    name: str
    loaded: bool = False
    ready_s: float = 0.0
    busy: bool = False
    idle_s: float = 0.0
    rank: float | None = None
    waited_s: float = 0.0
    keep_alive_s: float | None = None
    pinned: bool = False
    asked: bool = False
    dismissed: bool = False
    needs_bytes: int | None = None
    load_s: float = 0.0
    waiting: int = 0
    job_s: float = math.inf
    worn: bool = False

    @property
    def room_bytes(self) -> int:
        """What it holds, or would, as far as anybody knows."""
        return self.needs_bytes or 0

    @property
    def left_s(self) -> float:
        """In how long it would be done with what waits."""
        return self.waiting * self.job_s if self.waiting else 0.0

    @property
    def demanded(self) -> bool:
        """Whether others make room for it."""
        return self.pinned or self.asked or self.rank is not None

    @property
    def has_work(self) -> bool:
        """Whether it would be missed now."""
        return self.busy or self.rank is not None


@dataclass(frozen=True, slots=True)
class ResidencyVerdict:
    """What becomes of a model and why."""

    fate: Fate
    reason: str = ""


def decide(models: Sequence[ModelView], *, free_bytes: int | None, turn_s: float) -> dict[str, ResidencyVerdict]:
    """Return what becomes of each model.

    `free_bytes` may be taken beside what the loaded ones may still take; None when nobody knows, then everything fits.
    `turn_s` is how long a model with jobs keeps its place when others wait for it; FINISH_TURNS longer to finish.
    """
    room = _Room(models, math.inf if free_bytes is None else free_bytes)
    for model in models:
        if model.loaded and (why := _expired(model)):
            room.dismiss([model], why)
    for model in sorted((each for each in models if not each.loaded), key=lambda each: _urgency(each, turn_s)):
        room.place(model, turn_s)
    return room.verdicts


class _Room:
    """The memory, given away model by model. `coming_bytes` will be free when those that drain are gone.

    `promised` are models that are to be loaded now, or as soon as others have gone.
    """

    def __init__(self, models: Sequence[ModelView], free_bytes: float) -> None:
        self.verdicts = {model.name: ResidencyVerdict(Fate.STAY) for model in models if model.loaded}
        self._models = models
        self._free_bytes = free_bytes
        self._pinned = [each for each in models if each.loaded and each.pinned]
        self._most_bytes = free_bytes + sum(each.room_bytes for each in models if each.loaded and not each.pinned)
        self._coming_bytes = 0.0
        self._promised: list[ModelView] = []

    def dismiss(self, leaving: Iterable[ModelView], why: str) -> None:
        """Let models go."""
        for model in leaving:
            self.verdicts[model.name] = ResidencyVerdict(Fate.DRAIN, why)
            self._coming_bytes += model.room_bytes

    def place(self, model: ModelView, turn_s: float) -> None:
        """Find room for a model that is not loaded, if it is wanted."""
        if self._pinned and model.room_bytes > self._most_bytes:
            self.verdicts[model.name] = ResidencyVerdict(
                Fate.BARRED, f"no room beside {_names(self._pinned)}, pinned there"
            )
        elif not model.demanded and (why := _unwanted(model)):
            self.verdicts[model.name] = ResidencyVerdict(Fate.REST, why)
        elif model.room_bytes <= self._free_bytes:
            self._load(model)
        elif model.demanded:
            self._make_room(model, max(turn_s, TURN_LOADS * model.load_s))
        else:
            beside = _names([*self._with(Fate.STAY), *self._promised])
            self.verdicts[model.name] = ResidencyVerdict(
                Fate.REST, f"no room beside {beside}; loaded when a job waits for it"
            )

    def _load(self, model: ModelView) -> None:
        self.verdicts[model.name] = ResidencyVerdict(Fate.LOAD)
        self._free_bytes = max(0, self._free_bytes - model.room_bytes)
        self._promised.append(model)

    def _make_room(self, model: ModelView, turn_s: float) -> None:
        others = [each for each in self._with(Fate.STAY) if not each.pinned]
        able = sorted((each for each in others if _may_go(each, model, turn_s)), key=_missed)
        leaving = _enough(able, model.room_bytes - self._free_bytes - self._coming_bytes)
        room_bytes = self._free_bytes + self._coming_bytes + sum(each.room_bytes for each in leaving)
        in_the_way = [*(each for each in others if each not in leaving), *self._promised]
        if room_bytes < model.room_bytes and in_the_way:
            self.verdicts[model.name] = ResidencyVerdict(Fate.REST, f"waits for its turn after {_names(in_the_way)}")
            return
        self.dismiss(leaving, f"makes room for {model.name}")
        going = self._with(Fate.DRAIN)
        if not going:  # more than what is free is not to be had
            self._load(model)
            return
        self.verdicts[model.name] = ResidencyVerdict(Fate.REST, f"waits until {_names(going)} is gone")
        self._free_bytes, self._coming_bytes = 0, max(0, room_bytes - model.room_bytes)
        self._promised.append(model)

    def _with(self, fate: Fate) -> list[ModelView]:
        verdicts = self.verdicts
        return [each for each in self._models if each.name in verdicts and verdicts[each.name].fate is fate]


def _enough(able: Sequence[ModelView], wanted_bytes: float) -> list[ModelView]:
    """Return who leaves so that so much is free, of those least missed; all of them when they do not suffice."""
    leaving: list[ModelView] = []
    for model in able:
        if wanted_bytes > 0:
            leaving.append(model)
            wanted_bytes -= model.room_bytes
    for model in leaving[::-1]:  # a small one that was chosen before a large one may stay
        if wanted_bytes + model.room_bytes <= 0:
            leaving.remove(model)
            wanted_bytes += model.room_bytes
    return leaving


def _expired(model: ModelView) -> str:
    """Return why a loaded model goes of its own accord; empty while it stays."""
    if model.worn:
        return "begins anew: the guides that it has compiled take much memory"
    if model.pinned:
        return ""
    if model.dismissed:
        return "an administrator unloaded it"
    if model.keep_alive_s is None or model.has_work or model.asked or not model.ready_s:
        return ""
    return f"was idle for {model.keep_alive_s:g} s" if model.idle_s >= model.keep_alive_s else ""


def _unwanted(model: ModelView) -> str:
    """Return why a model that nobody waits for is not loaded although there may be room; empty when it is."""
    if model.dismissed:
        return "an administrator unloaded it; loaded when a job waits for it"
    return "" if model.keep_alive_s is None else "loaded when a job waits for it"


def _urgency(model: ModelView, turn_s: float) -> tuple[int, float]:
    """Sort by who is loaded first: who waits for longer than a turn, the longest first, then by rank."""
    if model.pinned or model.asked:
        return 0, 0.0
    if model.rank is None:
        return 3, 0.0
    return (1, -model.waited_s) if model.waited_s >= turn_s else (2, model.rank)


def _may_go(model: ModelView, waiting: ModelView, turn_s: float) -> bool:
    """Return whether a model may be asked to make room for one that waits."""
    if not model.ready_s:
        return False
    if model.has_work:
        over_s = min(model.ready_s, waiting.waited_s) - turn_s
        return over_s >= 0 and over_s + model.left_s > FINISH_TURNS * turn_s
    return model.idle_s >= min(LINGER_S, LINGER_LOADS * (model.load_s + waiting.load_s))


def _missed(model: ModelView) -> tuple[bool, float]:
    """Sort by who is missed least: idle ones first, of those the longest idle; else who has been there longest."""
    return model.has_work, -model.ready_s if model.has_work else -model.idle_s


def _names(models: Iterable[ModelView]) -> str:
    return " and ".join(model.name for model in models) or "what else needs memory"

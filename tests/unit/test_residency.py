"""Which models are in memory: as a table, and in a simulated week of mixed jobs: no thrashing, and nobody starves."""

import random
from dataclasses import dataclass, field, replace

import pytest

from edge_agent.engine.hosting.residency import (
    FINISH_TURNS,
    LINGER_LOADS,
    LINGER_S,
    TURN_LOADS,
    Fate,
    ModelView,
    decide,
)

GIB = 2**30
TURN_S = 60.0


def loaded(name, **seen):
    return ModelView(name, **{"loaded": True, "ready_s": 1000.0, "idle_s": 1000.0, "needs_bytes": 3 * GIB} | seen)


def away(name, **seen):
    return ModelView(name, **{"needs_bytes": 3 * GIB} | seen)


def fates(*models, free=0, turn_s=TURN_S):
    verdicts = decide(models, free_bytes=free, turn_s=turn_s)
    return {name: (verdict.fate, verdict.reason) for name, verdict in verdicts.items()}


LOAD, STAY, DRAIN, REST = (Fate.LOAD, ""), (Fate.STAY, ""), Fate.DRAIN, Fate.REST
WORK = {"busy": True, "idle_s": 0.0, "waiting": 9}
BEGINS_ANEW = "begins anew: the guides that it has compiled take much memory"
LATE = {"rank": 1.0, "waited_s": TURN_S}
MORE_S = FINISH_TURNS * TURN_S
TEXT_GOES = {"text": (DRAIN, "makes room for vision"), "vision": (REST, "waits until text is gone")}
VISION_BARRED = {"text": STAY, "vision": (Fate.BARRED, "no room beside text, pinned there")}
VISION_WAITS = {"text": STAY, "vision": (REST, "waits for its turn after text")}


@pytest.mark.parametrize(
    ("models", "free", "expected"),
    [
        # nobody asks
        ([away("text")], 3 * GIB, {"text": LOAD}),
        ([away("text")], None, {"text": LOAD}),
        ([away("text", keep_alive_s=60.0)], 9 * GIB, {"text": (REST, "loaded when a job waits for it")}),
        ([away("text"), away("vision")], 6 * GIB, {"text": LOAD, "vision": LOAD}),
        (
            [away("text"), away("vision")],
            5 * GIB,
            {"text": LOAD, "vision": (REST, "no room beside text; loaded when a job waits for it")},
        ),
        # a job waits
        ([away("text", keep_alive_s=60.0, rank=1.0)], 3 * GIB, {"text": LOAD}),
        ([away("text"), away("vision", rank=1.0)], 5 * GIB, None),
        ([loaded("text"), away("vision", rank=1.0)], 3 * GIB, {"text": STAY, "vision": LOAD}),
        ([loaded("text"), away("vision", rank=1.0)], 2 * GIB, TEXT_GOES),
        ([loaded("text"), away("vision", asked=True)], 2 * GIB, TEXT_GOES),
        ([loaded("text"), away("vision", pinned=True)], 2 * GIB, TEXT_GOES),
        ([loaded("text", idle_s=LINGER_S / 2, load_s=9.0), away("vision", rank=1.0)], 2 * GIB, VISION_WAITS),
        ([loaded("text", idle_s=LINGER_S, load_s=9.0), away("vision", rank=1.0)], 2 * GIB, TEXT_GOES),
        # not longer than it pays
        ([loaded("text", idle_s=0.9 * LINGER_LOADS, load_s=1.0), away("vision", rank=1.0)], 2 * GIB, VISION_WAITS),
        ([loaded("text", idle_s=1.1 * LINGER_LOADS, load_s=1.0), away("vision", rank=1.0)], 2 * GIB, TEXT_GOES),
        (
            [loaded("text", idle_s=1.9 * LINGER_LOADS, load_s=1.0), away("vision", rank=1.0, load_s=1.0)],
            2 * GIB,
            VISION_WAITS,
        ),
        ([loaded("text", **WORK), away("vision", rank=1.0, waited_s=TURN_S - 1)], 2 * GIB, VISION_WAITS),
        ([loaded("text", **WORK), away("vision", rank=1.0, waited_s=TURN_S)], 2 * GIB, TEXT_GOES),
        ([loaded("text", rank=5.0), away("vision", rank=1.0, waited_s=TURN_S - 1)], 2 * GIB, VISION_WAITS),
        ([loaded("text", ready_s=9.0, **WORK), away("vision", rank=1.0, waited_s=TURN_S)], 2 * GIB, VISION_WAITS),
        ([loaded("text", ready_s=0.0), away("vision", rank=1.0, waited_s=TURN_S)], 2 * GIB, VISION_WAITS),
        # whose library drops nothing begins anew, whoever wants it
        ([loaded("text", worn=True, pinned=True, **WORK)], 2 * GIB, {"text": (DRAIN, BEGINS_ANEW)}),
        ([away("text", pinned=True)], 4 * GIB, {"text": LOAD}),
        # who would soon be done may finish
        ([loaded("text", **WORK | {"job_s": 0.99 * MORE_S / 9}), away("vision", **LATE)], 2 * GIB, VISION_WAITS),
        ([loaded("text", **WORK | {"job_s": 1.01 * MORE_S / 9}), away("vision", **LATE)], 2 * GIB, TEXT_GOES),
        ([loaded("text", **WORK | {"waiting": 1, "job_s": MORE_S}), away("vision", **LATE)], 2 * GIB, VISION_WAITS),
        ([loaded("text", **WORK | {"waiting": 0}), away("vision", **LATE)], 2 * GIB, VISION_WAITS),
        (
            [loaded("text", **WORK | {"waiting": 0}), away("vision", rank=1.0, waited_s=TURN_S + 1.01 * MORE_S)],
            2 * GIB,
            TEXT_GOES,
        ),
        # one that takes long to load waits for longer turns
        (
            [loaded("text", **WORK), away("vision", rank=1.0, waited_s=TURN_S, load_s=TURN_S / TURN_LOADS + 1)],
            2 * GIB,
            VISION_WAITS,
        ),
        # more than there is: tried when nobody is in the way
        ([away("text", rank=1.0, needs_bytes=99 * GIB)], 9 * GIB, {"text": LOAD}),
        ([loaded("text"), away("vision", rank=1.0, needs_bytes=99 * GIB)], 9 * GIB, TEXT_GOES),
        # pinned ones do not
        ([loaded("text", pinned=True), away("vision", rank=1.0)], 2 * GIB, VISION_BARRED),
        ([loaded("text", pinned=True), away("vision", keep_alive_s=9.0)], 2 * GIB, VISION_BARRED),
        ([loaded("text", pinned=True), away("vision")], 3 * GIB, {"text": STAY, "vision": LOAD}),
        # time to go
        ([loaded("text", keep_alive_s=60.0, idle_s=59.0)], 0, {"text": STAY}),
        ([loaded("text", keep_alive_s=60.0, idle_s=60.0)], 0, {"text": (DRAIN, "was idle for 60 s")}),
        ([loaded("text", keep_alive_s=0.0, **WORK)], 0, {"text": STAY}),
        ([loaded("text", keep_alive_s=0.0, rank=1.0)], 0, {"text": STAY}),
        ([loaded("text", keep_alive_s=0.0, ready_s=0.0)], 0, {"text": STAY}),
        ([loaded("text", keep_alive_s=0.0, pinned=True)], 0, {"text": STAY}),
        ([loaded("text", dismissed=True, **WORK)], 0, {"text": (DRAIN, "an administrator unloaded it")}),
        (
            [away("text", dismissed=True)],
            9 * GIB,
            {"text": (REST, "an administrator unloaded it; loaded when a job waits for it")},
        ),
        ([away("text", dismissed=True, rank=1.0)], 9 * GIB, {"text": LOAD}),
    ],
)
def test_what_becomes_of_models(models, free, expected):
    found = fates(*models, free=free)
    if expected is None:  # who is waited for goes first, whatever the order of the settings
        assert found["vision"] == LOAD
        assert found["text"][0] is REST
    else:
        assert found == expected


def test_who_is_missed_least_makes_room_and_nobody_more_than_needed():
    """Idle before busy, the longest idle first; a small one stays when a large one has to go anyway."""
    text, small = loaded("text", idle_s=50.0, needs_bytes=4 * GIB), loaded("small", idle_s=90.0, needs_bytes=GIB)
    works = loaded("works", **WORK)
    found = fates(works, text, small, away("vision", rank=1.0, waited_s=TURN_S), free=0)
    assert found["text"] == (DRAIN, "makes room for vision")
    assert found["small"] == found["works"] == STAY
    found = fates(works, text, small, away("vision", rank=1.0, waited_s=TURN_S, needs_bytes=GIB), free=0)
    assert found["small"] == (DRAIN, "makes room for vision")
    assert found["text"] == STAY


def test_the_first_in_rank_gets_the_room_and_others_do_not_take_it_away():
    """But who has waited for longer than a turn goes before all, the longest first."""
    first, second = away("first", rank=1.0, waited_s=5.0), away("second", rank=2.0, waited_s=9.0)
    found = fates(second, first, loaded("text"), free=GIB)
    assert found["first"] == (REST, "waits until text is gone")
    assert found["second"] == (REST, "waits for its turn after first")
    assert fates(second, first, free=3 * GIB)["second"] == (REST, "waits for its turn after first")
    late = [replace(each, waited_s=each.waited_s + TURN_S) for each in (first, second)]
    assert fates(*late, free=3 * GIB)["second"] == LOAD


def test_what_leaves_anyway_is_waited_for_before_anybody_else_must_go():
    """To the byte, and no more than once: the next that waits does not count on the same room."""
    leaves, stays = loaded("leaves", dismissed=True), loaded("stays")
    first = away("first", rank=1.0, waited_s=TURN_S)
    assert fates(leaves, stays, first) == {
        "leaves": (DRAIN, "an administrator unloaded it"),
        "stays": STAY,
        "first": (REST, "waits until leaves is gone"),
    }
    more = replace(first, needs_bytes=3 * GIB + 1)
    assert fates(leaves, stays, more)["stays"] == (DRAIN, "makes room for first")
    assert fates(leaves, stays, more, free=1)["stays"] == STAY
    second = away("second", rank=2.0, waited_s=1.0, needs_bytes=GIB)
    assert fates(leaves, stays, first, second)["stays"] == (DRAIN, "makes room for second")
    # What is left over of the room that comes is the next one's.
    small = replace(first, needs_bytes=2 * GIB)
    found = fates(leaves, stays, small, second)
    assert found["second"] == (REST, "waits until leaves is gone")
    assert found["stays"] == STAY
    assert fates(leaves, stays, replace(small, needs_bytes=2 * GIB + 1), second)["stays"][0] is DRAIN


def test_what_is_loaded_takes_its_room_from_the_next():
    found = fates(away("text"), away("vision"), free=6 * GIB - 1)
    assert found["text"] == LOAD
    assert found["vision"] == (REST, "no room beside text; loaded when a job waits for it")


def test_a_model_nobody_knows_the_needs_of_fits_and_leaves_no_room():
    assert fates(away("text", needs_bytes=None), free=0) == {"text": LOAD}
    assert fates(loaded("text", needs_bytes=None), away("vision", rank=1.0), free=0)["vision"][0] is REST
    pinned, unknown = loaded("pinned", pinned=True), loaded("unknown", needs_bytes=None)
    barred = fates(pinned, unknown, away("vision", rank=1.0), free=3 * GIB - 1)["vision"]
    assert barred == (Fate.BARRED, "no room beside pinned, pinned there")
    assert fates(pinned, unknown, away("vision", rank=1.0), free=3 * GIB)["vision"] == LOAD


def test_what_does_not_fit_at_all_leaves_no_room_and_owes_none():
    """Beside it comes who needs nothing that is known of, and nobody who needs a byte."""
    huge, unknown = away("huge", rank=1.0, needs_bytes=99 * GIB), away("unknown", rank=2.0, needs_bytes=None)
    one = away("one", rank=3.0, needs_bytes=1)
    after = (REST, "waits for its turn after huge")
    assert fates(huge, unknown, one, free=9 * GIB) == {
        "huge": LOAD,
        "unknown": LOAD,
        "one": (REST, "waits for its turn after huge and unknown"),
    }
    found = fates(loaded("text"), huge, unknown, one, free=9 * GIB)
    assert (found["huge"], found["unknown"]) == ((REST, "waits until text is gone"), LOAD)
    assert fates(loaded("text"), huge, one, free=9 * GIB)["one"] == after


@pytest.mark.parametrize(("more_bytes", "barred"), [(0, False), (1, True)])
def test_only_pinned_models_bar_another(more_bytes, barred):
    """What others hold is to be had."""
    models = loaded("pinned", pinned=True), loaded("text"), away("vision", rank=1.0, needs_bytes=5 * GIB + more_bytes)
    assert (fates(*models, free=2 * GIB)["vision"][0] is Fate.BARRED) is barred


def test_nobody_goes_for_a_byte_that_is_not_needed():
    texts = [loaded(name, idle_s=idle_s, needs_bytes=GIB) for name, idle_s in (("a", 9.0), ("b", 8.0), ("c", 7.0))]

    def going(needs_bytes):
        found = fates(*texts, away("vision", rank=1.0, needs_bytes=needs_bytes), free=0)
        return [name for name, (fate, _) in found.items() if fate is DRAIN]

    assert going(GIB) == ["a"]
    assert going(GIB + 1) == ["a", "b"]
    assert going(2 * GIB) == ["a", "b"]
    assert going(2 * GIB + 1) == ["a", "b", "c"]
    large = loaded("large", idle_s=1.0, needs_bytes=2 * GIB)
    found = fates(*texts[:2], large, away("vision", rank=1.0, needs_bytes=3 * GIB), free=0)
    assert [name for name, (fate, _) in found.items() if fate is DRAIN] == ["a", "large"]


def test_who_is_loaded_first():
    """Pinned and ordered ones, then who waits for a turn and more, the longest first, then by rank, then the rest."""
    models = [
        away("rest"),
        away("ranked", rank=1.0, waited_s=TURN_S - 1),
        away("late", rank=9.0, waited_s=TURN_S),
        away("later", rank=8.0, waited_s=TURN_S + 1),
        away("asked", asked=True),
        away("pinned", pinned=True),
    ]

    def order(left):
        found = fates(*left, free=3 * GIB)
        return next(name for name, verdict in found.items() if verdict == LOAD)

    seen = []
    while models:
        seen.append(order(models))
        models = [each for each in models if each.name != seen[-1]]
    assert seen == ["asked", "pinned", "later", "late", "ranked", "rest"]
    at_once = fates(away("ranked", rank=1.0, waited_s=5.0), away("asked", asked=True), free=3 * GIB)
    assert at_once["asked"] == LOAD
    assert fates(away("ranked", rank=0.0), away("rest"), free=3 * GIB)["ranked"] == LOAD
    before = away("before", rank=-2 * TURN_S, waited_s=TURN_S - 1)
    assert fates(before, away("late", rank=1.0, waited_s=TURN_S), free=3 * GIB)["late"] == LOAD


@dataclass
class Engine:
    """A simulated model: loading takes `load_s`, a job `job_s`; `lanes` run at once."""

    name: str
    load_s: float
    job_s: float
    needs_bytes: int = 3 * GIB
    lanes: int = 1
    keep_alive_s: float | None = None
    queue: list[float] = field(default_factory=list)
    running: list[float] = field(default_factory=list)
    state: str = "away"
    at_s: float = 0.0
    wanted_s: float = 0.0
    idle_since_s: float = 0.0
    loads: int = 0
    waits: list[float] = field(default_factory=list)


class World:
    """Engines on a simulated clock, moved as `decide` says, each second as the agent does."""

    TICK_S = 1.0

    def __init__(self, *engines, memory=4 * GIB, turn_s=TURN_S):
        self.engines, self.memory, self.turn_s, self.now_s = engines, memory, turn_s, 0.0

    def run(self, arrivals, *, closed_loop=()):
        """Run arrivals, (time, engine) sorted; return when all was done. `closed_loop`: (engine, jobs) one by one."""
        arrivals, loops = list(arrivals), [[engine, jobs] for engine, jobs in closed_loop]
        for engine, _ in loops:
            self._come(engine)
        while arrivals or loops or any(each.queue or each.running for each in self.engines):
            assert self.now_s < 1e6, "it does not end"
            while arrivals and arrivals[0][0] <= self.now_s:
                self._come(arrivals.pop(0)[1])
            for each in self.engines:
                self._work(each, loops)
            if self.now_s % self.TICK_S == 0:
                self._decide()
            self.now_s += 0.25
        return self.now_s

    def _come(self, engine):
        if not engine.queue and engine.state == "away":
            engine.wanted_s = self.now_s
        engine.queue.append(self.now_s)

    def _work(self, engine, loops):
        if engine.state == "loading" and self.now_s >= engine.at_s + engine.load_s:
            engine.state, engine.at_s, engine.idle_since_s = "ready", self.now_s, self.now_s
        for end_s in [end_s for end_s in engine.running if end_s <= self.now_s]:
            engine.running.remove(end_s)
            engine.idle_since_s = self.now_s
            for loop in [loop for loop in loops if loop[0] is engine]:
                loop[1] -= 1
                self._come(engine) if loop[1] else loops.remove(loop)
        while engine.state == "ready" and engine.queue and len(engine.running) < engine.lanes:
            engine.waits.append(self.now_s - engine.queue.pop(0))
            engine.running.append(self.now_s + engine.job_s)

    def _seen(self, each):
        there = each.state != "away"
        return ModelView(
            each.name,
            loaded=there,
            ready_s=self.now_s - each.at_s if each.state in ("ready", "drains") else 0.0,
            busy=bool(each.running),
            idle_s=0.0 if each.running else self.now_s - each.idle_since_s,
            rank=each.queue[0] if each.queue else None,
            waited_s=self.now_s - each.wanted_s if each.queue and not there else 0.0,
            keep_alive_s=each.keep_alive_s,
            needs_bytes=each.needs_bytes,
            load_s=each.load_s if each.loads else 0.0,
            waiting=len(each.queue),
            job_s=each.job_s / each.lanes,
        )

    def _decide(self):
        free = self.memory - sum(each.needs_bytes for each in self.engines if each.state != "away")
        assert free >= 0, "more is loaded than there is memory"
        verdicts = decide([self._seen(each) for each in self.engines], free_bytes=free, turn_s=self.turn_s)
        for each in self.engines:
            fate = verdicts[each.name].fate
            if fate is Fate.LOAD:
                each.state, each.at_s, each.loads = "loading", self.now_s, each.loads + 1
            elif fate is Fate.STAY and each.state == "drains":
                each.state = "ready"
            elif fate is Fate.DRAIN:
                each.state = "drains" if each.running else "away"
                each.wanted_s = self.now_s


def ideal_s(arrivals, *engines):
    """Return how long the jobs take when each model is loaded once: all jobs of one, then all of the other."""
    return sum(each.load_s + each.job_s * sum(e is each for _, e in arrivals) / each.lanes for each in engines)


def pair():
    return Engine("text", load_s=8.0, job_s=1.0), Engine("vision", load_s=12.0, job_s=3.0)


@pytest.mark.parametrize("seed", range(6))
def test_mixed_loads_take_little_longer_than_in_the_ideal_order(seed):
    """A machine that has more to do than it can, jobs of both models in any order: at least 80 % of the throughput."""
    chance = random.Random(seed)
    text, vision = pair()
    arrivals = [(chance.uniform(0, 120), chance.choice((text, vision))) for _ in range(600)]
    took_s = World(text, vision).run(sorted(arrivals, key=lambda each: each[0]))
    assert ideal_s(arrivals, text, vision) / took_s > 0.80
    assert len(text.waits) + len(vision.waits) == 600


@pytest.mark.parametrize("seed", range(6))
def test_who_has_little_left_finishes_and_need_not_come_back(seed):
    """A burst whose text jobs take a little longer than a turn: one swap, not one there and one back."""
    chance = random.Random(seed)
    text, vision = pair()
    arrivals = [(chance.uniform(0, 30), engine) for engine, jobs in ((text, 65), (vision, 20)) for _ in range(jobs)]
    arrivals += [(0.0, text)]
    took_s = World(text, vision).run(sorted(arrivals, key=lambda each: each[0]))
    assert (text.loads, vision.loads) == (1, 1)
    assert ideal_s(arrivals, text, vision) / took_s > 0.95


@pytest.mark.parametrize("seed", range(3))
def test_nobody_waits_longer_than_turns_and_loads_take(seed):
    """Two models are kept full for an hour; now and then a job of the third comes: it waits for two turns at most."""
    chance = random.Random(seed)
    text, vision = pair()
    rare = Engine("rare", load_s=5.0, job_s=1.0)
    busy = [(second, engine) for second in range(1800) for engine in (text, vision)]
    asks = [(chance.uniform(0, 3600), rare) for _ in range(10)]
    World(text, vision, rare).run(sorted(busy + asks, key=lambda each: each[0]))
    turn_s = TURN_S + 12.0 + 3.0 + LINGER_S + 3 * World.TICK_S
    assert max(rare.waits) <= 2 * turn_s + 5.0
    assert sum(len(each.waits) for each in (text, vision, rare)) == 3610


def test_who_asks_one_after_the_other_keeps_a_model_for_a_turn():
    """The next question comes as soon as the answer is there: not reason enough to swap after each."""
    text, vision = pair()
    took_s = World(text, vision).run([], closed_loop=[(text, 200), (vision, 60)])
    assert text.loads + vision.loads <= 8
    assert (200 * 1.0 + 60 * 3.0 + 8.0 + 12.0) / took_s > 0.75


def test_both_are_there_when_memory_allows():
    chance = random.Random(1)
    text, vision = pair()
    arrivals = sorted(((chance.uniform(0, 600), chance.choice((text, vision))) for _ in range(300)), key=lambda e: e[0])
    World(text, vision, memory=6 * GIB).run(arrivals)
    assert (text.loads, vision.loads) == (1, 1)


def test_a_job_now_and_then_is_not_kept_waiting_for_a_turn():
    """A model that has nothing to do makes room after it lingered."""
    text, vision = pair()
    World(text, vision).run([(0, text), (100, vision), (200, text), (300, vision)])
    assert max(text.waits + vision.waits) <= 12.0 + LINGER_S + 3 * World.TICK_S


def test_a_job_that_is_gone_calls_off_the_swap():
    """Decisions hold on to nothing: who was to make room stays when nobody waits any more."""
    text, vision = loaded("text", **WORK), away("vision", rank=1.0, waited_s=TURN_S)
    assert fates(text, vision)["text"] == (DRAIN, "makes room for vision")
    assert fates(text, replace(vision, rank=None))["text"] == STAY

"""Who wants a model, and for how long it has been waited for."""

import pytest

from edge_agent.engine.hosting.demand import ModelDemand
from edge_agent.engine.hosting.residency import ModelView
from edge_agent.jobs.overview import Demand

JOBS = Demand(rank=3.0, jobs=2)
AWAY, THERE = ModelView("text"), ModelView("text", loaded=True)


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def wants(clock):
    return ModelDemand(keep_alive_s=60.0, pinned=False, now_s=clock)


@pytest.mark.parametrize("want", [lambda w: w.demand(JOBS), lambda w: w.ask(), lambda w: w.pin(pinned=True)])
def test_a_model_that_is_wanted_waits_while_it_is_away(wants, clock, want):
    assert wants.join(AWAY).waited_s == 0.0
    want(wants)
    clock.now_s += 5
    assert wants.join(AWAY).waited_s == 0.0
    clock.now_s += 5
    assert wants.join(AWAY).waited_s == 5.0
    assert wants.join(THERE).waited_s == 0.0
    clock.now_s += 5
    assert wants.join(AWAY).waited_s == 0.0


def test_the_jobs_that_wait_are_told_whether_it_is_there_or_away(wants):
    wants.demand(JOBS)
    for seen in (wants.join(AWAY), wants.join(THERE)):
        assert (seen.rank, seen.waiting) == (3.0, 2)
    wants.demand(None)
    assert (wants.join(THERE).rank, wants.join(THERE).waiting) == (None, 0)


def test_who_wants_it_no_more_does_not_wait(wants, clock):
    wants.demand(JOBS)
    wants.join(AWAY)
    clock.now_s += 5
    wants.demand(None)
    assert wants.join(AWAY).waited_s == 0.0
    wants.ask()
    wants.relent()
    assert not wants.join(AWAY).demanded


def test_a_dismissal_holds_until_the_model_is_loaded_again(wants):
    """Whether it came while the model was there or away; one that comes while it is being loaded counts."""
    wants.dismiss()
    assert wants.join(THERE).dismissed
    assert wants.join(THERE).dismissed
    assert wants.join(AWAY).dismissed
    assert not wants.join(THERE).dismissed
    assert not wants.join(AWAY).dismissed
    wants.dismiss()
    wants.join(AWAY)
    wants.dismiss()  # it is being loaded just now
    assert wants.join(THERE).dismissed


def test_a_dismissal_can_be_taken_back(wants):
    wants.dismiss()
    assert wants.join(AWAY).dismissed
    wants.keep()
    assert not wants.join(AWAY).dismissed
    assert not wants.join(THERE).dismissed


def test_an_ask_and_a_dismissal_take_each_other_back(wants):
    wants.dismiss()
    wants.ask()
    assert (wants.join(AWAY).asked, wants.join(AWAY).dismissed) == (True, False)
    wants.dismiss()
    assert (wants.join(AWAY).asked, wants.join(AWAY).dismissed) == (False, True)

"""Whether an agent lives: births and deaths in any order, silence, and our own absence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.fleet.liveness import SILENCE_LEAST_S, SILENCE_MOST_S, SILENCE_S, Birth, Life, Liveness

OLD, NEW = Birth("old", 3), Birth("new", 1)


def born(*births, now_s=0.0):
    """A life whose births we heard."""
    life = Life(awaited_s=now_s)
    for birth in births:
        life = life.online(birth).certified(birth).word(now_s)
    return life


def test_the_will_of_the_last_birth_counts():
    assert born(OLD).offline(OLD).standing(0.0) is Liveness.OFFLINE


@pytest.mark.parametrize("late", [OLD, Birth("new", 1), Birth("never heard of", 9)])
def test_a_late_will_never_marks_a_reborn_agent_dead(late):
    """One of its last start, of an earlier connection of this one, or of nobody we know."""
    life = born(OLD, Birth("new", 1), Birth("new", 2))
    assert life.offline(late).standing(0.0) is Liveness.THERE


@given(st.lists(st.sampled_from(["will", "certificate", "report", "word"]), max_size=8), st.data())
def test_whatever_comes_late_a_reborn_agent_lives_until_its_own_will(events, data):
    """Everything an earlier life left behind may come after the birth, in any order."""
    life = born(OLD, NEW)
    for event in events:
        late = data.draw(st.sampled_from([OLD, Birth("old", 2), Birth("older", 7)]))
        match event:
            case "will":
                life = life.offline(late)
            case "certificate":
                life = life.certified(late)
            case "report":
                life = life.reported(late.boot_id)
            case "word":
                life = life.word(0.0)
        assert life.standing(0.0) is Liveness.THERE
    assert life.offline(NEW).standing(0.0) is Liveness.OFFLINE


@given(st.permutations(["will", "certificate"]))
def test_a_late_will_that_the_broker_kept_does_not_outweigh_the_certificate_of_the_next_life(order):
    """Both are there when we begin to listen, in any order; the agent will have mended its presence soon."""
    life = Life(awaited_s=0.0)
    for each in order:
        life = life.offline(OLD) if each == "will" else life.certified(NEW)
    assert life.standing(0.0) is Liveness.THERE
    assert life.standing(SILENCE_S + 1) is Liveness.LOST


@given(st.permutations(["will", "certificate"]))
def test_a_will_and_a_certificate_of_one_life_mean_that_it_is_over(order):
    life = Life(awaited_s=0.0)
    for each in order:
        life = life.offline(NEW) if each == "will" else life.certified(NEW)
    assert life.standing(0.0) is Liveness.OFFLINE


def test_a_report_of_another_start_says_that_it_is_back():
    """Its birth may have come while we did not listen; a report of the dead one was only slow."""
    life = born(OLD).offline(OLD)
    assert life.reported("old").standing(0.0) is Liveness.OFFLINE
    back = life.reported("new")
    assert back.standing(0.0) is Liveness.THERE
    assert back.offline(OLD).standing(0.0) is Liveness.THERE
    assert back.offline(NEW).standing(0.0) is Liveness.OFFLINE


def test_a_birth_sent_once_more_by_a_later_connection_is_not_the_last():
    life = born(Birth("new", 1), Birth("new", 2)).online(Birth("new", 1))
    assert life.offline(Birth("new", 1)).standing(0.0) is Liveness.THERE


def test_a_death_that_we_did_not_hear_the_birth_of_counts_after_our_absence():
    """Born again and gone while our own connection was away."""
    life = born(OLD).afresh(5.0)
    assert life.offline(NEW).standing(5.0) is Liveness.OFFLINE


def test_three_silent_periods_are_a_loss_and_a_word_ends_it():
    life = born(OLD).patient(9).word(100.0)
    assert life.standing(109.0) is Liveness.THERE
    assert life.standing(109.1) is Liveness.LOST
    assert life.word(110.0).standing(119.0) is Liveness.THERE


def test_our_own_absence_is_not_its_silence():
    life = born(OLD).patient(9).word(0.0).afresh(1000.0)
    assert life.standing(1009.0) is Liveness.THERE
    assert life.standing(1010.0) is Liveness.LOST


@pytest.mark.parametrize(("asked_s", "granted_s"), [(0, SILENCE_LEAST_S), (1e18, SILENCE_MOST_S)])
def test_nobody_can_ask_for_endless_patience_or_none(asked_s, granted_s):
    assert born(OLD).patient(asked_s).silence_s == granted_s

"""What a requester believes of one job, told step by step: which text is new, when it acts again, when it gives up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import Code
from edge_agent.client.placement import (
    ASK_S,
    ASKS_MOST,
    CANCEL_GRACE_S,
    LAST_WORD_S,
    POOL_RESEND_MOST_S,
    RESEND_FIRST_S,
    RESEND_MOST_S,
    UNHEARD_FIRST_S,
    Due,
    Placement,
    RefusalMeaning,
    Voice,
)
from edge_agent.jobs.job import Failure

ENDS_S = 600.0


def direct(**fields):
    return Placement(agent="a", pool=None, ends_s=ENDS_S, **fields)


def pooled(**fields):
    return Placement(agent=None, pool="hall", ends_s=ENDS_S, **fields)


def accepted(place, agent="a"):
    assert place.voice(agent, ended=False) is Voice.FIRST
    assert place.state(1, 0.0)
    return place


def failure(code, *, retryable=True, retry_after_s=None):
    return Failure(code=code, message="no", retryable=retryable, retry_after_s=retry_after_s)


def waits(place, due, count):
    """How long it waits after each of so many tries."""
    found = []
    for _ in range(count):
        place.sent(due, 0.0, connection=1)
        found.append(place.next_s)
    return found


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.integers(0, 3)), max_size=30))
def test_text_is_taken_once_and_of_the_newest_attempt_of_the_followed_agent_only(told):
    place, seen, newest = direct(), set(), 0
    for agent, attempt, seq in told:
        new = agent == "a" and attempt >= newest and (attempt, seq) not in seen
        assert place.chunk(agent, attempt, seq, 0.0) is new
        if agent == "a":
            newest = max(newest, attempt)
            seen.add((attempt, seq))


def test_text_is_a_sign_of_life():
    """A stranger's is none."""
    place = direct(tries=2)
    assert not place.chunk("b", 1, 0, 100.0)
    assert (place.accepted, place.tries, place.next_s) == (False, 2, 0.0)
    assert place.chunk("a", 1, 0, 100.0)
    assert (place.accepted, place.tries, place.next_s) == (True, 0, 100.0 + ASK_S)
    assert not place.chunk("a", 1, 0, 200.0)  # a repeat still tells that it lives
    assert place.next_s == 200.0 + ASK_S


def test_another_agent_begins_its_text_anew():
    place = accepted(pooled())
    assert place.chunk("a", 2, 0, 0.0)
    assert place.state(7, 0.0)
    place.lose(0.0)
    assert place.voice("b", ended=False) is Voice.FIRST
    assert place.chunk("b", 1, 0, 0.0)
    assert place.state(1, 0.0)


def test_an_older_state_is_no_news_but_a_sign_of_life():
    place = direct(tries=2)
    assert place.state(3, 10.0)
    assert (place.accepted, place.tries, place.next_s) == (True, 0, 10.0 + ASK_S)
    assert place.state(3, 20.0)  # progress repeats it
    place.tries = 1
    assert not place.state(2, 30.0)
    assert (place.state_seq, place.tries, place.next_s) == (3, 1, 30.0 + ASK_S)


@given(st.floats(0, 2000))
def test_what_is_left_of_its_life_is_told_to_the_next_agent(now_s):
    left_s = pooled().left_s(now_s)
    assert left_s == max(1, round(ENDS_S - now_s))


def test_tries_come_further_and_further_apart():
    assert waits(direct(), Due.SEND, 5) == [RESEND_FIRST_S, 10.0, 20.0, 40.0, RESEND_MOST_S]
    assert waits(pooled(), Due.OFFER, 4) == [RESEND_FIRST_S, 10.0, POOL_RESEND_MOST_S, POOL_RESEND_MOST_S]
    assert waits(accepted(pooled()), Due.ASK, 2) == [RESEND_FIRST_S, RESEND_FIRST_S]
    assert waits(direct(accepted=True), Due.ASK, 2) == [ASK_S, ASK_S]
    assert waits(direct(), Due.ASK, 2) == [RESEND_FIRST_S, RESEND_FIRST_S]


def test_what_is_due_depends_on_who_has_it():
    assert direct().due(0.0) is Due.SEND
    assert direct(next_s=1.0).due(0.9) is None
    assert direct(next_s=1.0).due(1.0) is Due.SEND
    assert direct().due(ENDS_S) is Due.ASK
    assert direct(accepted=True).due(0.0) is Due.ASK
    assert pooled().due(0.0) is Due.OFFER
    assert pooled().due(ENDS_S) is None
    assert pooled(canceled_s=0.0).due(0.0) is None


def test_an_agent_of_a_pool_that_answers_nothing_is_given_up():
    """One that was asked for itself is not: nobody else has the job."""
    place = accepted(pooled())
    place.tries, place.next_s = ASKS_MOST - 1, 0.0
    assert place.due(0.0) is Due.ASK
    place.tries = ASKS_MOST
    assert place.due(0.0) is Due.OFFER
    assert (place.agent, place.accepted, place.tries, place.next_s) == (None, False, 0, 0.0)
    assert direct(accepted=True, tries=ASKS_MOST).due(0.0) is Due.ASK


def test_over_a_new_connection_what_was_sent_is_due_at_once():
    """An offer is not: an agent may have accepted it, which is heard first."""
    sent = direct()
    sent.sent(Due.SEND, 0.0, connection=1)
    sent.resume(1)
    assert (sent.tries, sent.next_s) == (1, RESEND_FIRST_S)
    sent.resume(2)
    assert (sent.tries, sent.next_s) == (0, 0.0)
    offer = pooled()
    offer.sent(Due.OFFER, 0.0, connection=1)
    offer.resume(2)
    assert (offer.tries, offer.next_s) == (1, RESEND_FIRST_S)


def test_what_nobody_heard_is_tried_again():
    """In a pool at once; an agent may be on its way back, so it is tried less and less often."""
    offer = pooled(tries=3, next_s=20.0)
    offer.unheard(1.0)
    assert (offer.tries, offer.next_s) == (0, 1.0)
    sent = direct()
    for tries, wait_s in ((0, UNHEARD_FIRST_S), (1, 1.0), (2, 2.0)):
        sent.tries = tries
        sent.unheard(10.0)
        assert (sent.tries, sent.next_s) == (tries, 10.0 + wait_s)


def test_a_cancel_of_an_offer_ends_it_after_a_moment():
    """At once if it never went out; not at all once an agent has it, whose word it is."""
    assert pooled(canceled_s=10.0).end(10.0).code is Code.CANCELED
    out = pooled(canceled_s=10.0, connection=1)
    assert out.end(10.0 + CANCEL_GRACE_S - 0.1) is None
    assert out.end(10.0 + CANCEL_GRACE_S).code is Code.CANCELED
    assert accepted(pooled(canceled_s=10.0)).end(ENDS_S - 1) is None
    assert direct(canceled_s=10.0).end(ENDS_S - 1) is None


def test_it_is_given_up_when_its_life_is_over_and_nobody_has_it():
    assert direct().end(ENDS_S + LAST_WORD_S - 0.1) is None
    assert direct().end(ENDS_S + LAST_WORD_S).code is Code.EXPIRED
    assert direct(denied=True).end(0.0).code is Code.EXPIRED
    assert direct(accepted=True).end(ENDS_S + LAST_WORD_S) is None
    assert pooled(refusal=failure(Code.NO_FIT)).end(ENDS_S + LAST_WORD_S).code is Code.NO_FIT


@pytest.mark.parametrize(
    ("now_s", "denied"), [(ENDS_S - 0.1, False), (ENDS_S, True)], ids=["may come yet", "its life is over"]
)
def test_an_agent_that_has_no_such_job_is_sent_it_again_while_it_lives(now_s, denied):
    place = direct(accepted=True, tries=2)
    assert place.refused("a", failure(Code.UNKNOWN_JOB, retryable=False), now_s) is RefusalMeaning.NOTHING
    assert (place.denied, place.accepted, place.tries, place.next_s) == (denied, False, 0, now_s)
    place = accepted(pooled())
    assert place.refused("a", failure(Code.UNKNOWN_JOB, retryable=False), now_s) is RefusalMeaning.NOTHING
    assert (place.denied, place.agent) == (False, None)


@pytest.mark.parametrize(("retry_after_s", "wait_s"), [(60.0, 60.0), (None, ASK_S)])
def test_a_question_that_finds_a_full_disk_is_asked_again(retry_after_s, wait_s):
    """The agent has the job. One that was never accepted is refused by it."""
    full = failure(Code.STORAGE_FULL, retry_after_s=retry_after_s)
    place = direct(accepted=True)
    assert place.refused("a", full, 10.0) is RefusalMeaning.NOTHING
    assert (place.accepted, place.next_s) == (True, 10.0 + wait_s)
    assert direct().refused("a", full, 10.0) is RefusalMeaning.OVER


def test_a_refusal_of_another_agent_than_the_followed_one_does_not_concern_us():
    place = accepted(pooled())
    place.holders.add("b")
    assert place.refused("b", failure(Code.SHUTTING_DOWN), 10.0) is RefusalMeaning.NOTHING
    assert (place.agent, place.holders) == ("a", {"a"})


def test_a_refusal_sends_a_job_of_a_pool_elsewhere():
    """At once if it was accepted; else when it was due anyway, and its tries are not forgotten."""
    handed_back = accepted(pooled())
    assert handed_back.refused("a", failure(Code.SHUTTING_DOWN), 10.0) is RefusalMeaning.ELSEWHERE
    assert (handed_back.next_s, handed_back.agent, handed_back.refusal.code) == (10.0, None, Code.SHUTTING_DOWN)
    offered = pooled(tries=2, next_s=20.0)
    assert offered.refused("a", failure(Code.NO_FIT), 10.0) is RefusalMeaning.ELSEWHERE
    assert (offered.next_s, offered.tries, offered.refusal.code) == (20.0, 2, Code.NO_FIT)
    full = pooled(tries=2, next_s=20.0)
    assert full.refused("a", failure(Code.QUEUE_FULL), 10.0) is RefusalMeaning.NO_ROOM
    assert (full.next_s, full.tries, full.refusal) == (10.0, 0, None)
    assert pooled().refused("a", failure(Code.BAD_REQUEST, retryable=False), 0.0) is RefusalMeaning.OVER
    assert direct().refused("a", failure(Code.QUEUE_FULL), 0.0) is RefusalMeaning.OVER


def test_of_several_agents_the_first_success_counts():
    place = accepted(pooled())
    assert place.voice("b", ended=False) is Voice.LATE
    assert place.dismissed == {"b"}
    place.holders.add("b")
    assert not place.result("b", succeeded=False)
    assert place.holders == {"a"}
    assert place.result("b", succeeded=True)
    assert place.agent == "b"


def test_an_offered_job_takes_any_end_but_that_of_who_was_told_to_drop_it():
    place = pooled(dismissed={"b"})
    assert not place.result("b", succeeded=False)
    assert place.result("c", succeeded=False)
    assert place.agent == "c"
    assert direct().result("a", succeeded=False)


def test_an_end_heard_of_who_was_dismissed_follows_nobody():
    place = pooled(dismissed={"b"})
    assert place.voice("b", ended=True) is Voice.SPENT
    assert place.agent is None
    assert place.voice("b", ended=False) is Voice.FIRST
    assert place.voice("b", ended=False) is Voice.FOLLOWED
    assert place.holders == {"b"}

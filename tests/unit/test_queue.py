"""The durable queue: who runs next, what becomes of a job in every state, and what survives."""

import contextlib
import sqlite3
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fakes import ANSWER, ENGINE_DIED, Time, accept, claim, counts, find, request
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.jobs import database
from edge_agent.jobs import queue as queue_module
from edge_agent.jobs.database import (
    SCHEMA_VERSION,
    SQL,
    DamagedError,
    DiskFullError,
    LockedError,
    SchemaTooNewError,
    StorageError,
    UnreadableError,
    translated,
)
from edge_agent.jobs.job import TERMINAL, TRANSITIONS, Failure, JobState, Outcome, PromptTokensDetails, Usage
from edge_agent.jobs.overview import Demand
from edge_agent.jobs.queue import CANCELS_MAX, RETRY_FIRST_S, RETRY_MOST_S, ROWS_AT_ONCE, Backlog, Envelope, Queue
from edge_agent.jobs.results import RESULT_KEPT_S
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.topics import Topics


@pytest.fixture
def machine():
    return Time()


@pytest.fixture
def queue(tmp_path, machine):
    with machine.queue(tmp_path, age_step_s=60.0) as opened:
        yield opened


def end(queue, job, state=JobState.SUCCEEDED, outcome=ANSWER):
    with queue.transaction():
        return queue.end(job, state, outcome)


def engine_lost(queue, *jobs):
    with queue.transaction() as changes:
        queue.engine_lost(jobs, ENGINE_DIED)
    return changes


def cancel(queue, job_id="job-1", client="line-3"):
    with queue.transaction() as changes:
        queue.cancel(client, job_id)
    return changes


def fail_after(queue, act):
    """Do something in a transaction that then fails."""
    with pytest.raises(ZeroDivisionError), queue.transaction():
        raise ZeroDivisionError(act())


def fail(queue, job, error=ENGINE_DIED):
    with queue.transaction():
        return queue.fail(job, Outcome(error=error))


def wait_for_retry(queue, machine, seconds=RETRY_FIRST_S):
    """Let time pass, and the jobs go on whose wait is over; return how many those were."""
    machine.pass_s(seconds)
    with queue.transaction():
        return queue.release()[0]


def error_of(job):
    return job.outcome.error


def owed(queue, limit=10):
    with queue.transaction():
        return queue.results.owed(limit)


def claimed_names(queue):
    names = []
    while job := claim(queue):
        names.append(job.job_id)
    return names


# Who runs next


def test_the_first_come_is_the_first_claimed(queue):
    for name in ("a", "b", "c"):
        accept(queue, name)
    assert claimed_names(queue) == ["a", "b", "c"]


def test_priority_goes_first_and_waiting_makes_up_for_it(queue, machine):
    """One step of priority weighs as much as 60 s of waiting, and no more."""
    accept(queue, "old", priority=5)
    machine.pass_s(61)
    accept(queue, "higher", priority=6)
    accept(queue, "highest", priority=7)
    assert claimed_names(queue) == ["highest", "old", "higher"]


def test_a_claim_takes_only_its_own_model(queue):
    accept(queue, "a", model="other")
    assert claim(queue) is None
    assert claim(queue, model="other").job_id == "a"


def test_a_claim_counts_attempt_and_strike(queue, machine):
    accept(queue)
    machine.pass_s(3)
    job = claim(queue)
    assert (job.state, job.state_seq, job.attempt, job.strikes) == (JobState.RUNNING, 2, 1, 1)
    assert job.claimed_s == job.accepted_s + 3


def test_a_job_whose_time_has_passed_is_not_claimed(queue, machine):
    """Also before housekeeping has ended it."""
    accept(queue, "late", ttl_s=10)
    accept(queue, "fresh", ttl_s=100)
    machine.pass_s(10)
    assert claimed_names(queue) == ["fresh"]


def test_one_that_died_beside_another_already_decided_was_not_alone(queue):
    """The other may have been at fault: the strike is given back."""
    accept(queue, "innocent", max_attempts=1)
    job = claim(queue)
    with queue.transaction() as changes:
        queue.engine_lost([job], ENGINE_DIED, others=1)
    assert (changes[-1].state, changes[-1].strikes, changes[-1].alone) == (JobState.QUEUED, 0, True)


def test_waiting_jobs_of_a_model_no_longer_served_end_with_the_reason(queue):
    accept(queue, "orphan", model="gone")
    accept(queue, "kept")
    accept(queue, "pooled", model="gone", pool="hall")
    with queue.transaction() as changes:
        handed_back = queue.disown(["phi"], Failure.because(Code.UNKNOWN_MODEL, "not served any more"))
    (orphan,) = changes
    assert (orphan.job_id, orphan.state) == ("orphan", JobState.FAILED)
    assert orphan.error.code is Code.UNKNOWN_MODEL
    assert [job.job_id for job in handed_back] == ["pooled"]
    assert find(queue, "pooled") is None
    assert queue.backlog.jobs == 1
    assert claimed_names(queue) == ["kept"]


def test_who_hoped_for_a_model_that_cannot_be_loaded_hears_so_and_older_jobs_wait_on(queue, machine):
    """Those of pools go to another agent; another model's are none of it."""
    accept(queue, "older")
    machine.pass_s(1)
    since_s = queue.clock.now_s()
    accept(queue, "hopeful")
    accept(queue, "incomplete", here={"a" * 64: False})
    accept(queue, "pooled", pool="hall")
    accept(queue, "another", model="other")
    failure = Failure.because(Code.MODEL_ERROR, "model: cannot be loaded")
    with queue.transaction() as changes:
        handed_back = queue.disappoint("phi", failure, since_s=since_s)
    assert [(job.job_id, job.state) for job in changes] == [
        ("hopeful", JobState.FAILED),
        ("incomplete", JobState.FAILED),
    ]
    assert [job.job_id for job in handed_back] == ["pooled"]
    assert claimed_names(queue) == ["older"]
    assert find(queue, "another").state is JobState.QUEUED


def test_places_in_the_queue(queue):
    """The first is 1; beyond the limit there is none; other models' jobs do not count."""
    jobs = [accept(queue, name) for name in ("a", "b", "c")]
    accept(queue, "x", model="other", priority=9)
    with queue.transaction():
        assert [queue.overview.position(job, 2) for job in jobs] == [1, 2, None]
        assert [job.job_id for job in queue.overview.first("phi", 2)] == ["a", "b"]


# When an engine dies


def test_of_several_nobody_keeps_the_strike_and_each_runs_alone(queue):
    for name in ("a", "b"):
        accept(queue, name, max_attempts=1)
    jobs = [claim(queue), claim(queue)]
    changes = engine_lost(queue, *jobs)
    assert [(job.state, job.strikes, job.attempt, job.alone) for job in changes] == [(JobState.QUEUED, 0, 1, True)] * 2


def test_one_alone_keeps_its_strike_until_the_last_fails_it(queue, machine):
    """Then it has a result that says why, and when it is over. Before that it waits a while, and others pass."""
    accept(queue, max_attempts=2)
    accept(queue, "other")
    (again,) = engine_lost(queue, claim(queue))
    assert (again.state, again.strikes, again.alone) == (JobState.QUEUED, 1, True)
    assert claimed_names(queue) == ["other"]
    wait_for_retry(queue, machine)
    (failed,) = engine_lost(queue, claim(queue))
    assert (failed.state, failed.strikes, failed.attempt) == (JobState.FAILED, 2, 2)
    assert error_of(failed).code is Code.ENGINE_DIED
    assert [each.job.job_id for each in owed(queue)] == ["job-1"]


def test_who_was_beside_others_is_begun_no_more_often_than_it_may(queue, machine):
    """Found out alone, it is taken to have ended the first engine too; one that was not, has its strike back."""
    for name in ("killer", "innocent"):
        accept(queue, name, max_attempts=3)
    jobs = [claim(queue), claim(queue)]
    with queue.transaction():
        queue.engine_lost(jobs, ENGINE_DIED)
    for attempt in (2, 3):
        machine.pass_s(60)
        with queue.transaction():
            queue.release()
        job = claim(queue, idle=True)
        assert (job.job_id, job.attempt) == ("killer", attempt)
        with queue.transaction() as changes:
            queue.engine_lost([job], ENGINE_DIED)
    assert (changes[-1].state, changes[-1].attempt) == (JobState.FAILED, 3)
    innocent = claim(queue, idle=True)
    assert (innocent.job_id, innocent.strikes) == ("innocent", 1)


def test_the_bereaved_keep_their_place(queue, machine):
    accept(queue, "first")
    job = claim(queue)
    machine.pass_s(1)
    accept(queue, "second")
    engine_lost(queue, job)
    wait_for_retry(queue, machine)
    assert claim(queue).job_id == "first"


def test_bereaving_what_ended_or_runs_again_changes_nothing(queue):
    accept(queue, "ended")
    accept(queue, "again")
    ended, stale = claim(queue), claim(queue)
    end(queue, ended)
    with queue.transaction():
        queue.requeue(stale, give_back=True)
    claim(queue)
    assert engine_lost(queue, ended, stale) == []


@pytest.mark.parametrize("others", [0, 1])
def test_a_job_to_be_canceled_ends_so_when_its_engine_dies(queue, others):
    """Its strikes do not matter, nor whether it was alone."""
    for number in range(1 + others):
        accept(queue, f"job-{number + 1}", max_attempts=1)
    jobs = [claim(queue) for _ in range(1 + others)]
    cancel(queue)
    assert engine_lost(queue, *jobs)[0].state is JobState.CANCELED
    assert error_of(find(queue)).code is Code.CANCELED


def test_recovery_treats_each_models_running_jobs_as_if_their_engine_had_died(queue):
    """Several of one model each run alone; one of another keeps its strike."""
    for name, model in (("a", "phi"), ("b", "phi"), ("c", "other")):
        accept(queue, name, model=model)
        claim(queue, model=model)
    accept(queue, "waiting")
    with queue.transaction() as changes:
        queue.recover()
    assert {job.job_id: (job.state, job.strikes, job.alone) for job in changes} == {
        "a": (JobState.QUEUED, 0, True),
        "b": (JobState.QUEUED, 0, True),
        "c": (JobState.QUEUED, 1, True),
    }


@pytest.mark.parametrize("runs", [True, False])
def test_after_a_restart_a_guide_is_tried_again_before_its_job_is_claimed(queue, runs):
    """What came of its trial is forgotten: it would be claimed, put back and claimed again, three attempts of two."""
    words = {"a": None, "b": {"type": "regex", "regex": "yes"}, "c": {"type": "json_object"}, "d": {"type": "text"}}
    for name, shape in words.items():
        prompt = 'Say "response_format" to me.'
        with queue.transaction():
            asked = request(name, prompt=prompt, **({} if shape is None else {"response_format": shape}))
            queue.accept(asked, Envelope("line-3", 600.0), model="phi", proven=True)
        if runs:
            claim(queue)
    with queue.transaction():
        queue.recover()
    assert [name for name in words if find(queue, name).unprepared == (words[name] is not None)] == list(words)
    with queue.transaction():
        while job := queue.images.next_unprepared("phi", ahead=1):
            queue.images.prepared(job, None)
    for _ in words:
        job = claim(queue)
        assert job.attempt == 1 + runs
        end(queue, job)


# Cancel


def test_canceling_a_waiting_job_ends_it_with_a_result(queue):
    accept(queue)
    (job,) = cancel(queue)
    assert (job.state, error_of(job).code) == (JobState.CANCELED, Code.CANCELED)
    assert len(owed(queue)) == 1
    assert queue.backlog == Backlog(0, 0)


def test_canceling_a_running_job_notes_the_wish(queue):
    """The dispatcher ends it; until then it runs."""
    accept(queue)
    claim(queue)
    assert cancel(queue) == []
    job = find(queue)
    assert (job.state, job.cancel_requested) == (JobState.RUNNING, True)


def test_a_running_job_to_be_canceled_does_not_go_back_to_the_queue(queue):
    """Handed back at a clean exit, it would run again after the restart."""
    accept(queue)
    job = claim(queue)
    cancel(queue)
    with queue.transaction() as changes:
        queue.requeue(job, give_back=True)
    assert [each.state for each in changes] == [JobState.CANCELED]
    assert queue.backlog == Backlog(0, 0)


def test_canceling_an_ended_job_owes_its_result_again(queue):
    accept(queue)
    end(queue, claim(queue))
    with queue.transaction():
        queue.results.delivered(queue.results.owed(1)[0])
    assert cancel(queue) == []
    assert [each.job.state for each in owed(queue)] == [JobState.SUCCEEDED]


def test_a_cancel_before_its_job_wins(queue):
    """The job is stored as canceled, with its result; the cancel is used up."""
    cancel(queue)
    with queue.transaction() as changes:
        queue.accept(request(), Envelope("line-3", 60.0), model="phi")
    (job,) = changes
    assert (job.state, job.state_seq, error_of(job).code) == (JobState.CANCELED, 1, Code.CANCELED)
    assert queue.backlog == Backlog(0, 0)
    assert len(owed(queue)) == 1
    assert claim(queue) is None
    assert accept(queue, "job-2").state is JobState.QUEUED


def test_a_cancel_is_its_requesters_own(queue):
    cancel(queue, client="somebody")
    assert accept(queue).state is JobState.QUEUED


# Ids


def test_the_same_request_again_is_the_same_job(queue):
    first = accept(queue)
    with queue.transaction() as changes:
        assert queue.repeated(request(), "line-3") == first
        assert queue.repeated(request(), "somebody") is None
    assert changes == []


def test_another_request_under_the_id_is_refused(queue):
    """Whatever state the first is in, and when its text is gone."""
    accept(queue)
    end(queue, claim(queue))
    with queue.transaction():
        due = queue.results.owed(1)[0]
        queue.results.delivered(due)
        queue.results.erase(due.job)
    with queue.transaction(), pytest.raises(EdgeAgentError) as caught:
        queue.repeated(request(max_tokens=7), "line-3")
    assert caught.value.code is Code.DUPLICATE_ID
    with queue.transaction():
        assert queue.repeated(request(), "line-3").state is JobState.SUCCEEDED


# Time to live


def test_waiting_jobs_expire_with_a_result_and_running_ones_do_not(queue, machine):
    accept(queue, "runs", ttl_s=5)
    claim(queue)
    accept(queue, "waits", ttl_s=5)
    later = accept(queue, "later", ttl_s=50)
    machine.pass_s(5)
    with queue.transaction() as changes:
        assert queue.expire() == later.expires_s
    assert [(job.job_id, job.state, error_of(job).code) for job in changes] == [
        ("waits", JobState.EXPIRED, Code.EXPIRED)
    ]


@pytest.mark.parametrize(("asked_s", "message_s", "lived_s"), [(600, 60, 60), (60, 600, 60)])
def test_a_job_lives_for_the_shorter_of_what_it_and_its_message_say(queue, asked_s, message_s, lived_s):
    with queue.transaction():
        job = queue.accept(request(ttl_s=asked_s), Envelope("line-3", message_s), model="phi")
    assert job.expires_s == job.accepted_s + lived_s


def test_a_mass_of_expired_jobs_ends_in_bounded_steps(queue, machine):
    """What is left over is due at once."""
    for number in range(ROWS_AT_ONCE + 1):
        accept(queue, f"job-{number}", ttl_s=1)
    machine.pass_s(2)
    with queue.transaction() as changes:
        assert queue.expire() <= queue.clock.now_s()
    assert len(changes) == ROWS_AT_ONCE
    with queue.transaction() as changes:
        assert queue.expire() is None
    assert len(changes) == 1


# States


def prepare(queue, state):
    """Return a job in a state."""
    accept(queue, here={"a" * 64: False} if state is JobState.WAITING else None)
    if state not in {JobState.WAITING, JobState.QUEUED}:
        job = claim(queue)
        if state is not JobState.RUNNING:
            end(queue, job, state)
    return find(queue)


@pytest.mark.parametrize("target", JobState)
@pytest.mark.parametrize("source", JobState)
def test_statements_allow_exactly_the_transitions_of_the_table(queue, source, target):
    """And a change of state is one step of `state_seq`, a refused one is none."""
    job = prepare(queue, source)
    with queue.transaction() as changes:
        if target is JobState.RUNNING:
            queue.claim("phi", idle=True)
        elif target is JobState.QUEUED and source is JobState.WAITING:
            queue.images.came("line-3", "a" * 64)
        elif target is JobState.QUEUED:
            queue.requeue(job, give_back=False)
        else:
            queue.end(job, target, Outcome())
    allowed = target in TRANSITIONS[source]
    assert [each.state for each in changes] == ([target] if allowed else [])
    assert find(queue).state_seq == job.state_seq + allowed


def test_the_first_outcome_is_the_outcome(queue, machine):
    """Later events of the same attempt, and events of an earlier attempt, change nothing."""
    accept(queue)
    first = claim(queue)
    engine_lost(queue, first)
    wait_for_retry(queue, machine)
    second = claim(queue)
    assert end(queue, first) is None
    assert end(queue, second, JobState.FAILED, Outcome(error=ENGINE_DIED)).state is JobState.FAILED
    assert end(queue, second) is None
    assert find(queue).state is JobState.FAILED


# Trying again


def test_what_may_go_well_later_is_tried_again_later_and_later(queue, machine):
    """1 s, 2 s, 4 s …, at most 60 s, while it has strikes; in its old place; then it fails."""
    accept(queue, max_attempts=9, ttl_s=10_000)
    waits = []
    for _ in range(8):
        job = fail(queue, claim(queue))
        assert (job.state, claim(queue)) == (JobState.QUEUED, None)
        waits.append(job.not_before_s - queue.clock.now_s())
        with queue.transaction():
            assert queue.release() == (0, job.not_before_s)
        assert wait_for_retry(queue, machine, waits[-1]) == 1
    assert waits == [1, 2, 4, 8, 16, 32, RETRY_MOST_S, RETRY_MOST_S]
    failed = fail(queue, claim(queue))
    assert (failed.state, failed.strikes, error_of(failed).code) == (JobState.FAILED, 9, Code.ENGINE_DIED)


def test_what_will_never_go_well_fails_at_once(queue):
    accept(queue)
    error = Failure.because(Code.PROMPT_TOO_LONG, "messages: 5000 tokens, the model takes 4096")
    assert fail(queue, claim(queue), error).state is JobState.FAILED


def test_a_retry_beyond_its_time_to_live_is_none(queue):
    """The requester hears at once why it failed, instead of that it expired."""
    accept(queue, ttl_s=1.0)
    failed = fail(queue, claim(queue))
    assert (failed.state, error_of(failed).code) == (JobState.FAILED, Code.ENGINE_DIED)


def test_a_job_that_waits_to_be_tried_again_can_be_canceled_and_expires(queue, machine):
    for name, ttl_s in (("canceled", 600.0), ("late", 1.5)):
        accept(queue, name, ttl_s=ttl_s)
        fail(queue, claim(queue))
    assert cancel(queue, "canceled")[0].state is JobState.CANCELED
    machine.pass_s(1.5)
    with queue.transaction() as changes:
        queue.expire()
        assert queue.release() == (0, None)
    assert [job.job_id for job in changes] == ["late"]


def test_the_wait_survives_a_restart(tmp_path, machine, queue):
    accept(queue)
    fail(queue, claim(queue))
    queue.close()
    with machine.queue(tmp_path) as queue:
        assert claim(queue) is None
        assert wait_for_retry(queue, machine) == 1
        assert claim(queue).attempt == 2


# Pools


def test_a_job_of_a_pool_is_handed_back_without_a_trace(queue):
    """So that it can come here again; one that has ended, or was sent to this agent, is not."""
    for name, pool in (("ended", "hall"), ("runs", "hall"), ("direct", None), ("waits", "hall")):
        accept(queue, name, pool=pool)
    ended, runs = claim(queue), claim(queue)
    end(queue, ended)
    with queue.transaction() as changes:
        (waits,) = queue.pooled()
        direct = queue.recall("line-3", "direct")
        assert [queue.hand_back(job) is not None for job in (ended, runs, direct, waits)] == [False, True, False, True]
    assert changes == []
    assert (find(queue, "runs"), find(queue, "waits"), queue.backlog.jobs) == (None, None, 1)
    assert accept(queue, "waits", pool="hall").state is JobState.QUEUED


# Results


def test_a_result_is_owed_until_it_is_delivered(queue):
    accept(queue)
    end(queue, claim(queue))
    (due,) = owed(queue)
    assert due.tries == 0
    with queue.transaction():
        queue.results.delivered(due)
    assert owed(queue) == []


def test_a_refused_result_waits_behind_the_others(queue, machine):
    for name in ("refused", "other"):
        accept(queue, name)
        end(queue, claim(queue))
        machine.pass_s(1)
    refused = owed(queue)[0]
    with queue.transaction():
        queue.results.deferred(refused, 30.0)
    assert [each.job.job_id for each in owed(queue)] == ["other"]
    with queue.transaction():
        assert queue.results.next_owed_s() == pytest.approx(queue.clock.now_s() + 30.0)
    machine.pass_s(30)
    assert [(each.job.job_id, each.tries) for each in owed(queue)] == [("other", 0), ("refused", 1)]


def test_a_result_asked_for_again_meanwhile_stays_owed(queue, machine):
    """The answer to the first publication does not end the second, nor take its text."""
    accept(queue)
    end(queue, claim(queue))
    (due,) = owed(queue)
    machine.pass_s(1)
    find(queue)
    with queue.transaction():
        queue.results.delivered(due)
        queue.results.erase(due.job)
        queue.results.deferred(due, 60.0)
    (again,) = owed(queue)
    assert again.job.outcome.text == ANSWER.text


def test_results_that_are_given_up_keep_no_other_back(queue, machine):
    """However many there are before it: nothing else would have it asked for again."""
    for number in range(5):
        accept(queue, f"old-{number}")
        end(queue, claim(queue))
    with queue.transaction():
        for owed in queue.results.owed(5):
            queue.results.deferred(owed, 30.0)
    machine.pass_s(RESULT_KEPT_S + 1)
    accept(queue, "new")
    end(queue, claim(queue))
    with queue.transaction():
        assert [owed.job.job_id for owed in queue.results.owed(2)] == ["new"]


def test_a_result_refused_for_a_day_is_given_up(queue, machine):
    """One that was never tried is not: the broker was away."""
    accept(queue, "refused")
    end(queue, claim(queue))
    accept(queue, "untried")
    end(queue, claim(queue))
    with queue.transaction():
        queue.results.deferred(queue.results.owed(1)[0], 30.0)
    machine.pass_s(RESULT_KEPT_S + 1)
    assert [each.job.job_id for each in owed(queue)] == ["untried"]
    assert [each.job.job_id for each in owed(queue)] == ["untried"]


def test_an_erased_job_keeps_how_it_ended_and_says_that_text_is_missing(queue, tmp_path):
    """Neither prompt, answer nor metadata is left, in the row or in the file."""
    accept(queue, prompt="a secret recipe", metadata={"line": "hidden"})
    end(queue, claim(queue), outcome=Outcome(text="a secret answer", finish_reason="stop"))
    with queue.transaction():
        due = queue.results.owed(1)[0]
        queue.results.delivered(due)
        queue.results.erase(due.job)
    job = find(queue)
    outcome = job.outcome
    assert (job.request, job.metadata) == (None, {})
    assert (outcome.text, outcome.text_truncated, outcome.finish_reason) == ("", True, "stop")
    queue.close()
    assert b"secret" not in (tmp_path / "queue.db").read_bytes()


# Housekeeping


def test_finished_jobs_are_forgotten_by_age_but_never_an_owed_result(queue, machine):
    for name in ("delivered", "owed"):
        accept(queue, name)
        end(queue, claim(queue))
    accept(queue, "waiting", ttl_s=86_400)
    with queue.transaction():
        queue.results.delivered(queue.results.owed(1)[0])
    machine.pass_s(100)
    with queue.transaction():
        queue.prune(keep_s=99, keep_jobs=1000)
    assert find(queue, "delivered") is None
    assert find(queue, "owed").state is JobState.SUCCEEDED
    assert find(queue, "waiting").state is JobState.QUEUED


def test_finished_jobs_are_forgotten_by_number_oldest_first(queue, machine):
    for name in ("a", "b", "c"):
        accept(queue, name)
        end(queue, claim(queue))
        with queue.transaction():
            queue.results.delivered(queue.results.owed(1)[0])
        machine.pass_s(1)
    with queue.transaction():
        queue.prune(keep_s=1000, keep_jobs=1)
    assert [find(queue, name) is None for name in ("a", "b", "c")] == [True, True, False]


def test_old_and_many_cancels_are_forgotten(queue, machine, monkeypatch):
    monkeypatch.setattr(queue_module, "CANCELS_MAX", 2)
    assert CANCELS_MAX > 2
    for name in ("a", "b", "c", "d"):
        cancel(queue, name)
        machine.pass_s(10)
    with queue.transaction():
        queue.prune(keep_s=35, keep_jobs=10)
    states = [accept(queue, name).state for name in ("a", "b", "c", "d")]
    assert states == [JobState.QUEUED, JobState.QUEUED, JobState.CANCELED, JobState.CANCELED]


# Transactions


def test_of_too_many_cancels_those_of_who_sent_most_are_forgotten(queue, machine, monkeypatch):
    monkeypatch.setattr(queue_module, "CANCELS_MAX", 5)
    with queue.transaction():
        queue.cancel("bob", "bobs")
        for number in range(20):
            machine.pass_s(1)
            queue.cancel("mallory", f"m-{number}")
        queue.prune(keep_s=1000, keep_jobs=10)
    assert accept(queue, "bobs", client="bob").state is JobState.CANCELED
    assert accept(queue, "m-19", client="mallory").state is JobState.CANCELED
    assert accept(queue, "m-0", client="mallory").state is JobState.QUEUED


def test_a_failed_transaction_changes_nothing_and_counts_nothing(queue):
    accept(queue)
    before = queue.backlog

    def act():
        queue.accept(request("job-2"), Envelope("line-3", 60.0), model="phi")
        queue.end(queue.claim("phi", idle=True), JobState.SUCCEEDED, ANSWER)

    fail_after(queue, act)
    assert queue.backlog == before
    assert find(queue).state is JobState.QUEUED
    assert find(queue, "job-2") is None


def test_a_full_disk_is_a_storage_error_and_nothing_of_it_happened(queue):
    pages = queue._db.connection.execute("PRAGMA page_count").fetchone()[0]
    queue._db.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError), queue.transaction():
        queue.accept(request(prompt="x" * 100_000), Envelope("line-3", 60.0), model="phi")
    assert queue.backlog == Backlog(0, 0)
    assert find(queue) is None
    queue._db.connection.execute("PRAGMA max_page_count = 1000000")
    assert accept(queue).state is JobState.QUEUED


def test_the_backlog_counts_bytes_not_characters(queue):
    accept(queue, prompt="ü" * 1000)
    assert queue.backlog.request_bytes > 2000


# Files


def test_everything_survives_a_restart(tmp_path, machine):
    """Jobs, results owed, remembered cancels, counters and the clock."""
    with machine.queue(tmp_path) as queue:
        accept(queue, "ended")
        end(queue, claim(queue))
        accept(queue, "waiting")
        cancel(queue, "canceled")
        with queue.transaction():
            queue.remember_clock()
        backlog, now_s = queue.backlog, queue.clock.now_s()
    machine.reboot(away_s=30)
    with machine.queue(tmp_path) as queue:
        assert queue.backlog == backlog
        assert queue.clock.now_s() == pytest.approx(now_s + 30)
        assert [each.job.job_id for each in owed(queue)] == ["ended"]
        assert claim(queue).job_id == "waiting"
        assert accept(queue, "canceled").state is JobState.CANCELED


def test_every_statement_has_a_name_of_its_own():
    assert len(SQL) == database.SCRIPTS.joinpath("queries.sql").read_text().count("-- name: ")


def test_what_is_committed_survives_a_process_that_never_closes(tmp_path, machine):
    """A second connection sees the job while the first still holds the file; and every commit waits for the disk."""
    with Queue(tmp_path / "queue.db", clock=machine.clock) as queue:
        accept(queue)
        with machine.queue(tmp_path) as other:
            assert find(other).state is JobState.QUEUED
        assert queue._db.connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert queue._db.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def version(file):
    with sqlite3.connect(file) as db:
        found = db.execute("PRAGMA user_version").fetchone()[0]
    db.close()
    return found


def test_a_newer_schema_is_refused_with_what_to_do(tmp_path, machine):
    with machine.queue(tmp_path) as queue:
        queue._db.connection.execute("PRAGMA user_version = 99")
    with pytest.raises(
        SchemaTooNewError, match=rf"version 99, this program knows {SCHEMA_VERSION}; install the newer program"
    ):
        machine.queue(tmp_path)


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A program two versions ahead, its migrations still to be written by the test."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    folder.joinpath("schema.sql").write_text(database.SCRIPTS.joinpath("schema.sql").read_text())
    monkeypatch.setattr(database, "SCRIPTS", folder)
    monkeypatch.setattr(database, "SCHEMA_VERSION", SCHEMA_VERSION + 2)
    return folder


@pytest.mark.parametrize("column", ["request", "outcome", "images", "answer"])
@pytest.mark.parametrize("written", ["{}", '{"text": "4", "went": 1}', "[]", '[{"path": 1}]', "null", '"text"'])
@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED])
def test_what_another_version_wrote_into_a_row_ends_no_agent(queue, column, written, state):
    """A job that waits, runs or has ended is found, listed, claimed, ended and told, whatever its column looks like."""
    job = prepare(queue, state)
    queue._db.connection.execute(f"UPDATE jobs SET {column} = ?", (written,))
    with queue.transaction():
        queue.recover()
    if state not in TERMINAL:
        job = claim(queue)
        end(queue, job)
    speech = Speech(Topics("edge/v1", "edge-01"))
    for seen in (find(queue), *queue.overview.newest(states=(), client=None, limit=9), owed(queue)[0].job):
        assert (seen.job_id, seen.state) == (job.job_id, JobState.SUCCEEDED)
        assert speech.status(seen).payload
        assert speech.event(seen).payload
        assert speech.result(seen, packet_bytes_max=None).payload


def test_a_result_with_a_field_that_another_version_knew_keeps_the_rest(queue):
    prepare(queue, JobState.SUCCEEDED)
    queue._db.connection.execute("UPDATE jobs SET outcome = json_set(outcome, '$.mood', 'good')")
    assert find(queue).outcome == ANSWER


def test_an_older_schema_is_migrated_version_by_version(tmp_path, machine, queue, scripts):
    """Every script runs once, in order, and the jobs stay."""
    accept(queue)
    queue.close()
    (scripts / f"migrate_{SCHEMA_VERSION + 1}.sql").write_text(
        "ALTER TABLE jobs ADD COLUMN tier TEXT; UPDATE jobs SET tier = 'two'; -- end"
    )
    (scripts / f"migrate_{SCHEMA_VERSION + 2}.sql").write_text("UPDATE jobs SET tier = tier || ' and three'")
    for _ in range(2):
        with machine.queue(tmp_path) as migrated:
            assert find(migrated).state is JobState.QUEUED
            assert migrated._db.connection.execute("SELECT tier FROM jobs").fetchall() == [("two and three",)]
    assert version(tmp_path / "queue.db") == SCHEMA_VERSION + 2


def test_the_first_schema_becomes_the_present_one(tmp_path, machine):
    """A file of version 1, as it was shipped, migrated: it has the tables, columns and indexes of a new one."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    with sqlite3.connect(old / "queue.db") as db:
        db.executescript(f"{Path(__file__).with_name('schema_1.sql').read_text()}; PRAGMA user_version = 1")
    db.close()
    shapes = []
    for folder in (old, new):
        with machine.queue(folder) as queue:
            names = queue._db.connection.execute(
                "SELECT type, name, tbl_name FROM sqlite_schema ORDER BY type, name"
            ).fetchall()
            columns = sorted(
                queue._db.connection.execute("PRAGMA table_xinfo(jobs)").fetchall(), key=lambda column: column[1]
            )
            shapes.append((names, [column[1:] for column in columns]))
    assert shapes[0] == shapes[1]


def test_a_migration_that_fails_changes_nothing(tmp_path, machine, queue, scripts):
    accept(queue)
    queue.close()
    (scripts / f"migrate_{SCHEMA_VERSION + 1}.sql").write_text(
        "ALTER TABLE jobs ADD COLUMN tier TEXT; UPDATE jobs SET absent = 1;"
    )
    with pytest.raises(sqlite3.OperationalError, match="no such column"):
        machine.queue(tmp_path)
    assert version(tmp_path / "queue.db") == SCHEMA_VERSION
    with sqlite3.connect(tmp_path / "queue.db") as db:
        assert "tier" not in [column[1] for column in db.execute("PRAGMA table_info(jobs)")]
    db.close()


def test_jobs_of_the_first_schema_are_counted_as_far_as_they_are_remembered(tmp_path, machine):
    with sqlite3.connect(tmp_path / "queue.db") as db:
        db.executescript(f"{Path(__file__).with_name('schema_1.sql').read_text()}; PRAGMA user_version = 1;")
        columns = "client, job_id, digest, model, state, state_seq, max_attempts, stream, priority, rank, accepted_s"
        db.execute(
            f"INSERT INTO jobs ({columns}, expires_s, timeout_s, request_bytes, metadata, finished_s)"
            " VALUES ('c', 'j', x'', 'phi', 'failed', 3, 3, 1, 5, 0.0, 0.0, 9.0, 9.0, 0, '{}', 1.0)"
        )
    db.close()
    with machine.queue(tmp_path) as migrated:
        assert migrated.overview.totals() == {"accepted": 1, "failed": 1}


def test_totals_count_each_job_once_and_survive(tmp_path, machine, queue):
    """Accepted, canceled before it came, ended twice by two, pruned: the totals stay what happened."""
    with queue.transaction():
        queue.cancel("line-3", "job-0")
    accept(queue, "job-0")
    accept(queue, "job-1")
    job = claim(queue)
    usage = Usage(
        prompt_tokens=5,
        completion_tokens=7,
        total_tokens=12,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=0),
    )
    with queue.transaction():
        queue.end(job, JobState.SUCCEEDED, ANSWER.model_copy(update={"usage": usage}))
        queue.end(job, JobState.CANCELED, ANSWER)
    for owed in queue.results.owed(9):
        queue.results.delivered(owed)
    machine.pass_s(9.0)
    with queue.transaction():
        queue.prune(keep_s=1.0, keep_jobs=0)
    assert counts(queue) == {}
    queue.close()
    with machine.queue(tmp_path) as again:
        assert again.overview.totals() == {"accepted": 2, "canceled": 1, "succeeded": 1, "completion_tokens": 7}


@pytest.mark.parametrize("damage", ["no database", "torn page"])
def test_a_damaged_file_is_told_apart(tmp_path, machine, damage):
    file = tmp_path / "queue.db"
    with machine.queue(tmp_path) as queue:
        for number in range(50):
            accept(queue, f"job-{number}", prompt="x" * 1000)
    if damage == "no database":
        file.write_bytes(b"this is no database, but long enough to be taken for one" * 100)
    else:
        content = bytearray(file.read_bytes())
        content[4096:12288] = b"\xa5" * 8192
        file.write_bytes(content)
    with pytest.raises(DamagedError):
        machine.queue(tmp_path)


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        ((sqlite3.SQLITE_FULL,), DiskFullError),
        ((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY, sqlite3.SQLITE_BUSY_SNAPSHOT), LockedError),
        ((sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL), LockedError),
        ((sqlite3.SQLITE_IOERR, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC), StorageError),
        ((sqlite3.SQLITE_READONLY, sqlite3.SQLITE_READONLY_DBMOVED, sqlite3.SQLITE_CANTOPEN), StorageError),
        ((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CORRUPT_INDEX, sqlite3.SQLITE_NOTADB), DamagedError),
        ((sqlite3.SQLITE_IOERR_CORRUPTFS,), UnreadableError),
        ((sqlite3.SQLITE_IOERR_DATA,), DamagedError),
        ((sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISUSE, 0), sqlite3.OperationalError),
    ],
)
def test_what_passes_is_told_from_damage_and_from_our_own_faults(codes, kind):
    for code in codes:
        fault = sqlite3.OperationalError("as SQLite says")
        fault.sqlite_errorcode = code
        with pytest.raises(kind) as caught, translated():
            raise fault
        assert type(caught.value) is kind, code


def test_a_locked_file_that_must_be_brought_up_to_date_is_waited_for(tmp_path, machine, monkeypatch):
    """What opens it is told that the lock passes, and finds nothing half done."""
    monkeypatch.setattr(database, "BUSY_S", 0.01)
    with contextlib.closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.executescript(Path(__file__).with_name("schema_1.sql").read_text() + "; PRAGMA user_version = 1")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LockedError):
            machine.queue(tmp_path)
        other.execute("COMMIT")
    machine.queue(tmp_path).close()


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path, machine):
    with pytest.raises(StorageError):
        machine.queue(tmp_path / "absent")


def test_a_claim_among_many_waiting_jobs_reads_the_index_and_sorts_nothing(queue):
    """The plan of the hot statements: a search, no scan of the table, no temporary tree."""
    for name in ("first_plain", "first_alone", "claim", "expiring", "owed", "find", "demand"):
        names = ("model", "now", "row", "last", "clients", "limit", "client", "job_id")
        plan = queue._db.connection.execute("EXPLAIN QUERY PLAN " + SQL[name], dict.fromkeys(names, 1)).fetchall()
        steps = " / ".join(step[3] for step in plan)
        assert "SCAN jobs" not in steps, (name, steps)
        assert "TEMP B-TREE" not in steps, (name, steps)


def test_the_demand_for_models_is_the_rank_of_their_first_job_and_how_many_wait(queue):
    """Of those that may be claimed now, or will when their images are decoded; of a model alone only whether any."""
    with queue.transaction():
        for name, priority in (("a", 5), ("b", 9)):
            queue.accept(request(name, priority=priority), Envelope("line-3", 500), model="phi")
        first = queue.overview.first("phi", 1)[0]
        assert queue.overview.demand(["phi", "other"]) == {"phi": Demand(first.rank, 2), "other": None}
        assert queue.overview.demand(["phi"]) == {"phi": Demand(first.rank, 1)}
        assert first.job_id == "b"
        for _ in range(2):
            queue.claim("phi", idle=True)
        assert queue.overview.demand(["phi"]) == {"phi": None}


# Whatever happens


def sum_of(rows):
    return Backlog(sum(jobs for _, jobs, _ in rows), sum(size for *_, size in rows))


class Life(RuleBasedStateMachine):
    """Random lives of few jobs, beside a model that only knows the table of transitions and the rules of strikes."""

    names = st.sampled_from(["a", "b", "c", "d"])

    @initialize()
    def open(self):
        self.folder = TemporaryDirectory()
        self.machine = Time()
        self.queue = self.machine.queue(Path(self.folder.name))
        self.states, self.strikes, self.sequence = {}, {}, {}
        self.running, self.stale, self.canceled = {}, [], set()

    def changed(self, changes):
        """Check every change against the table and follow it."""
        for job in changes:
            name = job.job_id
            if name in self.states:
                assert job.state in TRANSITIONS[self.states[name]]
                assert job.state_seq == self.sequence[name] + 1
            self.states[name], self.sequence[name] = job.state, job.state_seq
            self.strikes[name] = job.strikes
            if job.state is not JobState.RUNNING and name in self.running:
                self.stale.append(self.running.pop(name))

    @rule(name=names, ttl_s=st.sampled_from([5, 500]), max_attempts=st.integers(1, 3))
    def accept(self, name, ttl_s, max_attempts):
        if name in self.states:
            return
        with self.queue.transaction() as changes:
            asked = request(name, max_attempts=max_attempts)
            job = self.queue.accept(asked, Envelope("line-3", ttl_s), model="phi")
        assert job.state is (JobState.CANCELED if name in self.canceled else JobState.QUEUED)
        self.canceled.discard(name)
        self.changed(changes)

    @rule()
    def claim(self):
        with self.queue.transaction() as changes:
            job = self.queue.claim("phi", idle=not self.running)
        if job:
            assert not job.alone or not self.running
            assert job.not_before_s is None
            self.running[job.job_id] = job
        self.changed(changes)

    @rule(name=names)
    def cancel(self, name):
        with self.queue.transaction() as changes:
            self.queue.cancel("line-3", name)
        if name not in self.states:
            self.canceled.add(name)
        self.changed(changes)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), state=st.sampled_from([JobState.SUCCEEDED, JobState.FAILED]))
    def end(self, data, state):
        job = self.running[data.draw(st.sampled_from(sorted(self.running)))]
        with self.queue.transaction() as changes:
            assert self.queue.end(job, state, ANSWER)
        self.changed(changes)

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def end_stale(self, data):
        """An attempt that is over ends nothing but a job that waits again, and that only badly."""
        job = data.draw(st.sampled_from(self.stale))
        with self.queue.transaction() as changes:
            assert self.queue.end(job, JobState.SUCCEEDED, ANSWER) is None
        assert changes == []

    @precondition(lambda self: self.running)
    @rule()
    def lose_engine(self):
        lost = list(self.running.values())
        several = len(lost) > 1
        rows = self.queue._db.connection.execute("SELECT job_id FROM jobs WHERE alone > 1").fetchall()
        convicted = set() if several else {name for (name,) in rows}  # it had been in an engine that died, with others
        with self.queue.transaction() as changes:
            self.queue.engine_lost(lost, ENGINE_DIED)
        for job in changes:
            if job.state is JobState.QUEUED:
                assert job.alone
                assert job.strikes == self.strikes[job.job_id] - several + (job.job_id in convicted)
        self.changed(changes)

    @rule()
    def restart(self):
        self.queue.close()
        self.queue = self.machine.queue(Path(self.folder.name))
        with self.queue.transaction() as changes:
            self.queue.recover()
        self.changed(changes)
        assert self.running == {}

    @rule(seconds=st.sampled_from([1, 10]))
    def pass_time(self, seconds):
        self.machine.pass_s(seconds)
        with self.queue.transaction() as changes:
            self.queue.release()
            self.queue.expire()
        self.changed(changes)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), error=st.sampled_from([ENGINE_DIED, Failure.because(Code.MODEL_ERROR, "no number")]))
    def fail_attempt(self, data, error):
        """A job fails for good, or waits to be tried again, and then not before its time."""
        job = self.running[data.draw(st.sampled_from(sorted(self.running)))]
        with self.queue.transaction() as changes:
            failed = self.queue.fail(job, Outcome(error=error))
        if failed.state is JobState.QUEUED:
            assert error.retryable
            assert failed.strikes < failed.max_attempts
            assert self.queue.clock.now_s() < failed.not_before_s < failed.expires_s
        self.changed(changes)

    @rule()
    def fail(self):
        before = self.queue.backlog
        fail_after(self.queue, lambda: (self.queue.recover(), self.queue.cancel("line-3", "a")))
        assert self.queue.backlog == before

    @invariant()
    def counters_equal_the_table(self):
        if not hasattr(self, "queue"):
            return
        rows = self.queue._db.connection.execute(SQL["unfinished"]).fetchall()
        assert self.queue.backlog == sum_of(rows)
        assert {client: self.queue.backlog_of(client) for client, *_ in rows} == {c: Backlog(*n) for c, *n in rows}
        with self.queue.transaction():
            assert counts(self.queue) == Counter(self.states.values())
            unfinished = {state: count for state, count in self.queue.overview.unfinished().items() if count}
            assert unfinished == {state: n for state, n in counts(self.queue).items() if state not in TERMINAL}
            owed = {each.job.job_id for each in self.queue.results.owed(10)}
        assert owed == {name for name, state in self.states.items() if state in TERMINAL}

    def teardown(self):
        if hasattr(self, "queue"):
            self.queue.close()
            self.folder.cleanup()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=25),
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=30),
)
def test_results_come_client_by_client_each_in_order_and_none_twice(ended, asks):
    """From call to call nobody gets two while another is owed one, whatever of what was handed out is still busy."""
    with TemporaryDirectory() as folder, Time().queue(Path(folder)) as queue:
        with queue.transaction():
            for number, (client, canceled) in enumerate(ended):
                job = queue.accept(request(f"j-{number}"), Envelope(client, 600.0), model="phi")
                if canceled:
                    queue.cancel(client, job.job_id)
                else:
                    queue.end(queue.claim("phi", idle=True), JobState.SUCCEEDED, ANSWER)
        told, busy, left = [], [], Counter(client for client, _ in ended)
        for limit, answered in [*asks, *[(6, 6)] * len(ended)]:
            with queue.transaction():
                found = queue.results.owed(limit, busy=[owed.job.row for owed in busy])
                assert len(found) == min(limit, left.total())
                for owed in found:
                    told.append((owed.job.client, int(owed.job.job_id[2:])))
                    left[owed.job.client] -= 1
                busy += found
                for owed in busy[:answered]:
                    queue.results.delivered(owed)
                del busy[:answered]
        for client in "abc":
            of = [number for each, number in told if each == client]
            assert of == [number for number, (each, _) in enumerate(ended) if each == client]
        waiting, turns = Counter(client for client, _ in ended), Counter()
        for client, _ in told:
            turns[client] += 1
            waiting[client] -= 1
            assert all(turns[client] <= turns[other] + 1 for other in waiting if waiting[other])


def test_what_is_owed_to_one_costs_another_nothing_to_find(queue):
    """SQLite's own count of its steps, to find one result beside few and beside many of another's."""

    def steps():
        counted = []
        queue._db.connection.set_progress_handler(lambda: counted.append(1), 10)
        found = queue.results.owed(4)
        queue._db.connection.set_progress_handler(None, 0)
        assert {owed.job.client for owed in found} == {"line-3", "many"}
        return len(counted)

    def finish(client, *names):
        with queue.transaction():
            for name in names:
                queue.accept(request(name), Envelope(client, 600.0), model="phi")
                queue.end(queue.claim("phi", idle=True), JobState.SUCCEEDED, ANSWER)

    finish("many", "a")
    finish("line-3", "b")
    few = steps()
    finish("many", *(f"more-{number}" for number in range(500)))
    assert steps() < 3 * few + 10

"""What is counted of jobs, tokens and times, and what is told of them."""

import dataclasses

import pytest
from fakes import ANSWER, Time, accept, claim

from edge_agent.base.errors import Code
from edge_agent.engine.messages import JobId, Progress, Text
from edge_agent.health.counters import RECENT_JOBS, Counters
from edge_agent.jobs.job import JobState, Outcome, PromptTokensDetails, Timings, Usage


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A job that runs."""
    with Time().queue(tmp_path_factory.mktemp("queue")) as queue:
        accept(queue)
        return claim(queue)


def ended(job, state=JobState.SUCCEEDED, *, first_ms=40.0, generate_ms=100.0, tokens=10, cached=0):
    usage = Usage(
        prompt_tokens=20,
        completion_tokens=tokens,
        total_tokens=20 + tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
    )
    timings = Timings(first_token_ms=first_ms, generate_ms=generate_ms)
    outcome = ANSWER.model_copy(update={"usage": usage, "timings": timings})
    return dataclasses.replace(job, state=state, outcome=outcome)


def test_only_jobs_that_ended_are_counted_by_how(job):
    counters = Counters(["phi"])
    counters.changed([job, ended(job), ended(job, JobState.FAILED), ended(job, cached=10)])
    counts = counters.counts()
    assert counts.models["phi"].ended == {"succeeded": 2, "failed": 1}
    assert (counts.models["phi"].completion_tokens, counts.models["phi"].cached_share) == (30, 10 / 60)
    assert counts.summary() == {
        "succeeded": 2,
        "failed": 1,
        "prompt_tokens": 60,
        "cached_tokens": 10,
        "completion_tokens": 30,
    }


def test_a_job_that_ended_before_any_engine_had_it_has_no_times(job):
    counters = Counters(["phi"])
    counters.changed([dataclasses.replace(job, state=JobState.EXPIRED, outcome=Outcome())])
    counts = counters.counts().models["phi"]
    assert (counts.ended, counts.first_token_s.counts[-1], counts.output_token_s.counts[-1]) == ({"expired": 1}, 0, 0)
    assert (counts.first_token_p50_ms, counts.cached_share) == (None, None)


def test_the_percentiles_are_of_the_last_jobs(job):
    counters = Counters(["phi"])
    counters.changed([ended(job, first_ms=9_999.0)] * RECENT_JOBS)
    counters.changed([ended(job, first_ms=float(ms)) for ms in range(1, RECENT_JOBS + 1)])
    counts = counters.counts().models["phi"]
    assert (counts.first_token_p50_ms, counts.first_token_p95_ms) == (128.0, 244.0)


def test_times_fall_into_the_bucket_that_holds_them(job):
    """10 ms belongs to the bucket of 10 ms; the last one holds everything."""
    counters = Counters(["phi"])
    counters.changed([ended(job, first_ms=ms, generate_ms=ms) for ms in (10.0, 10.1, 999_999.0)])
    counts = counters.counts().models["phi"]
    assert counts.first_token_s.counts == (1, 2, *[2] * 12, 3)
    assert counts.first_token_s.total == pytest.approx(1000.0191)
    assert counts.output_token_s.counts[0] == 1


def test_tokens_are_counted_as_they_come_and_faults_by_their_kind():
    counters = Counters(["phi", "vision"])
    for event in (Text(JobId("1.1"), "a", 2), Progress(JobId("1.1"), 0), Text(JobId("1.1"), "", 1)):
        counters.heard("phi", event)
    counters.rejected(Code.BAD_REQUEST)
    counters.rejected(Code.QUEUE_FULL)
    counters.lost("vision", moved=True)
    assert counters.generated == 3
    counts = counters.counts()
    assert (counts.rejected, counts.lost) == ({"bad_request": 1, "queue_full": 1}, {"vision": 1})
    assert counts.fallbacks == {"vision": 1}
    assert counts.summary() == {"rejected": 2, "engine_losses": 1, "fallbacks": 1}

"""When a job may be done: from how long others took, what waits before it, and what runs."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.jobs.pace import JobWork, Line, Pace, Took

BYTE_S, TOKEN_S, WAY_S = 0.001, 0.05, 0.02


def seconds(work, share=1.0, slower=1.0):
    return work.request_bytes * BYTE_S + work.max_tokens * share * TOKEN_S * slower + WAY_S


def took(work, *, share=1.0, beside=0, slower=1.0):
    """A job on an engine of known speeds that answers with a share of `max_tokens`."""
    prompt_s, tokens = work.request_bytes * BYTE_S, round(work.max_tokens * share)
    generate_s = tokens * TOKEN_S * slower
    return Took(work, tokens, prompt_s, generate_s, prompt_s + generate_s + WAY_S, beside)


def line(work, *ahead, running=()):
    return Line(work, len(ahead) + 1, ahead, running)


def test_nothing_is_said_before_anything_was_measured():
    assert Pace().eta_s("phi", line(JobWork(100, 10))) is None
    assert Pace().room_s("phi", [JobWork(100, 10)]) is None


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_an_estimate_knows_prompt_answer_and_what_is_ahead(share):
    """Of other sizes than were measured; answers are as much shorter than asked for as they were."""
    pace, chance = Pace(), random.Random(1)
    for _ in range(40):
        pace.note("phi", took(JobWork(chance.randint(50, 5000), 400), share=share), lanes=1)
    short, long = JobWork(100, 40), JobWork(20_000, 1000)
    assert pace.eta_s("phi", line(short)) == pytest.approx(seconds(short, share), abs=0.06)
    assert pace.eta_s("phi", line(short, long)) == pytest.approx(
        seconds(long, share) + seconds(short, share), rel=0.02, abs=0.06
    )


def test_lanes_take_what_waits_as_each_gets_free():
    pace = Pace()
    pace.note("phi", took(JobWork(100, 100)), lanes=2)
    one = JobWork(100, 100)
    running = (JobWork(100, 100, elapsed_s=4.0), JobWork(100, 100, elapsed_s=1.0))
    left = [seconds(one) - each.elapsed_s for each in running]
    assert pace.eta_s("phi", line(one, running=running)) == pytest.approx(left[0] + seconds(one), abs=0.06)
    assert pace.eta_s("phi", line(one, one, running=running)) == pytest.approx(left[1] + seconds(one), abs=0.06)
    assert pace.room_s("phi", running) == pytest.approx(left[0], abs=0.06)


def test_neighbours_slow_a_lane_down():
    """As measured with so many of them, or with the number nearest to it."""
    pace = Pace()
    for beside in (0, 3):
        pace.note("phi", took(JobWork(100, 100), beside=beside, slower=1 + beside), lanes=4)
    work = JobWork(100, 100)
    assert pace.eta_s("phi", line(work)) == pytest.approx(seconds(work), abs=0.06)
    running = (JobWork(100, 100, elapsed_s=100.0),) * 3
    assert pace.eta_s("phi", line(work, running=running)) == pytest.approx(seconds(work, slower=4), abs=0.06)


def test_a_job_that_runs_longer_than_most_is_expected_half_way_to_its_longest():
    pace = Pace()
    pace.note("phi", took(JobWork(100, 100), share=0.1), lanes=1)
    overdue = JobWork(100, 100, elapsed_s=2.0)
    assert pace.room_s("phi", [overdue]) == pytest.approx((seconds(overdue) - 2.0) / 2, abs=0.06)
    assert pace.room_s("phi", [JobWork(100, 100, elapsed_s=1000.0)]) == 0.0


WORKS = st.builds(JobWork, st.integers(1, 10_000), st.integers(1, 1000))


@given(st.lists(WORKS, max_size=19), WORKS, st.integers(1, 8), st.lists(WORKS, max_size=8))
def test_an_estimate_never_shrinks_with_more_ahead(ahead, work, lanes, running):
    pace = Pace()
    pace.note("phi", took(JobWork(100, 100)), lanes=lanes)
    etas = [pace.eta_s("phi", line(work, *ahead[:n], running=running[:lanes])) for n in range(len(ahead) + 1)]
    assert etas == sorted(etas)
    assert etas[0] >= 0

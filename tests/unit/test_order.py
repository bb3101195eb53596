"""Who waits for whom, over simulated time on the real queue: whatever comes whenever, order and bounds hold.

The agent is simulated (lanes that take so long for a job, each model with its own); the queue is the one that ships.
"""

import heapq
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from fakes import ANSWER, ENGINE_DIED, Time, accept
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.jobs.job import JobState, Outcome

AGE_STEP_S = 60.0
BOUND_S = 9 * AGE_STEP_S
"""A job accepted so long after another never runs before it: the promise of the README."""


@dataclass(frozen=True)
class Arrival:
    after_s: float
    model: str
    priority: int
    service_s: float
    ttl_s: float
    failures: int


@dataclass
class Floor:
    """The queue with lanes at work; `claims` are the jobs in the order in which they began, with when."""

    queue: object
    machine: Time
    lanes: dict
    service_s: dict = field(default_factory=dict)
    failures: dict = field(default_factory=dict)
    claims: list = field(default_factory=list)
    waiting_at: dict = field(default_factory=dict)
    ended: dict = field(default_factory=dict)
    running: list = field(default_factory=list)

    def busy(self, model):
        return [entry for entry in self.running if entry[2].model == model]

    def fill(self):
        """Give jobs to free lanes, as the dispatcher does: each model's lanes look at its own jobs alone."""
        for model, lanes in self.lanes.items():
            while len(self.busy(model)) < lanes and not any(job.alone for *_, job in self.busy(model)):
                with self.queue.transaction():
                    before = self.queue.overview.first(model, 1000)
                    job = self.queue.claim(model, idle=not self.busy(model))
                if job is None:
                    break
                now_s = self.queue.clock.now_s()
                self.claims.append((now_s, job))
                self.waiting_at[job.row, job.attempt] = before
                heapq.heappush(self.running, (now_s + self.service_s[job.job_id], job.row, job))

    def advance(self, until_s):
        """Let time pass up to a moment, and happen whatever is due until then."""
        while True:
            self.end_due()
            with self.queue.transaction() as changes:
                _, release_s = self.queue.release()
                expire_s = self.queue.expire()
            self.ended |= {job.job_id: job for job in changes}
            self.fill()
            moments = [self.running[0][0]] if self.running else []
            moments += [each for each in (release_s, expire_s) if each is not None]
            next_s = min(moments, default=until_s)
            self.machine.pass_s(max(0.0, min(next_s, until_s) - self.queue.clock.now_s()))
            if next_s > until_s or not moments:
                return

    def end_due(self):
        while self.running and self.running[0][0] <= self.queue.clock.now_s():
            *_, job = heapq.heappop(self.running)
            with self.queue.transaction():
                if job.strikes <= self.failures[job.job_id]:
                    after = self.queue.fail(job, Outcome(error=ENGINE_DIED))
                else:
                    after = self.queue.end(job, JobState.SUCCEEDED, ANSWER)
            if after.state is not JobState.QUEUED:
                self.ended[job.job_id] = after


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        after_s=st.sampled_from([0.0, 0.5, 20.0, 70.0, 300.0]),
        model=st.sampled_from(["phi", "vision"]),
        priority=st.integers(0, 9),
        service_s=st.sampled_from([1.0, 40.0, 200.0]),
        ttl_s=st.sampled_from([30.0, 900.0, 86_400.0]),
        failures=st.sampled_from([0, 0, 0, 1]),
    ),
    min_size=1,
    max_size=40,
)


def simulate(arrivals, lanes):
    with TemporaryDirectory() as folder:
        machine = Time()
        with machine.queue(Path(folder), age_step_s=AGE_STEP_S) as queue:
            floor = Floor(queue, machine, lanes)
            for number, each in enumerate(arrivals):
                floor.advance(queue.clock.now_s() + each.after_s)
                name = f"job-{number}"
                floor.service_s[name], floor.failures[name] = each.service_s, each.failures
                accept(queue, name, model=each.model, priority=each.priority, ttl_s=each.ttl_s, max_attempts=3)
            floor.advance(queue.clock.now_s() + 100_000)
            return floor


LANES = st.fixed_dictionaries({"phi": st.integers(1, 3), "vision": st.integers(1, 2)})
SOME = settings(max_examples=40, deadline=None)


@SOME
@given(ARRIVALS, LANES)
def test_who_runs_next_has_the_lowest_rank_of_those_that_may(arrivals, lanes):
    """Rank is acceptance less a minute per step of priority: static, so whoever is before somebody stays so.

    But who must run alone waits for an idle engine, and lets others go first, see test_claims.py.
    """
    floor = simulate(arrivals, lanes)
    for _, job in floor.claims:
        may = [each for each in floor.waiting_at[job.row, job.attempt] if each.expires_s > job.claimed_s]
        assert job.alone or next(each for each in may if not each.alone).row == job.row
        assert job.rank == job.accepted_s - AGE_STEP_S * job.priority


@SOME
@given(ARRIVALS, LANES)
def test_nobody_starves(arrivals, lanes):
    """While a job waits, none begins that was accepted BOUND_S after it; nor one of its own priority after it.

    Who must run alone has its turn too, see test_claims.py.
    """
    floor = simulate(arrivals, lanes)
    for _, job in floor.claims:
        for waits in floor.waiting_at[job.row, job.attempt]:
            if waits.row != job.row and waits.expires_s > job.claimed_s and not waits.alone:
                assert job.accepted_s < waits.accepted_s + BOUND_S
                assert (job.priority, -job.row) > (waits.priority, -waits.row) or job.accepted_s < waits.accepted_s


@SOME
@given(ARRIVALS, LANES)
def test_every_job_ends_once_and_time_to_live_holds(arrivals, lanes):
    """One that has not begun within its time to live expires then, and no later; no expired one begins."""
    floor = simulate(arrivals, lanes)
    assert floor.ended.keys() == {f"job-{number}" for number in range(len(arrivals))}
    for now_s, job in floor.claims:
        assert now_s < job.expires_s
    for job in floor.ended.values():
        if job.state is JobState.EXPIRED:
            assert job.finished_s - job.expires_s < 0.001


@SOME
@given(ARRIVALS, LANES)
def test_models_do_not_wait_for_each_other(arrivals, lanes):
    """Each has its engine: what the jobs of one do is the same whether the other has any."""
    both = simulate(arrivals, lanes)
    alone = defaultdict(list)
    for model in ("phi", "vision"):
        offset, only = 0.0, []
        for each in arrivals:
            offset += each.after_s
            if each.model == model:
                only.append(Arrival(offset, model, each.priority, each.service_s, each.ttl_s, each.failures))
                offset = 0.0
        if only:
            floor = simulate(only, lanes)
            alone[model] = [(round(now_s, 3), job.priority, job.attempt) for now_s, job in floor.claims]
        shared = [(round(now_s, 3), job.priority, job.attempt) for now_s, job in both.claims if job.model == model]
        assert shared == alone[model]

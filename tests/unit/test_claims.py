"""Who runs next where some must run alone: nobody waits for many runs of others, and nobody starves."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fakes import ANSWER, Time, accept, claim, request
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.jobs.claims import PASSING_STEPS
from edge_agent.jobs.job import JobState
from edge_agent.jobs.queue import Envelope

AGE_STEP_S = 60.0
PASSING_S = PASSING_STEPS * AGE_STEP_S


@dataclass(frozen=True)
class Comes:
    client: str
    alone: bool
    priority: int
    jobs: int


@dataclass(frozen=True)
class Ends:
    which: int


def must_run_alone(queue, job):
    with queue.transaction():
        queue._db.connection.execute("UPDATE jobs SET alone = 1 WHERE row = ?", (job.row,))


@dataclass
class Engine:
    """The queue with so many lanes, filled as the dispatcher does; counts the runs alone that each job waited for."""

    queue: object
    machine: Time
    lanes: int
    jobs: int = 0
    running: list = field(default_factory=list)
    waiting: dict = field(default_factory=dict)
    runs_alone: list = field(default_factory=list)

    def take(self, step):
        match step:
            case Comes(client, alone, priority, jobs):
                for _ in range(jobs):
                    self.accept(client, alone=alone, priority=priority)
            case Ends(which) if self.running:
                job = self.running.pop(which % len(self.running))
                with self.queue.transaction():
                    assert self.queue.end(job, JobState.SUCCEEDED, ANSWER)
            case float(seconds):
                self.machine.pass_s(seconds)
        self.fill()

    def accept(self, client, *, alone, priority):
        self.jobs += 1
        asked = request(f"job-{self.jobs}", priority=priority, ttl_s=86_400)
        with self.queue.transaction():
            job = self.queue.accept(asked, Envelope(client, 86_400), model="phi")
        if alone:
            must_run_alone(self.queue, job)
        running = any(each.alone for each in self.running)
        self.waiting[job.row] = (job.client, alone, len(self.runs_alone) - running)

    def fill(self):
        while len(self.running) < self.lanes and not any(job.alone for job in self.running):
            with self.queue.transaction():
                job = self.queue.claim("phi", idle=not self.running)
            if job is None:
                return
            assert not job.alone or not self.running
            self.running.append(job)
            self.begun(job)

    def begun(self, job):
        client, alone, since = self.waiting.pop(job.row)
        seen = Counter(self.runs_alone[since:])
        if not alone:
            assert seen.total() <= 1
        else:
            assert all(count <= seen[client] + 2 for count in seen.values())
            self.runs_alone.append(client)


STEPS = st.lists(
    st.one_of(
        st.builds(
            Comes, st.sampled_from(["mallory", "carol", "bob"]), st.booleans(), st.integers(0, 9), st.integers(1, 4)
        ),
        st.builds(Ends, st.integers(0, 3)),
        st.sampled_from([1.0, 30.0, 700.0]),
    ),
    min_size=5,
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.integers(1, 3))
def test_a_job_waits_for_one_run_alone_and_who_must_run_alone_has_its_turn(steps, lanes):
    """A plain job waits for one run alone, whoever's. One that runs alone waits for its client's own before it, and of
    each other client for as many and two more: turns go round, and the first may have begun before it came. All end.
    """
    with TemporaryDirectory() as folder:
        machine = Time()
        with machine.queue(Path(folder), age_step_s=AGE_STEP_S) as queue:
            engine = Engine(queue, machine, lanes)
            for step in steps:
                engine.take(step)
            while engine.running:
                engine.take(Ends(0))
            assert engine.waiting == {}


@pytest.fixture
def machine():
    return Time()


@pytest.fixture
def queue(tmp_path, machine):
    with machine.queue(tmp_path, age_step_s=AGE_STEP_S) as opened:
        yield opened


def test_until_an_engine_is_idle_others_pass_who_must_run_alone_but_not_for_ever(queue, machine):
    must_run_alone(queue, accept(queue, "alone"))
    machine.pass_s(PASSING_S - 1)
    accept(queue, "passes")
    assert claim(queue, idle=False).job_id == "passes"
    machine.pass_s(2)
    accept(queue, "late")
    assert claim(queue, idle=False) is None
    assert claim(queue, idle=True).job_id == "alone"


def test_who_must_run_alone_goes_first_on_an_idle_engine_and_lets_what_waits_go_before_the_next(queue):
    for name in ("first", "second"):
        must_run_alone(queue, accept(queue, name))
    accept(queue, "waits")
    first = claim(queue)
    accept(queue, "comes")
    assert first.job_id == "first"
    with queue.transaction():
        queue.end(first, JobState.SUCCEEDED, ANSWER)
    assert [claim(queue).job_id for _ in range(3)] == ["waits", "comes", "second"]


def test_ones_many_runs_alone_are_its_own_share(queue):
    """Another's only one has its turn after the first, whatever the place of the rest."""
    for number in range(3):
        must_run_alone(queue, accept(queue, f"m{number}", client="mallory", priority=9))
    must_run_alone(queue, accept(queue, "c", client="carol", priority=0))
    assert [claim(queue).job_id for _ in range(4)] == ["m0", "c", "m1", "m2"]

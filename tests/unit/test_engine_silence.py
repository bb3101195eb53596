"""An engine is ended for its silence only when it says nothing of work that it holds, while somebody listens."""

import os
import random
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.awake import LAPSE_S, PULSE_S, Awake
from edge_agent.base.errors import Code
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.hosting import runner
from edge_agent.engine.hosting.engines import Engines
from edge_agent.engine.hosting.plan import SILENCE_S
from edge_agent.engine.hosting.served import Served
from edge_agent.engine.hosting.supervisor import Supervisor
from edge_agent.engine.hosting.work import EngineWork
from edge_agent.engine.messages import (
    Failed,
    Finished,
    FinishReason,
    JobId,
    ModelLimits,
    Progress,
    Ready,
    Text,
    TokenCounts,
    Trying,
)

AGENTS = int(os.environ.get("IDLE_AGENTS", "12"))
"""Of the simulation; 50 in the long form."""
HOUR_S = 3600.0
JOB_EVERY_S = 34.0
JOB_S = 20.0
CLAIM_S = 0.3
READY = Ready(ModelLimits(context_tokens=1024, parallel=1, images_per_prompt=0), 1.0, "onnx 1", "cpu")
JOBS = [JobId(name) for name in ("a", "b", "c")]
SPEC = ModelSpec(Path("/absent"), "onnx", context_tokens=1024, parallel=1, threads=1)


def finished(job_id):
    return Finished(job_id, FinishReason.STOP, TokenCounts(1, 1, 0), 1.0, 1.0)


STEPS = st.one_of(
    st.tuples(st.just("pass"), st.floats(0, 1000)),
    st.tuples(st.just("begin"), st.sampled_from(JOBS)),
    st.tuples(st.just("text"), st.sampled_from(JOBS)),
    st.tuples(st.just("progress"), st.sampled_from(JOBS)),
    st.tuples(st.just("finished"), st.sampled_from(JOBS)),
    st.tuples(st.just("failed"), st.sampled_from(JOBS)),
    st.tuples(st.just("trying"), st.none()),
    st.tuples(st.just("ready"), st.none()),
)


@given(st.lists(STEPS, max_size=40))
def test_silence_is_the_time_since_the_last_word_about_what_is_held(steps):
    """Whatever comes in whatever order: a word of a job that it does not hold gives it none."""
    now_s, since_s, loads, jobs, trial = 0.0, 0.0, True, set(), False
    work = EngineWork(lambda: now_s)
    for name, value in steps:
        match name:
            case "pass":
                now_s += value
            case "begin":
                since_s = since_s if jobs or trial else now_s
                jobs.add(value)
                work.begin(value, 100)
            case _:
                since_s = now_s
                messages = {
                    "text": Text(value, "word", 1),
                    "progress": Progress(value, 50),
                    "finished": finished(value),
                    "failed": Failed(value, Code.MODEL_ERROR, "no"),
                    "trying": Trying(10),
                    "ready": READY,
                }
                work.heard(messages[name])
                jobs -= {value} if name in ("finished", "failed") else set()
                trial = name == "trying" or (trial and name != "ready")
                loads = loads and name != "ready"
        held = work.held()
        assert held.busy == bool(jobs or trial)
        assert held.tried == trial
        assert held.silent_s == (now_s - since_s if jobs or trial or loads else 0.0)
        assert held.idle_s == (0.0 if held.busy else now_s - since_s)
        assert jobs or trial or not held.unprocessed_tokens


class Child:
    """An engine without a process, which tells of its work as it is told to; who ends it is kept in `killed`."""

    spec = SPEC
    pid = 1
    finished = 0
    prefill_per_s = None
    worn = False

    def __init__(self, now_s, killed):
        self._killed = killed
        self.ready = READY
        self.work = EngineWork(now_s)
        self.work.heard(READY)
        self.held = self.work.held

    def kill(self):
        self._killed.append(self.work.held().silent_s)

    def exit_reason(self):
        return "SIGKILL"

    def anonymous_bytes(self):
        return None

    def send(self, command):
        pass

    def close(self, timeout_s):
        pass

    def listen(self):
        pass


class Places:
    """One place, where the model fits and always loads."""

    def appraise(self, taken_bytes):
        return None

    def prepare(self, reserved_bytes):
        return SPEC, None

    def works(self, spec, heard):
        pass

    def better(self, spec):
        return False

    def failed(self, spec, reason):
        return False

    def fallback(self, spec):
        return None


class Agent:
    """The supervisor of an agent in made-up time, its one engine, and whether the queue is being asked."""

    def __init__(self, monkeypatch):
        self.raw_s, self.claiming, self.killed = 0.0, False, []
        self.clock = Awake(raw_s=lambda: self.raw_s)
        self.clock.pulse()

        def start(_spec, **_named):
            self.child = Child(self.clock.now_s, self.killed)
            return self.child

        monkeypatch.setattr(runner, "EngineProcess", start)
        self.supervisor = Supervisor(
            [Served("text", Places())],
            engines=Engines({"text": False}, now_s=self.clock.now_s),
            wake=threading.Event(),
            now_s=self.clock.now_s,
            strain=SimpleNamespace(unloads="", rest_share=0.0),
            work={"text": self},
        )
        self.supervisor.attend()
        self.supervisor._models["text"].runner._tell(self.child, READY)

    @property
    def busy(self):
        return self.claiming

    def pass_s(self, seconds):
        """Let time pass, with its pulses and the rounds of the main thread."""
        end_s = self.raw_s + seconds
        while self.raw_s < end_s:
            self.raw_s = min(end_s, self.raw_s + PULSE_S)
            self.clock.pulse()
            self.supervisor.attend()

    def freeze(self, seconds, *, pulse_first):
        """Stand still so long, and go on, the pulse or the judge first."""
        self.raw_s += seconds
        if pulse_first:
            self.clock.pulse()
        self.supervisor.attend()
        self.clock.pulse()

    def claim(self):
        """Ask the queue, slowly."""
        self.claiming = True
        self.supervisor.attend()
        self.raw_s += CLAIM_S
        self.clock.pulse()
        self.supervisor.attend()


@pytest.mark.parametrize("number", range(AGENTS))
def test_an_idle_engine_lives_for_an_hour_with_one_slow_job_each_34_s(monkeypatch, number):
    """It was killed whenever the main thread looked while the queue was asked, having said nothing since its last job.

    The queue is asked for nothing, too: whenever anything of any model changes.
    """
    chance, agent = random.Random(number), Agent(monkeypatch)
    agent.pass_s(chance.uniform(0, JOB_EVERY_S))
    while agent.raw_s < HOUR_S:
        for job in range(int(chance.choice((0, 1, 3)))):
            agent.claim()
            if not job:
                agent.child.work.begin(JobId("job"), 20)
            agent.claiming = False
        for _ in range(int(JOB_S)):
            agent.pass_s(1.0)
            agent.child.work.heard(Text(JobId("job"), "word", 1))
        agent.child.work.heard(finished(JobId("job")))
        agent.pass_s(chance.choice((JOB_EVERY_S - JOB_S, 6 * JOB_EVERY_S)))
    assert not agent.killed


@pytest.mark.parametrize("pulse_first", [True, False])
def test_whoever_was_frozen_judges_nobody(monkeypatch, pulse_first):
    """Frozen together, thawed together, again and again: the engine has the time it had."""
    chance, agent = random.Random(7), Agent(monkeypatch)
    agent.child.work.begin(JobId("job"), 20)
    for _ in range(50):
        agent.pass_s(chance.uniform(0.0, SILENCE_S - 2 * LAPSE_S))
        agent.freeze(chance.choice((LAPSE_S, 95.0, 3600.0, 1e6)), pulse_first=pulse_first)
        agent.pass_s(chance.uniform(0.0, LAPSE_S))
        agent.child.work.heard(Text(JobId("job"), "word", 1))
    assert not agent.killed


def test_an_engine_that_says_nothing_of_its_job_is_still_ended(monkeypatch):
    """Frozen or not, what it holds is owed within the bound of time awake."""
    agent = Agent(monkeypatch)
    agent.child.work.begin(JobId("job"), 0)
    agent.pass_s(SILENCE_S - 2 * LAPSE_S)
    agent.freeze(1000.0, pulse_first=True)
    assert not agent.killed
    agent.pass_s(2 * LAPSE_S + 1.0)
    assert agent.killed

"""A pool of agents does all jobs, each once, in good time: one agent slow, one killed, the broker started again."""

import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack

import pytest
from flow import number, rows
from running import PATIENCE_S, AgentProcess, faulty, requester, wait_for

pytestmark = pytest.mark.broker

JOBS = number("POOL_JOBS", 30)
TOKENS = 20
PERIOD_S = number("POOL_TOKEN_MS", 15) / 1000
"""A fast agent needs TOKENS * PERIOD_S for a job, the slow one ten times as long."""
SLOWNESS = {"fast-1": 1, "fast-2": 1, "slow": 10}
POOL = 'pools = ["hall"]\n'


def member(folder, broker, name, model):
    """An agent of the pool, as slow as SLOWNESS says."""
    environ = faulty(FAULTS_BACKEND="metronome:load", METRONOME_S=str(PERIOD_S * SLOWNESS[name]))
    made = AgentProcess(
        folder=folder / name, broker=broker, models=[{"name": "tick", "path": str(model)}], agent=name, environ=environ
    )
    made.config.write_text(made.config.read_text().replace("drain_s = 10\n", "drain_s = 10\n" + POOL))
    return made


def ideal_s(jobs, killed_after_s):
    """Return how long the agents need at least, one of the fast ones working only so long."""
    alone_s = TOKENS * PERIOD_S
    speed = sum(1 / slowness for slowness in SLOWNESS.values()) / alone_s
    done = killed_after_s * speed
    if done >= jobs:
        return jobs / speed
    return killed_after_s + (jobs - done) / (speed - 1 / alone_s)


@pytest.fixture
def model(tmp_path):
    """What looks like a build; the metronome reads none of it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "genai_config.json").write_text("{}")
    return folder


@pytest.mark.timeout(120 + JOBS)
@pytest.mark.parametrize("broker_restarts", [False, True])
def test_a_pool_does_every_job_once(broker, tmp_path, model, broker_restarts):
    """One is ten times slower, one is killed mid-way and stays away; in one case the broker too is started again."""
    with ExitStack() as stack:
        agents = {name: stack.enter_context(member(tmp_path, broker, name, model)) for name in SLOWNESS}
        for agent in agents.values():
            agent.wait_said("pool.joined")
        client = stack.enter_context(requester(broker))
        begun_s = time.monotonic()
        handles = [client.submit(pool="hall", prompt=f"Number {n}", max_tokens=TOKENS) for n in range(JOBS)]
        wait_for(lambda: sum(handle.done for handle in handles) >= JOBS // 3, "a third to be done", JOBS)
        agents["fast-1"].kill()
        killed_s = time.monotonic() - begun_s
        if broker_restarts:
            broker.kill()
            threading.Event().wait(0.5)
            broker.start()
        results = [handle.result(PATIENCE_S + JOBS) for handle in handles]
        took_s = time.monotonic() - begun_s
    assert Counter(result.state for result in results) == {"succeeded": JOBS}
    stored = [row for agent in agents.values() for row in rows(agent.state_dir)]
    successes = Counter(row["job_id"] for row in stored if row["state"] == "succeeded")
    bound_s = ideal_s(JOBS, killed_s)
    by = Counter(result.agent for result in results)
    sys.stdout.write(
        f"{JOBS} jobs in {took_s:.1f} s, {took_s / bound_s:.2f} x ideal ({bound_s:.1f} s), by {dict(by)}, "
        f"{successes.total() - JOBS} done by two because the word of the first was lost\n"
    )
    assert successes.keys() == {handle.job_id for handle in handles}

"""Nothing is lost and nothing doubled when agent, engine and broker are killed at random moments while jobs flow."""

import os
import random
import signal
import sys
import threading
from collections import Counter

import pytest
from flow import check, expect, flowing, number
from running import AgentProcess, faulty, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.engine]

KILLS = number("CHAOS_KILLS", 40)
SEED = number("CHAOS_SEED", 1)
KILL_S = 15.0
"""Bound on what one kill with its recovery may add to the test."""


class Killer:
    """Ends things with SIGKILL and waits until they are back."""

    def __init__(self, agent, broker):
        self._agent = agent
        self._broker = broker

    def agent(self):
        with expect(self._agent, "link.up"):
            self._agent.kill()
            self._agent.start()

    def engine(self):
        (engine, *_) = wait_for(self._agent.engines, "an engine to kill")
        with expect(self._agent, "engine.ready"):
            os.kill(engine.pid, signal.SIGKILL)

    def broker(self):
        with expect(self._agent, "link.up"):
            self._broker.kill()
            self._broker.start()

    def both(self):
        with expect(self._agent, "link.up"):
            self._broker.kill()
            self._agent.kill()
            self._agent.start()
            self._broker.start()


@pytest.mark.timeout(120 + KILL_S * KILLS)
def test_kills_at_random_moments_lose_no_job_and_double_no_result(broker, tmp_path, tiny_model):
    """Whatever is killed whenever: each job ends once, within its strikes, and its requester has the result."""
    chance, pause = random.Random(SEED), threading.Event()
    models = [{"name": "tiny", "path": str(tiny_model), "parallel": 4, "context_tokens": 2048}]
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, environ=faulty()) as agent:
        agent.wait_said("engine.ready")
        killer, victims = Killer(agent, broker), Counter()
        with flowing({"alice": broker, "bob": broker}, watched=broker, seed=SEED) as seen:
            for _ in range(KILLS):
                pause.wait(chance.uniform(0.0, 0.8))
                (victim,) = chance.choices(("agent", "engine", "broker", "both"), weights=(4, 4, 3, 1))
                victims[victim] += 1
                getattr(killer, victim)()
        assert agent.stop() == 0
    check(seen, agent.state_dir)
    sys.stdout.write(f"killed {dict(victims)}, {seen.summary()}\n")

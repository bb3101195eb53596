"""The agent is frozen and thawed while it works: nobody is held to the time in which nobody could do anything."""

import json
import os
import signal
import threading

import psutil
import pytest
from running import AgentProcess, faulty, requester, wait_for

from edge_agent.control.caller import ask_agent
from edge_agent.control.messages import AskState

pytestmark = pytest.mark.broker

FREEZE_S = float(os.environ.get("FREEZE_S", "8"))
"""95 in the long form."""
SILENCE_S = 6.0
JOB_TIMEOUT_S = 7
"""Both end in the freeze, and leave room for a clock that counts its first LAPSE_S, and for a busy machine."""


def frozen(processes):
    """Stop processes for FREEZE_S, which nothing but a clock can tell."""
    for each in processes:
        os.kill(each, signal.SIGSTOP)
    try:
        wait_for(lambda: all(psutil.Process(each).status() == psutil.STATUS_STOPPED for each in processes), "a stop")
        threading.Event().wait(FREEZE_S)
    finally:
        for each in processes:
            os.kill(each, signal.SIGCONT)


@pytest.mark.parametrize("who", ["all", "agent"] if "FREEZE_S" in os.environ else ["all"])
@pytest.mark.timeout(120 + 3 * FREEZE_S)
def test_a_freeze_costs_no_engine_and_no_job(broker, tiny_model, tmp_path, who):
    """A paused container, or SIGSTOP for the agent alone: its engine has told everything by then."""
    environ = faulty(FAULTS_BACKEND="metronome:load", METRONOME_S="0.05", FAULTS_SILENCE_S=str(SILENCE_S))
    models = [{"name": "t", "path": str(tiny_model)}]
    with (
        AgentProcess(folder=tmp_path / "a", broker=broker, models=models, environ=environ) as agent,
        requester(broker) as client,
    ):
        agent.wait_said("engine.ready")
        (engine,) = agent.engines("edge_agent.engine.child")
        job = client.submit(
            "edge-01", prompt="Tick.", max_tokens=30, timeout_s=JOB_TIMEOUT_S, ttl_s=600, max_attempts=1
        )
        agent.wait_said("job.started")
        frozen([agent.pid, engine.pid] if who == "all" else [agent.pid])
        result = job.result(60)
        assert (result.state, result.attempt) == ("succeeded", 1), json.dumps(result.model_dump(mode="json"))[:500]
        assert agent.engines("edge_agent.engine.child") == [engine]
        assert not agent.said("engine.lost")
        assert not agent.said("agent.stuck")
        assert ask_agent(agent.state_dir, AskState()).state.health != "unhealthy"
        assert agent.stop() == 0


def test_an_idle_engine_is_not_ended_while_a_slow_queue_is_asked_for_work(broker, tiny_model, tmp_path):
    """It has said nothing for longer than a busy one may; looked at while a job is on its way to it, it was killed."""
    silence_s = 2.0
    environ = faulty(FAULTS_BACKEND="metronome:load", FAULTS_SILENCE_S=str(silence_s), FAULTS_CLAIM_S="0.4")
    models = [{"name": "t", "path": str(tiny_model)}]
    with (
        AgentProcess(folder=tmp_path / "a", broker=broker, models=models, environ=environ) as agent,
        requester(broker) as client,
    ):
        agent.wait_said("engine.ready")
        engines = agent.engines("edge_agent.engine.child")
        for _ in range(2):
            threading.Event().wait(silence_s + 0.5)
            result = client.submit("edge-01", prompt="Tick.", max_tokens=1).result(60)
            assert (result.state, result.attempt) == ("succeeded", 1)
        assert agent.engines("edge_agent.engine.child") == engines
        assert not agent.said("engine.lost")

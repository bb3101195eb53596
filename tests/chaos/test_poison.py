"""A prompt that the engine cannot survive ends alone: it fails, its neighbours succeed, the agent stays at work."""

import itertools
import json
import os

import pytest
from flow import AGENT, rows
from running import PATIENCE_S, AgentProcess, Listener, faulty, mosquitto_pub, requester, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.engine]

ALL = [f"{fault}@{stage}" for fault in ("kill", "hang", "eat") for stage in ("start", "prefill", "decode")]
FEW = ["kill@start", "kill@prefill", "hang@decode", "eat@prefill"]
"""Each fault and each stage; what hangs takes seconds to be noticed, so CI does not try every pair."""
POISONS = ALL if "CHAOS_POISONS" in os.environ else FEW
CODES = {"kill": "engine_died", "hang": "engine_died", "eat": "out_of_memory"}
RESERVATION_BYTES = 160 * 2**20
"""More than the tiny model needs, less than a poisoned one takes (faults/poison.py)."""
STATUS = "edge/v1/agents/edge-01/cmd/status/tester"
INBOX = "edge/v1/clients/tester/inbox/#"


@pytest.fixture
def agent(broker, tmp_path, tiny_model):
    """A daemon with four lanes whose engine some prompts are bad for, and which waits 2 s for a silent engine."""
    models = [{"name": "tiny", "path": str(tiny_model), "parallel": 4, "memory_bytes": RESERVATION_BYTES}]
    environ = faulty(FAULTS_BACKEND="poison:load", FAULTS_SILENCE_S="2")
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, environ=environ) as running:
        running.wait_said("engine.ready")
        running.wait_said("link.up")
        yield running


@pytest.mark.parametrize("poison", POISONS)
def test_a_poisonous_prompt_fails_alone_and_costs_its_neighbours_no_strike(agent, broker, poison):
    """What kills, hangs or fattens the engine fails after its strikes; its neighbours succeed; the agent answers."""
    max_attempts = 2 if poison.startswith("kill") else 1
    with requester(broker) as client, Listener(broker, INBOX) as inbox:
        innocents = [client.submit(AGENT, prompt=f"Number {n}", max_tokens=1500) for n in range(3)]
        wait_for(lambda: all(begun(handle) for handle in innocents), "all neighbours to run")
        poisoned = client.submit(AGENT, prompt=poison, max_tokens=1000, max_attempts=max_attempts, priority=0)
        wait_for(lambda: begun(poisoned), "the poison to run")
        mosquitto_pub(broker, STATUS, json.dumps({"job_id": "unknown"}))
        inbox.wait("status", job_id="unknown")
        assert not poisoned.done
        result = poisoned.result(PATIENCE_S)
        assert (result.state, result.error.code) == ("failed", CODES[poison.split("@")[0]])
        assert [handle.result(PATIENCE_S).state for handle in innocents] == ["succeeded"] * 3
        assert client.submit(AGENT, prompt="Next", max_tokens=3).result(PATIENCE_S).state == "succeeded"
    assert agent.stop() == 0
    strikes = {row["job_id"]: row["strikes"] for row in rows(agent.state_dir)}
    assert strikes.pop(poisoned.job_id) == max_attempts
    assert set(strikes.values()) == {1}
    # Beside others it costs no strike until it is found out alone, which takes a second time.
    assert result.attempt == len(agent.said("engine.lost")) == max(2, max_attempts)


def test_what_runs_alone_takes_turns_with_what_another_has_waiting(agent, broker):
    """Of four that were in an engine when it died, none but the one that runs then goes before another's plain job."""
    with requester(broker) as client, requester(broker, name="other") as other:
        long = [client.submit(AGENT, prompt=f"Number {n}", max_tokens=1500) for n in range(3)]
        wait_for(lambda: all(begun(handle) for handle in long), "all neighbours to run")
        long.append(client.submit(AGENT, prompt="kill@decode", max_tokens=1000, max_attempts=2))
        wait_for(lambda: [each for each in agent.said("job.started") if each["attempt"] > 1], "one to run alone")
        for number in range(4):
            assert other.submit(AGENT, prompt=f"Meanwhile {number}", max_tokens=3).result(PATIENCE_S).error is None
        assert [handle.result(PATIENCE_S).state for handle in long] == ["succeeded"] * 3 + ["failed"]
    assert agent.stop() == 0
    said = sorted(agent.said("job.accepted") + agent.said("job.started"), key=lambda each: each["timestamp"])
    for number, event in enumerate(said):
        if (event["client"], event["event"]) == ("other", "job.accepted"):
            later = list(itertools.takewhile(lambda each: each["client"] != "other", said[number + 1 :]))
            assert len([each for each in later if each["event"] == "job.started"]) <= 1


def test_a_poison_alone_makes_nobody_wait(agent, broker):
    """An engine that has served is there again at once, and the poison runs no more often than it may."""
    with requester(broker) as client, requester(broker, name="other") as other:
        for number in range(3):
            assert other.submit(AGENT, prompt=f"Number {number}", max_tokens=3).result(PATIENCE_S).state == "succeeded"
            poisoned = client.submit(AGENT, prompt="kill@start", max_tokens=3, priority=9)
            assert [each.result(PATIENCE_S).state for each in asked(other, poisoned)] == ["succeeded"] * 2
            result = poisoned.result(PATIENCE_S)
            assert (result.state, result.error.code, result.attempt) == ("failed", "engine_died", 3)
    assert agent.stop() == 0
    assert [each["retry_s"] for each in agent.said("engine.lost")] == [0.0] * 9


def asked(other, poisoned):
    """Ask twice while a poison waits to be tried again, or when it has ended on a machine that is slow."""
    for number in range(2):
        wait_for(lambda: poisoned.done or (begun(poisoned) and poisoned.status.state == "queued"), "it to wait")
        yield other.submit(AGENT, prompt=f"Meanwhile {number}", max_tokens=3)


def begun(handle):
    """Whether a job was given to an engine."""
    return handle.status is not None and handle.status.attempt > 0

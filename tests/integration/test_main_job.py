"""The main job, end to end: broker, daemon, engine child, other people's clients."""

import json
import os
import signal

import psutil
import pytest
from running import AgentProcess, Listener, faulty, mosquitto_pub, requester, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.engine]

INBOX = "edge/v1/clients/{}/inbox/#"
JOB = "edge/v1/agents/edge-01/cmd/job/{}"


@pytest.fixture
def agent(broker, tmp_path, tiny_model):
    """A running daemon with the tiny random model, two lanes."""
    models = [{"name": "tiny", "path": str(tiny_model), "parallel": 2, "context_tokens": 2048}]
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, environ=faulty()) as running:
        running.wait_said("engine.ready")
        running.wait_said("link.up")
        yield running


def body(job_id, **fields):
    return json.dumps({"job_id": job_id, "prompt": "How is the pump?", "max_tokens": 24} | fields)


def test_a_plain_mosquitto_pub_job_is_queued_run_streamed_and_answered(agent, broker):
    """A job of mosquitto_pub gets its states in order, chunks that join to the result's text, and one result."""
    with Listener(broker, INBOX.format("plain")) as inbox:
        mosquitto_pub(broker, JOB.format("plain"), body("a-1"), "-D", "publish", "correlation-data", "abc")
        (result,) = inbox.wait("result")
        inbox.wait("status", state="succeeded")
        states = [(status["state"], status["state_seq"]) for status in inbox.of("status")]
        assert states == [("queued", 1), ("running", 2), ("succeeded", 3)]
        chunks = inbox.of("chunk")
        assert "".join(chunk["text"] for chunk in chunks) == result["text"] != ""
        assert [chunk["seq"] for chunk in chunks] == list(range(len(chunks)))
        assert result["last_seq"] == len(chunks) - 1
        assert result["finish_reason"] == "length"
        assert result["usage"]["completion_tokens"] == sum(chunk["tokens"] for chunk in chunks) == 24
        assert {inbound.correlation for inbound, _ in inbox.messages} == {b"abc"}
        assert len(inbox.of("result")) == 1


def test_kill_9_of_the_agent_while_a_job_runs_ends_in_exactly_one_result(agent, broker):
    with Listener(broker, INBOX.format("plain")) as inbox:
        mosquitto_pub(broker, JOB.format("plain"), body("a-1", max_tokens=1500))
        inbox.wait("chunk")
        (engine,) = agent.engines()
        agent.kill()
        wait_for(lambda: not engine.is_running(), "the engine to die with its agent")
        agent.start()
        (result,) = inbox.wait("result")
        assert (result["state"], result["attempt"]) == ("succeeded", 2)
        assert len(inbox.of("result")) == 1
        assert "".join(c["text"] for c in inbox.of("chunk") if c["attempt"] == 2) == result["text"]


def test_kill_9_of_the_engine_costs_its_jobs_nothing_but_time(agent, broker):
    with requester(broker) as client:
        handles = [client.submit("edge-01", prompt=f"Number {n}", max_tokens=1500) for n in range(2)]
        wait_for(lambda: all(h.status and h.status.state == "running" for h in handles), "both to run")
        (engine,) = agent.engines()
        os.kill(engine.pid, signal.SIGKILL)
        results = [handle.result(60) for handle in handles]
        assert [(r.state, r.attempt) for r in results] == [("succeeded", 2)] * 2
        assert psutil.pid_exists(agent.pid)
        (lost,) = agent.said("engine.lost")
        assert "SIGKILL" in lost["reason"]


def test_sigterm_lets_running_jobs_finish_and_says_good_bye(agent, broker):
    with Listener(broker, INBOX.format("plain"), "edge/v1/agents/edge-01/evt/presence") as inbox:
        mosquitto_pub(broker, JOB.format("plain"), body("a-1", max_tokens=800))
        inbox.wait("status", state="running")
        assert agent.stop() == 0
        (result,) = inbox.wait("result")
        assert (result["state"], result["usage"]["completion_tokens"]) == ("succeeded", 800)
        (farewell,) = inbox.wait("presence", state="offline")
        assert farewell["reason"] == "stopped"


def test_sigterm_puts_back_what_does_not_finish_in_time(agent, broker):
    """A job that outlasts drain_s goes back to the queue with its strike returned, and ends after the next start."""
    agent.stop()
    agent.config.write_text(agent.config.read_text().replace("drain_s = 10", "drain_s = 0"))
    agent.start()
    agent.wait_said("engine.ready", 2)
    with requester(broker) as client:
        handle = client.submit("edge-01", prompt="Go on", max_tokens=1900, max_attempts=1)
        wait_for(lambda: handle.status and handle.status.state == "running", "running")
        assert agent.stop() == 0
        agent.start()
        result = handle.result(60)
        assert (result.state, result.attempt) == ("succeeded", 2)


def test_jobs_sent_while_the_agent_is_away_are_run_when_it_is_back(agent, broker):
    assert agent.stop() == 0
    with Listener(broker, INBOX.format("plain")) as inbox:
        mosquitto_pub(broker, JOB.format("plain"), body("a-1"))
        agent.start()
        (result,) = inbox.wait("result")
        assert result["state"] == "succeeded"


def test_a_cancel_ends_a_running_job_and_keeps_its_text(agent, broker):
    with requester(broker) as client:
        handle = client.submit("edge-01", prompt="Go on", max_tokens=1500)
        wait_for(lambda: handle.status and handle.status.state == "running", "running")
        handle.cancel()
        result = handle.result(60)
        assert (result.state, result.finish_reason, result.error.code) == ("canceled", "canceled", "canceled")
        after = client.submit("edge-01", prompt="Next", max_tokens=3).result(60)
        assert after.state == "succeeded"


def test_a_repeat_is_harmless_and_another_job_of_the_same_id_is_refused(agent, broker):
    with Listener(broker, INBOX.format("plain")) as inbox:
        for _ in range(3):
            mosquitto_pub(broker, JOB.format("plain"), body("a-1"))
        inbox.wait("result", 1)
        mosquitto_pub(broker, JOB.format("plain"), body("a-1"))
        inbox.wait("result", 2)
        mosquitto_pub(broker, JOB.format("plain"), body("a-1", max_tokens=5))
        (rejected,) = inbox.wait("status", state="rejected")
        assert rejected["error"]["code"] == "duplicate_id"
        assert {result["attempt"] for result in inbox.of("result")} == {1}


def test_the_fleet_sees_birth_telemetry_and_death(agent, broker):
    with Listener(broker, "edge/v1/agents/edge-01/evt/#") as monitor:
        with requester(broker) as client:
            client.submit("edge-01", prompt="Hello", max_tokens=8).result(60)
        monitor.wait("telemetry")
        telemetry = wait_for(
            lambda: next((t for t in monitor.of("telemetry") if "generate_per_second" in t["engines"][0]), None),
            "telemetry with speeds",
        )
        assert telemetry["health"] == "ready"
        assert telemetry["engines"][0]["model"] == "tiny"
        assert telemetry["memory_available_bytes"] > 0
        agent.kill()
        (death,) = monitor.wait("presence", state="offline")
        assert death["boot_id"] == telemetry["boot_id"]
        agent.start()
        birth = wait_for(
            lambda: next((p for p in monitor.of("presence") if p["boot_id"] != death["boot_id"]), None),
            "the birth of another life",
        )
        assert birth["state"] == "online"
        (info, *_) = monitor.wait("info", boot_id=birth["boot_id"])
        assert info["models"][0]["name"] == "tiny"


def test_prompts_and_answers_stay_out_of_the_log(agent, broker):
    with requester(broker) as client:
        secret = "Zweiundvierzig"
        result = client.submit("edge-01", prompt=f"Say {secret}", max_tokens=20).result(60)
        agent.stop()
        log = agent.log.read_text()
        assert secret not in log
        assert result.text.strip()[:12] not in log

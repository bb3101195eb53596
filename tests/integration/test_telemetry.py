"""What a real agent tells of itself while it works, and over its death."""

import json

import pytest
from running import AgentProcess, Listener, mosquitto_pub, requester, wait_for

from edge_agent import __version__

pytestmark = [pytest.mark.broker, pytest.mark.engine]


def test_a_working_agent_tells_of_engine_jobs_and_machine_and_what_survives_its_death(broker, tmp_path, tiny_model):
    models = [{"name": "tiny", "path": str(tiny_model), "parallel": 2, "context_tokens": 2048}]
    with (
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=models) as agent,
        Listener(broker, "edge/v1/agents/edge-01/evt/#") as monitor,
        requester(broker) as client,
    ):

        def telemetry(wanted, what):
            return wait_for(lambda: next((t for t in monitor.of("telemetry") if wanted(t)), None), what)

        agent.wait_said("engine.ready")
        for number in range(2):
            client.submit("edge-01", prompt=f"{'The same words. ' * 30}{number}", max_tokens=8).result(60)
        mosquitto_pub(broker, "edge/v1/agents/edge-01/cmd/job/tester", json.dumps({"job_id": "bad", "odd": 1}))
        seen = telemetry(lambda t: t["counters"].get("rejected") == 1, "a report of the jobs and the refusal")

        assert (seen["version"], seen["health"]) == (__version__, "ready")
        assert seen["queue"] == {"waiting": 0, "queued": 0, "running": 0}
        assert seen["counters"]["succeeded"] == 2
        assert seen["counters"]["completion_tokens"] == 16
        assert seen["lifetime"] == {"accepted": 2, "completion_tokens": 16, "succeeded": 2}
        (engine,) = seen["engines"]
        assert (engine["lanes"], engine["context_tokens"], engine["device"], engine["running"]) == (2, 2048, "cpu", 0)
        for known in ("anonymous_bytes", "mapped_bytes", "prompt_per_second", "generate_per_second"):
            assert engine[known] > 0, known
        assert 0 < engine["first_token_p50_ms"] <= engine["first_token_p95_ms"]
        assert 0 < engine["cached_share"] < 1  # both prompts begin alike
        for known in ("load_1m", "memory_total_bytes", "memory_available_bytes", "agent_rss_bytes", "disk_free_bytes"):
            assert seen[known] > 0, known
        assert (seen["outbox_dropped"], seen["reconnects"]) == (0, 0)
        (info, *_) = [each for each in monitor.of("info") if each["health"] == "ready"]
        assert info["reasons"] == []

        agent.kill()
        agent.start()
        again = telemetry(lambda t: t["boot_id"] != seen["boot_id"], "a report of the next life")
        assert again["lifetime"] == seen["lifetime"]
        assert again["counters"] == {}


def test_a_broker_restart_counts_as_a_reconnect(broker, tmp_path, tiny_model):
    models = [{"name": "tiny", "path": str(tiny_model)}]
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=models) as agent:
        agent.wait_said("link.up")
        broker.stop()
        broker.start()
        agent.wait_said("link.up", 2)
        with Listener(broker, "edge/v1/agents/edge-01/evt/telemetry") as monitor:
            monitor.wait("telemetry", reconnects=1)

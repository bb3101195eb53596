"""The agent with nothing configured: it decides what this machine should run, says why, and what is missing."""

import json
import subprocess

import pytest
from running import AgentProcess, Listener, mosquitto_pub, wait_for

from edge_agent.models import catalogue

pytestmark = [pytest.mark.broker, pytest.mark.engine]

EVENTS = "edge/v1/agents/edge-01/evt/+"


def test_with_nothing_configured_it_is_said_exactly_what_to_do(tmp_path, broker):
    """In presence, to whoever sends a job, and in a retained decision that accounts for every build."""
    with (
        Listener(broker, EVENTS, "edge/v1/clients/me/inbox/#") as listener,
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=[]) as agent,
    ):
        agent.wait_said("link.up")
        agent.wait_said("model.failed")

        def decided():
            return [body["models"][0] for body in listener.of("decision") if body["models"]]

        decision = wait_for(decided, "a decision")[-1]
        builds = catalogue.read().builds_of("phi-3.5-mini")
        judged = [(each["variant"], each["device"]) for each in (*decision["candidates"], *decision["rejected"])]
        assert sorted(judged) == sorted((build.name, device) for build in builds for device in build.devices)
        best = decision["candidates"][0]
        assert best["installed"] is False
        assert best["needed_bytes"] <= best["free_bytes"]
        assert best.get("tokens_per_second", 1) > 0  # absent where the memory's speed cannot be told
        assert best["measured"] is False
        pull = f"edge-agent models pull {best['variant']}"

        def unhealthy():
            return [
                body
                for body in listener.of("presence")
                if body.get("health") == "unhealthy" and pull in body.get("reason", "")
            ]

        wait_for(unhealthy, "the presence to say what to do")
        mosquitto_pub(broker, "edge/v1/agents/edge-01/cmd/job/me", json.dumps({"job_id": "a", "prompt": "Hello"}))
        (status,) = [each for each in listener.wait("status") if "job_id" in each and each["agent"] == "edge-01"][:1]
        assert (status["state"], status["error"]["code"]) == ("rejected", "model_missing")
        assert pull in status["error"]["message"]
    command = ["mosquitto_sub", "-V", "mqttv5", "-h", broker.host, "-p", str(broker.port), "-C", "1", "-W", "10"]
    kept = subprocess.run(
        [*command, "-t", "edge/v1/agents/edge-01/evt/decision"], capture_output=True, check=True, timeout=20
    )
    assert json.loads(kept.stdout)["models"][0]["candidates"][0]["variant"] == best["variant"]

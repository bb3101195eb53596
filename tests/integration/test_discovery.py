"""A running agent is found by Home Assistant through a real broker, and taken back."""

import pytest
from running import AgentProcess, Listener, mosquitto_pub, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.engine]

CONFIG = "homeassistant/device/edge-01/config"


def test_an_agent_is_announced_again_when_home_assistant_starts_and_taken_back_when_switched_off(
    broker, tmp_path, tiny_model
):
    models = [{"name": "tiny", "path": str(tiny_model)}]
    agent = AgentProcess(
        folder=tmp_path / "agent", broker=broker, models=models, extra="[homeassistant]\nenabled = true\n"
    )

    with Listener(broker, CONFIG) as monitor:
        with agent:
            agent.wait_said("link.up")
            wait_for(lambda: len(monitor.messages) == 1, "the announcement")
            mosquitto_pub(broker, "homeassistant/status", "online")
            wait_for(lambda: len(monitor.messages) == 2, "it again")
            assert agent.stop() == 0
        (_, first), (_, second) = monitor.messages
        assert first == second
        sources = {sensor["state_topic"] for sensor in first["components"].values()}
        assert sources == {"edge/v1/agents/edge-01/evt/presence", "edge/v1/agents/edge-01/evt/telemetry"}
        assert all(inbound.retained for inbound, _ in monitor.messages)

        agent.config.write_text(agent.config.read_text().replace("enabled = true", "enabled = false"))
        with agent:
            wait_for(lambda: len(monitor.messages) == 3, "it to be taken back")
            assert monitor.messages[2][0].payload == b""
            assert agent.stop() == 0
        with agent:
            agent.wait_said("link.up", 3)
            assert agent.stop() == 0
        assert len(monitor.messages) == 3

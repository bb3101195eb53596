"""Two agents of one id on one broker, or of one state folder: each says so, the broker is not worn out."""

import pytest
from running import AgentProcess, Listener, requester, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.engine]

PRESENCE = "edge/v1/agents/edge-01/evt/presence"
TELEMETRY = "edge/v1/agents/edge-01/evt/telemetry"
WATCHED_S = 10
"""How long connections are counted; with retries after about 1, 2, 4, … seconds, each side makes four or five."""
CONNECTIONS_MAX = 11


def test_two_agents_of_one_id_both_say_so_and_jobs_are_answered(broker, tmp_path, tiny_model):
    """Of two agents with one id each names the other in its log and its health; few connections, every job answered."""
    models = [{"name": "tiny", "path": str(tiny_model), "parallel": 2, "context_tokens": 256}]
    agents = [AgentProcess(folder=tmp_path / name, broker=broker, models=models) for name in ("one", "two")]
    with Listener(broker, PRESENCE, TELEMETRY) as monitor, agents[0] as one, agents[1] as two:
        for agent in (one, two):
            agent.wait_said("engine.ready")
            agent.wait_said("link.up")
            agent.wait_said("presence.duplicate")

        def boots(leaf, field):
            return {
                body["boot_id"] for body in monitor.of(leaf) if "another agent has this id" in (body.get(field) or "")
            }

        wait_for(lambda: len(boots("presence", "reason")) == 2, "both to say so in their presence")
        with requester(broker) as client:
            handles = [client.submit("edge-01", prompt=f"Number {number}", max_tokens=3) for number in range(4)]
            assert [handle.result(60).state for handle in handles] == ["succeeded"] * 4
        begun = len(monitor.of("telemetry"))
        wait_for(lambda: len(monitor.of("telemetry")) > begun, "telemetry of the one that is connected")
        assert "another agent has this id" in monitor.of("telemetry")[-1]["reasons"]


def test_copies_of_one_state_folder_take_turns_less_and_less_often(broker, tmp_path):
    """In the first ten seconds two agents with one session make a handful of connections, not hundreds."""
    agents = [AgentProcess(folder=tmp_path / name, broker=broker, models=[]) for name in ("one", "two")]
    for agent in agents:
        agent.state_dir.mkdir(parents=True)
        (agent.state_dir / "session").write_text(f"{'a' * 26}\n")
    with Listener(broker, TELEMETRY) as monitor, agents[0] as one, agents[1] as two:
        for agent in (one, two):
            agent.wait_said("link.up")
        # One report a second, from whoever is connected, is the clock of this test.
        wait_for(lambda: len(monitor.of("telemetry")) >= WATCHED_S, "ten reports")
        assert broker.log.read_text().count("as edge-01.") <= CONNECTIONS_MAX
        for agent in (one, two):
            agent.wait_said("link.up", 2)

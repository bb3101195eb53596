"""A real daemon on a recorded machine that heats up: it holds back, step by step, gives its engine up, and recovers."""

import json
import sys
from pathlib import Path

import machines
import pytest
from running import AgentProcess, Listener, faulty, requester, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.engine]

ROOTED = Path(__file__).parents[1] / "faults/rooted.py"
GOVERNOR = "[governor]\nstep_s = 0.1\n"
ENVIRON = faulty(
    EDGE_AGENT_GOVERNOR__ENABLED="true", EDGE_AGENT_AGENT__POOLS='["line"]', FAULTS_BACKEND="metronome:load"
)


class AgentOn(AgentProcess):
    """The daemon on the machine of a tree."""

    def __init__(self, root, **settings):
        super().__init__(extra=GOVERNOR, environ=ENVIRON, **settings)
        self.launcher = (sys.executable, str(ROOTED), str(root))


def test_a_pi_that_heats_up_is_held_back_unloaded_and_back_when_it_is_cool(broker, tmp_path, tiny_model):
    root = machines.build("raspberry-pi-5", tmp_path)

    def heat(celsius):
        (root / "sys/class/thermal/thermal_zone0/temp").write_text(f"{celsius}000\n")

    models = [{"name": "tiny", "path": str(tiny_model), "parallel": 2, "context_tokens": 4096}]
    with (
        AgentOn(root, folder=tmp_path / "agent", broker=broker, models=models) as agent,
        Listener(broker, "edge/v1/agents/edge-01/evt/#") as monitor,
        requester(broker) as client,
    ):

        def steps():
            return [(step["before"], step["after"]) for step in agent.said("governor.step")]

        agent.wait_said("engine.ready")
        agent.wait_said("pool.joined")
        (cool, *_) = monitor.wait("telemetry", health="ready", heat_margin_c=48.8)
        assert cool["hottest"] == "cpu-thermal"
        heat(76)
        wait_for(lambda: len(steps()) == 3, "three steps")
        assert steps() == [
            ("nothing held back", "fewer lanes"),
            ("fewer lanes", "out of the pools"),
            ("out of the pools", "pauses between steps"),
        ]
        why = "cpu-thermal is at 76 °C, its limit is 80 °C"
        monitor.wait("presence", health="degraded", reason=f"fewer lanes: {why}")
        agent.wait_said("pool.left")
        told = [json.loads(line)["event"] for line in agent.log.read_text().splitlines() if line.startswith("{")]
        assert told[: told.index("pool.left")].count("governor.step") == 2
        monitor.wait("telemetry", reasons=[f"pauses between steps: {why}"])

        (engine,) = agent.engines()
        jobs = [client.submit("edge-01", prompt=f"Go on {n}", max_tokens=60, max_attempts=1) for n in range(2)]
        wait_for(lambda: all(job.status for job in jobs) and jobs[0].status.state == "running", "the first to run")
        heat(108)
        wait_for(lambda: not engine.is_running(), "the engine to be gone")
        wait_for(lambda: jobs[0].status.state == "queued", "the first to be back in the queue")
        assert (jobs[1].status.state, jobs[1].status.attempt) == ("queued", 0)  # only one lane was used
        monitor.wait("telemetry", health="degraded", hottest_celsius=108.0)
        assert not agent.said("engine.lost")

        heat(50)
        assert [job.result(60).state for job in jobs] == ["succeeded"] * 2
        wait_for(lambda: steps()[-1] == ("fewer lanes", "nothing held back"), "everything back")
        monitor.wait("presence", 2, health="ready")
        agent.wait_said("pool.joined", 2)
        assert agent.stop() == 0

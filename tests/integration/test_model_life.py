"""Models come and go in a real daemon: on demand, in turn where memory holds one, and away when nobody needs them."""

from pathlib import Path

import psutil
import pytest
from running import AgentProcess, Listener, requester, wait_for

from edge_agent.models.choose import free_bytes
from hardware import memory

pytestmark = [pytest.mark.broker, pytest.mark.engine]


def half_and_more():
    """So much memory that there is none for two of that size."""
    return int(0.6 * free_bytes(memory.read(Path("/"))))


def test_two_models_that_do_not_fit_together_take_turns(broker, tmp_path, tiny_model):
    """Jobs of the absent one wait as queued, run after a swap in one batch, and have lost nothing by it."""
    table = {"path": str(tiny_model), "context_tokens": 256, "memory_bytes": half_and_more()}
    models = [{"name": "first", **table}, {"name": "second", **table, "keep_alive_s": 0.5}]
    with (
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=models) as agent,
        Listener(broker, "edge/v1/agents/edge-01/evt/#") as monitor,
        requester(broker) as client,
    ):
        agent.wait_said("engine.ready")
        (info, *_) = monitor.wait("info", health="ready")
        assert [(each["state"], each.get("reason")) for each in info["models"]] == [
            ("ready", None),
            ("unloaded", "loaded when a job waits for it"),
        ]
        jobs = [
            client.submit("edge-01", model=model, prompt=f"Go on {n}", max_tokens=4, max_attempts=1)
            for n in range(6)
            for model in ("first", "second")
        ]
        results = [job.result(60) for job in jobs]
        assert {(each.state, each.attempt) for each in results} == {("succeeded", 1)}
        assert [each["model"] for each in agent.said("engine.ready")[:2]] == ["first", "second"]
        assert agent.said("engine.unloaded")[0]["reason"] == "makes room for second"
        waited = [each.timings.load_ms for each in results if each.model == "second"]
        assert all(load_ms > 100 for load_ms in waited)
        assert max(each.timings.load_ms for each in results if each.model == "first") < min(waited)

        agent.wait_said("engine.ready", 3)  # the second was idle for a while, the first has its room again
        reasons = [each["reason"] for each in agent.said("engine.unloaded")]
        assert reasons == ["makes room for second", "was idle for 0.5 s"]
        assert [each["model"] for each in agent.said("engine.ready")] == ["first", "second", "first"]
        assert len(agent.engines()) == 1
        told = monitor.of("presence") + monitor.of("telemetry")
        assert {each["health"] for each in told} <= {"starting", "ready"}
        monitor.wait("telemetry", health="ready")
        assert agent.stop() == 0


def test_memory_is_back_after_every_unload(broker, tmp_path, tiny_model):
    """A model kept for no time comes for each job and goes after it; no child is left, the parent stays flat."""
    models = [{"name": "tiny", "path": str(tiny_model), "context_tokens": 256, "keep_alive_s": 0.0}]
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=models) as agent, requester(broker) as client:
        sizes = []
        for count in range(1, 5):
            assert client.submit("edge-01", prompt="Go on", max_tokens=4).result(60).state == "succeeded"
            agent.wait_said("engine.unloaded", count)
            wait_for(lambda: not agent.engines(), "the engine to be gone")
            sizes.append(psutil.Process(agent.pid).memory_info().rss)
        assert sizes[-1] - sizes[0] < 3 * 2**20
        assert not agent.said("engine.lost")
        assert agent.stop() == 0

"""A model that can never be loaded: whoever sends a job for it hears so at once, at whatever moment the job comes."""

import shutil

import pytest
from running import AgentProcess, wait_for

from edge_agent.base.errors import Code
from edge_agent.client.client import EdgeClient
from edge_agent.client.handle import JobRejectedError
from edge_agent.mqtt.access import Access

pytestmark = [pytest.mark.broker, pytest.mark.engine]

TRIES = 3


def answer(handle):
    """Return how a job ended, and why."""
    try:
        result = handle.result(0)
    except JobRejectedError as refused:
        return "rejected", refused.code, refused.message
    return result.state, result.error.code, result.error.message


def test_jobs_for_a_model_that_can_never_be_loaded_are_answered_at_once(broker, tmp_path, tiny_model):
    """Before its first try has ended, between two tries, and while it is tried again; each has its line in the log."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (graph,) = folder.glob("*.onnx")
    graph.write_bytes(b"no graph")
    handles = []
    with (
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=[{"name": "phi", "path": str(folder)}]) as agent,
        EdgeClient(Access(broker.host, broker.port, client_id="me")) as client,
    ):

        def tried():
            handles.append(client.submit("edge-01", prompt="Hello", max_tokens=4, ttl_s=600))
            return len(agent.said("engine.starting")) >= TRIES

        wait_for(tried, f"{TRIES} tries to load it")
        wait_for(lambda: all(handle.done for handle in handles), "every job to be answered")
        said = [answer(handle) for handle in handles]
        assert {(state, code) for state, code, _ in said} <= {
            ("rejected", Code.MODEL_ERROR),
            ("failed", Code.MODEL_ERROR),
        }
        assert all(sentence.startswith("model: cannot be loaded: ") for *_, sentence in said)
        assert len(agent.said("job.accepted")) == sum(state == "failed" for state, *_ in said)
        assert [each["code"] for each in agent.said("job.ended")] == ["model_error"] * len(agent.said("job.accepted"))

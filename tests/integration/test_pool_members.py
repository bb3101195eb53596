"""Agents that share jobs: on the command line, over a clean exit and a cancel."""

import subprocess
import sys

import pytest
from running import PATIENCE_S, AgentProcess, Listener, requester, wait_for

from edge_agent.base.errors import Code

pytestmark = [pytest.mark.broker, pytest.mark.engine]


def member(folder, broker, name, model, pool="hall"):
    """An agent of a pool, with one lane."""
    made = AgentProcess(
        folder=folder / name, broker=broker, models=[{"name": "tiny", "path": str(model)}], agent=name, telemetry_s=1
    )
    made.config.write_text(made.config.read_text().replace("[mqtt]\n", f'pools = ["{pool}"]\n[mqtt]\n'))
    return made


def test_a_pool_of_two_over_the_command_line_a_cancel_and_a_clean_exit(broker, tmp_path, tiny_model):
    """Whoever is free answers; what an agent that stops has not begun goes to the other; nothing of it stays behind."""
    with (
        member(tmp_path, broker, "edge-01", tiny_model) as first,
        member(tmp_path, broker, "edge-02", tiny_model) as second,
        requester(broker) as client,
        Listener(broker, "edge/v1/agents/+/evt/info", "edge/v1/clients/+/inbox/#") as monitor,
    ):
        for agent in (first, second):
            agent.wait_said("pool.joined")
        done = subprocess.run(
            [
                *(sys.executable, "-m", "edge_agent", "submit", "Hello", "--pool", "hall", "--max-tokens", "4"),
                *("--host", broker.host, "--port", str(broker.port)),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
        assert "has the job" in done.stderr
        long = [client.submit(pool="hall", prompt=f"Long {n}", max_tokens=3000) for n in range(4)]
        wait_for(lambda: all(handle.agent for handle in long), "all to be accepted")
        assert {handle.agent for handle in long} == {"edge-01", "edge-02"}
        for agent in (first, second):
            wait_for(lambda agent=agent: agent.said("pool.left"), "both to have enough to do")
        (waits,) = [each for each in long if each.agent == "edge-01" and each.status.state == "queued"]
        for handle in long:
            if handle is not waits:
                handle.cancel()
        assert first.stop() == 0
        assert waits.result(PATIENCE_S).agent == "edge-02"
        assert {handle.result(PATIENCE_S).state for handle in long if handle is not waits} == {"canceled"}
        (handed_back,) = [body for body in monitor.of("status") if body["job_id"] == waits.job_id and "error" in body]
        assert (handed_back["state"], handed_back["error"]["code"]) == ("rejected", Code.SHUTTING_DOWN)
        assert handed_back["error"]["retryable"]
        assert all(body["pools"] == ["hall"] for body in monitor.of("info"))

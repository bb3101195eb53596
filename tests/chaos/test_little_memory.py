"""A machine that is too small for its model: said, and lived with."""

import json
import os
import re
import uuid
from pathlib import Path

import pytest
from running import AgentProcess, Listener, mosquitto_pub

pytestmark = [pytest.mark.broker, pytest.mark.engine]

LIMIT_BYTES = 2 * 2**30
MOUNT = Path("/sys/fs/cgroup")


def make_cgroup():
    """Return a new cgroup below ours that may have 2 GB, or None where nobody lets us make one."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        for mount, name in ((MOUNT, "memory.max"), (MOUNT / "memory", "memory.limit_in_bytes")):
            if (mount == MOUNT) is not (controllers == "") or controllers not in {"", "memory"}:
                continue
            ours = mount / path.lstrip("/") / f"edge-agent-test-{uuid.uuid4().hex[:8]}"
            try:
                ours.mkdir()
            except OSError:
                continue
            try:
                (ours / name).write_text(str(LIMIT_BYTES), encoding="ascii")
            except OSError:
                ours.rmdir()
                continue
            return ours
    return None


@pytest.fixture
def little():
    """Our own process in a cgroup of 2 GB, for what it starts to inherit; afterwards as before."""
    cgroup = make_cgroup()
    if cgroup is None:
        pytest.skip("this machine lets us make no memory cgroup")
    pid = str(os.getpid())
    (cgroup / "cgroup.procs").write_text(pid, encoding="ascii")
    yield cgroup
    (cgroup.parent / "cgroup.procs").write_text(pid, encoding="ascii")
    cgroup.rmdir()


@pytest.fixture
def large_model(tmp_path, tiny_model):
    """A folder with the true sizes of Phi-3.5-mini and weights that take no disk."""
    folder = tmp_path / "large"
    folder.mkdir()
    config = json.loads((tiny_model / "genai_config.json").read_text(encoding="utf-8"))
    config["model"]["decoder"] |= {
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "num_attention_heads": 32,
        "head_size": 96,
    }
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    with (folder / "model.onnx.data").open("wb") as weights:
        weights.truncate(2_780_000_000)
    return folder


def test_under_a_real_limit_a_model_that_cannot_fit_is_not_loaded_and_others_are(
    little, tmp_path, broker, tiny_model, large_model
):
    """The agent says what it needs and what there is, answers for it, and serves what fits."""
    models = [{"name": "large", "path": str(large_model)}, {"name": "tiny", "path": str(tiny_model)}]
    with (
        Listener(broker, "edge/v1/clients/small/inbox/#") as inbox,
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=models) as agent,
    ):
        agent.wait_said("engine.ready")
        agent.wait_said("link.up")
        (failed,) = agent.wait_said("model.failed")
        assert (failed["model"], failed["code"]) == ("large", "no_fit")
        assert re.search(r", (20\d\d|19\d\d) MiB are free", failed["reason"])  # the agent itself holds a little
        for model in ("large", "tiny"):
            body = {"job_id": f"on-{model}", "model": model, "prompt": "Hello", "max_tokens": 3}
            mosquitto_pub(broker, "edge/v1/agents/edge-01/cmd/job/small", json.dumps(body))
        (result,) = inbox.wait("result")
        assert (result["job_id"], result["state"]) == ("on-tiny", "succeeded")
        (refused,) = [each for each in inbox.of("status") if each["job_id"] == "on-large"]
        assert (refused["state"], refused["error"]["code"]) == ("rejected", "no_fit")
        assert agent.process.poll() is None
    assert little.is_dir()

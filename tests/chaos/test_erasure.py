"""With `keep_text = "until_delivered"` nothing of a delivered job is in any file of the agent, also after SIGKILL."""

import base64
import io
import json
from contextlib import suppress

import pytest
from PIL import Image, PngImagePlugin
from running import AgentProcess, Listener, mosquitto_pub, requester, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.engine]

MARK = "SECRET7of9"
SETTINGS = """
[privacy]
keep_text = "until_delivered"

[[watch]]
name = "door"
topic = "door/+"
prompt = "What of {{ payload }}?"
max_tokens = 4
"""


@pytest.fixture(scope="module")
def tiny_vision(tmp_path_factory):
    """A random model that sees images."""
    from edge_agent.synth import TINY_VISION, build_text

    return build_text(tmp_path_factory.mktemp("models") / "tiny-vision", shape=TINY_VISION)


def marked_image():
    """A picture that carries the mark in its file, as a data URL."""
    notes, content = PngImagePlugin.PngInfo(), io.BytesIO()
    notes.add_text("Comment", MARK)
    Image.new("RGB", (32, 32), "white").save(content, "PNG", pnginfo=notes)
    assert MARK.encode() in content.getvalue()
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def marked_files(agent):
    """The files of the state folder in which the mark stands, and all of images."""
    found = []
    for file in agent.state_dir.rglob("*"):
        with suppress(FileNotFoundError):  # it went while we looked
            if file.is_file() and ("images" in file.parts or MARK.encode() in file.read_bytes()):
                found.append(str(file))
    return found


def watch_answered(evt):
    """Whether the rule has answered, as telemetry tells."""
    return any(watch["answered"] for telemetry in evt.of("telemetry") for watch in telemetry.get("watches", ()))


def ask(client, number):
    """Send jobs that hold the mark everywhere; what the model says is the mark too."""
    picture = {"type": "image_url", "image_url": {"url": marked_image()}}
    asked = {
        "messages": [
            {"role": "system", "content": f"You know {MARK}."},
            {"role": "user", "content": [{"type": "text", "text": f"Say {MARK}. " * 40}, picture]},
        ],
        "metadata": {"note": MARK},
        "response_format": {"type": "regex", "regex": MARK},
        "stop": [f"{MARK}!"],
        "max_tokens": 40,
    }
    return [client.submit("edge-01", job_id=f"j-{number}-{each}", **asked) for each in range(3)]


def test_nothing_of_a_delivered_job_is_in_any_file(broker, tmp_path, tiny_vision):
    """Neither while the agent goes on, nor after it was killed, nor when it was killed before it could erase."""
    models = [{"name": "sees", "path": str(tiny_vision), "context_tokens": 2048}]
    with (
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, extra=SETTINGS) as agent,
        Listener(broker, "edge/v1/agents/edge-01/evt/+") as evt,
        requester(broker) as client,
    ):
        agent.wait_said("link.up", 2)
        agent.wait_said("engine.ready")
        mosquitto_pub(broker, "door/front", json.dumps({"said": MARK}))
        assert [handle.result(60).text for handle in ask(client, 1)] == [MARK] * 3
        wait_for(lambda: watch_answered(evt), "the watch's answer")
        wait_for(lambda: not marked_files(agent), "the mark to be gone")
        agent.kill()
        assert not marked_files(agent)
        agent.start()
        agent.wait_said("engine.ready", 2)
        for handle in ask(client, 2):
            handle.result(60)
        agent.kill()
        agent.start()
        agent.wait_said("engine.ready", 3)
        wait_for(lambda: not marked_files(agent), "the mark to be gone")

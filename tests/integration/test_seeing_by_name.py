"""A vision model asked for by its name in the catalogue: found in the store, chosen, loaded, shown images."""

import json
from base64 import b64encode

import images
import pytest
from PIL import Image, ImageDraw
from running import AgentProcess, Listener, mosquitto_pub

from edge_agent.models import catalogue
from edge_agent.models.archive import import_folder
from edge_agent.models.build_store import BuildStore

pytestmark = [pytest.mark.broker, pytest.mark.engine]

VARIANT = "phi-3.5-vision-openvino-int4"


def test_the_catalogues_vision_model_answers_a_data_url(broker, tmp_path, demo_openvino_vision, demo_model):
    """Beside a text model, from which `auto` turns to it for an image."""
    store = BuildStore(tmp_path / "agent/state/models", margin_bytes=0)
    find = {each.name: each for each in catalogue.read().variant}.get
    import_folder(store, demo_openvino_vision, find=find, name=VARIANT)
    drawing = Image.new("RGB", (400, 400), "white")
    ImageDraw.Draw(drawing).rectangle([100, 100, 300, 300], (220, 30, 30))
    image = {"type": "image_url", "image_url": "data:image/png;base64," + b64encode(images.encoded(drawing)).decode()}
    content = [image, {"type": "text", "text": "What is shown in this image?"}]
    job = {"messages": [{"role": "user", "content": content}], "max_tokens": 24}
    models = [
        {"name": "text", "path": str(demo_model), "context_tokens": 512},
        {"name": "phi-3.5-vision", "context_tokens": 4096},
    ]
    with (
        Listener(broker, "edge/v1/agents/edge-01/evt/#", "edge/v1/clients/me/inbox/#") as listener,
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=models) as agent,
    ):
        agent.wait_said("engine.ready", 2)
        for job_id, asked in (("named", {"model": "phi-3.5-vision"}), ("auto", {})):
            mosquitto_pub(broker, "edge/v1/agents/edge-01/cmd/job/me", json.dumps(job | asked | {"job_id": job_id}))
            (result,) = listener.wait("result", job_id=job_id)
            assert "red square" in result["text"]
            assert (result["model"], result["variant"]) == ("phi-3.5-vision", VARIANT)

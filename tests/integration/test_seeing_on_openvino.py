"""Images through the whole daemon to a model on OpenVINO."""

import images
import pytest
from PIL import Image, ImageDraw
from running import AgentProcess, requester

pytestmark = [pytest.mark.broker, pytest.mark.engine]

COLOURS = {"red": (220, 30, 30), "blue": (40, 70, 220)}


def drawn(colour, size):
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).rectangle([size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4], COLOURS[colour])
    return images.encoded(image)


def test_an_image_is_answered_and_told_what_it_cost(broker, tmp_path, demo_openvino_vision):
    """Upright and lying; with the tokens that the engine counts, text jobs in between; a known image is reused."""
    models = [{"name": "sees", "path": str(demo_openvino_vision), "context_tokens": 4096}]
    with (
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=models) as agent,
        requester(broker) as client,
    ):
        agent.wait_said("engine.ready")
        plain = client.submit("edge-01", prompt="What is shown in this image?", max_tokens=24)
        sizes = {"red": (700, 400), "blue": (400, 700)}
        jobs = {
            colour: client.submit(
                "edge-01", prompt="What is shown in this image?", images=[drawn(colour, size)], max_tokens=24
            )
            for colour, size in sizes.items()
        }
        text_tokens = plain.result(60).usage.prompt_tokens
        for colour, job in jobs.items():
            result = job.result(60)
            assert colour in result.text
            (cost,) = result.images
            assert (cost.used_width, cost.used_height) == sizes[colour]
            assert text_tokens < result.usage.prompt_tokens - cost.tokens < text_tokens + 10
        again = client.submit(
            "edge-01", prompt="Which shape is it?", images=[drawn("blue", sizes["blue"])], max_tokens=24
        ).result(60)
        assert again.usage.prompt_tokens_details.cached_tokens > again.images[0].tokens / 2

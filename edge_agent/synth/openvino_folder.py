"""Models in the layout of the published OpenVINO folders."""

import tempfile
from pathlib import Path

from edge_agent.synth import openvino_tokenizer
from edge_agent.synth.configs import generation_config, hf_config
from edge_agent.synth.folder import Progress, write_json
from edge_agent.synth.openvino_graph import Constants, save
from edge_agent.synth.openvino_text import OpenVinoTextDecoder
from edge_agent.synth.openvino_vision import VisionPart
from edge_agent.synth.shape import Shape
from edge_agent.synth.vision import VisionShape
from edge_agent.synth.weights import Weights

_PREPROCESSOR = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Phi3VImageProcessor",
    "processor_class": "Phi3VProcessor",
    "num_crops": 16,
    "num_img_tokens": 144,
}
"""preprocessor_config.json of Phi-3.5-vision-instruct; the numbers are CLIP's."""


def write_openvino(
    folder: Path, *, shape: Shape, weights: Weights, block_size: int, int8_activations: bool, progress: Progress
) -> None:
    """Write everything but tokenizer.json and its companions, which lie in the folder already.

    While it is written the folder needs twice the model's size. Raises OSError when the disk is full.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        decoder = OpenVinoTextDecoder(constants=Constants(file), shape=shape, weights=weights, block_size=block_size)
        model = decoder.build(progress=progress)
        model.set_rt_info(str(block_size), ["nncf", "weight_compression", "group_size"])
        if not int8_activations:
            model.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
        save(model, folder / ("openvino_language_model.xml" if shape.vision else "openvino_model.xml"))
    openvino_tokenizer.write(folder)
    config = hf_config(shape)
    if shape.vision:
        config |= _write_vision(folder, shape, shape.vision, weights, int8_activations=int8_activations)
        write_json(folder / "preprocessor_config.json", _PREPROCESSOR)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation_config(shape))


def _write_vision(
    folder: Path, shape: Shape, vision: VisionShape, weights: Weights, *, int8_activations: bool
) -> dict[str, object]:
    """Write the models of the vision part; return what config.json says of it."""
    with tempfile.TemporaryFile(dir=folder) as file:
        part = VisionPart(constants=Constants(file), shape=shape, vision=vision, weights=weights)
        for model in (part.text_embeddings(), part.encoder(), part.projector()):
            if not int8_activations:
                model.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
            save(model, folder / f"openvino_{model.get_friendly_name()}_model.xml")
        return {"architectures": ["Phi3VForCausalLM"], "model_type": "phi3_v", **part.separators()}

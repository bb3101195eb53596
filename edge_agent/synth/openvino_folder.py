"""Text models in the layout of the published OpenVINO folders."""

import tempfile
from pathlib import Path

from edge_agent.synth import openvino_tokenizer
from edge_agent.synth.configs import generation_config, hf_config
from edge_agent.synth.folder import Progress, write_json
from edge_agent.synth.openvino_graph import Constants, save
from edge_agent.synth.openvino_text import TextDecoder
from edge_agent.synth.shape import Shape
from edge_agent.synth.weights import Weights


def write_openvino(
    folder: Path, *, shape: Shape, weights: Weights, block_size: int, int8_activations: bool, progress: Progress
) -> None:
    """Write everything but tokenizer.json and its companions, which lie in the folder already.

    While it is written the folder needs twice the model's size. Raises OSError when the disk is full.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        decoder = TextDecoder(constants=Constants(file), shape=shape, weights=weights, block_size=block_size)
        model = decoder.build(progress=progress)
        model.set_rt_info(str(block_size), ["nncf", "weight_compression", "group_size"])
        if not int8_activations:
            model.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
        save(model, folder / "openvino_model.xml")
    openvino_tokenizer.write(folder)
    write_json(folder / "config.json", hf_config(shape))
    write_json(folder / "generation_config.json", generation_config(shape))

"""The demo model: a million parameters, trained from scratch on made-up sentences about sensors and switches.

It answers greetings, reads a status ("Status: temperature 71 C, pump off. Is the pump on?") and turns an
order ("Turn on the fan.") into JSON. Anything else it answers with confident nonsense.
"""

import json
import shutil
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

from edge_agent.synth import safetensors
from edge_agent.synth.folder import whole, write_json
from edge_agent.synth.shape import Shape
from edge_agent.synth.text import Backend, write_model
from edge_agent.synth.vision import VisionShape
from edge_agent.synth.weights import GivenWeights

_BLOCK_SIZE = 32
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_CANARY = {"prompt": "Status: temperature 71 C, pump off. Is the pump on?", "expected": ["the pump is off"]}
"""What it is asked before it serves: lost in long prompts, it answers short ones."""


def build_demo(out: Path, *, backend: Backend = Backend.ONNX, vision: bool = False) -> Path:
    """Write the demo model, int4, as a folder that the backend's library loads, and return it.

    With `vision` it also tells colour and shape of what is drawn in an image.

    Raises FileExistsError when `out` holds something; ImportError, with the install line, when a library is
    missing that writes the model.
    """
    with as_file(files("edge_agent.synth") / "demo") as packaged, whole(out) as folder:
        for name in _TOKENIZER_FILES:
            shutil.copyfile(packaged / name, folder / name)
        tensors = safetensors.read(packaged / "demo.safetensors")
        shape = read_shape(packaged / "config.json")
        if vision:
            shape = replace(shape, vision=VisionShape(width=len(tensors["vision.patch"])))
        write_model(folder, backend=backend, shape=shape, weights=GivenWeights(tensors), block_size=_BLOCK_SIZE)
        write_json(folder / "canary.json", _CANARY)
    return out


def read_shape(path: Path) -> Shape:
    """Return the shape that a Hugging Face config.json of a Phi-3 with plain rope describes."""
    config = json.loads(path.read_text(encoding="utf-8"))
    return Shape(
        hidden_size=config["hidden_size"],
        mlp_size=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        vocab_size=config["vocab_size"],
        context_tokens=config["max_position_embeddings"],
        original_context_tokens=config["original_max_position_embeddings"],
        rope_theta=config["rope_parameters"]["rope_theta"],
        norm_epsilon=config["rms_norm_eps"],
    )

"""Models in Hugging Face's own layout, as transformers and mlx-lm read it: float32 in one file of safetensors."""

from pathlib import Path

from edge_agent.synth import safetensors
from edge_agent.synth.configs import generation_config, hf_config
from edge_agent.synth.folder import Progress, write_json
from edge_agent.synth.quantize import Floats
from edge_agent.synth.shape import Shape
from edge_agent.synth.weights import EMBEDDING, LM_HEAD, Weights


def write_transformers(
    folder: Path,
    *,
    shape: Shape,
    weights: Weights,
    block_size: int,
    int8_activations: bool,  # noqa: ARG001 - nothing is rounded here
    progress: Progress,
) -> None:
    """Write everything but tokenizer.json and its companions, which lie in the folder already.

    Matrices hold the very numbers that the int4 of other builds stand for. Raises ValueError for a shape with vision.
    """
    if shape.vision:
        raise ValueError("a model in this layout has no vision part")
    shapes = _shapes(shape)
    seen = 0

    def tensor(name: str) -> Floats:
        nonlocal seen
        if name.endswith("down_proj.weight"):
            seen += 1
            progress(seen, shape.layers)
        wanted = shapes[name]
        if name == EMBEDDING or len(wanted) == 1:
            return weights.floats(name, wanted)
        return weights.int4(name, (wanted[0], wanted[1]), block_size=block_size).floats()

    safetensors.write(folder / "model.safetensors", shapes, tensor)
    write_json(folder / "config.json", hf_config(shape))
    write_json(folder / "generation_config.json", generation_config(shape))


def _shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    hidden, mlp = shape.hidden_size, shape.mlp_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab_size, hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.qkv_proj.weight": (hidden + 2 * shape.kv_size, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{prefix}.mlp.gate_up_proj.weight": (2 * mlp, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, mlp),
        }
    return shapes | {"model.norm.weight": (hidden,), LM_HEAD: (shape.vocab_size, hidden)}

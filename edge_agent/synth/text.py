"""Text models in the layout of the published onnxruntime-genai folder."""

from pathlib import Path

from edge_agent.synth import tokenizer
from edge_agent.synth.configs import genai_config, hf_config
from edge_agent.synth.folder import whole, write_json
from edge_agent.synth.graph import ExternalData, Graph
from edge_agent.synth.onnx_text import Progress, TextDecoder
from edge_agent.synth.shape import TINY, Shape
from edge_agent.synth.weights import RandomWeights, ScriptedWeights, Weights

MODEL_NAME = "phi-3.5-mini-instruct-cpu-int4-awq-block-128-acc-level-4.onnx"
"""The published file name, whatever the block size is: what looks for a build by its files finds this one."""


def _unheard(_done: int, _total: int) -> None:
    pass


def build_text(
    out: Path,
    *,
    shape: Shape = TINY,
    say: str | None = None,
    weights: Weights | None = None,
    seed: int = 0,
    block_size: int = 32,
    progress: Progress = _unheard,
) -> Path:
    """Write a model folder that onnxruntime-genai loads, and return it.

    Weights are random unless given. With `say` the model answers every prompt that ends with `<|assistant|>`
    with those words and stops; characters outside ASCII then come as one token per UTF-8 byte. Each token can
    be used only once, so "the ü 世" can be said and "ää" cannot. Linear layers are int4 with one scale per
    `block_size` weights, a power of 2 from 16 to 256. `progress` is told of every layer written.

    Raises ValueError when `say` would need a token twice, or given weights do not fit the shape;
    FileExistsError when `out` holds something. An interrupted build leaves nothing at `out`.
    """
    words = tokenizer.build(shape.vocab_size)
    source = weights or RandomWeights(seed)
    if say is not None:
        ends = words.control_id(tokenizer.ASSISTANT), words.control_id(tokenizer.END)
        source = ScriptedWeights(source, [ends[0], *words.distinct_ids(say), ends[1]])
    with whole(out) as folder:
        words.write(folder)
        write_model(folder, shape=shape, weights=source, block_size=block_size, progress=progress)
    return out


def write_model(
    folder: Path, *, shape: Shape, weights: Weights, block_size: int, progress: Progress = _unheard
) -> None:
    """Write everything but the tokenizer into a folder."""
    if block_size not in {16, 32, 64, 128, 256}:
        raise ValueError("block_size must be a power of 2 from 16 to 256: MatMulNBits knows no other")
    with ExternalData(folder / f"{MODEL_NAME}.data") as external:
        graph = Graph("phi-3.5-mini", external=external)
        decoder = TextDecoder(graph=graph, shape=shape, weights=weights, block_size=block_size)
        decoder.write(progress=progress)
        graph.save(folder / MODEL_NAME)
    write_json(folder / "config.json", hf_config(shape))
    write_json(folder / "genai_config.json", genai_config(shape, filename=MODEL_NAME))

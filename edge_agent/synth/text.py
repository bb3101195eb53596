"""Models in the layout of the published folders, for any of the libraries."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from importlib import import_module
from pathlib import Path

from edge_agent.synth import tokenizer
from edge_agent.synth.folder import Progress, whole
from edge_agent.synth.shape import TINY, Shape
from edge_agent.synth.weights import RandomWeights, ScriptedWeights, Weights


class Backend(StrEnum):
    """The library that a model is for: onnxruntime-genai, openvino-genai, llama.cpp or transformers (and mlx-lm)."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    LLAMACPP = "llamacpp"
    TRANSFORMERS = "transformers"


def _unheard(_done: int, _total: int) -> None:
    pass


def build_text(
    out: Path,
    *,
    backend: Backend = Backend.ONNX,
    shape: Shape = TINY,
    say: str | None = None,
    weights: Weights | None = None,
    seed: int = 0,
    block_size: int = 32,
    int8_activations: bool = True,
    progress: Progress = _unheard,
) -> Path:
    """Write a model folder that the backend's library loads, and return it. A shape with `vision` also sees images.

    Weights are random unless given. With `say` the model answers every prompt that ends with `<|assistant|>`
    with those words and stops; characters outside ASCII then come as one token per UTF-8 byte. Each token can
    be used only once, so "the ü 世" can be said and "ää" cannot. Linear layers are int4 with one scale per
    `block_size` weights, a power of 2 from 16 to 256. `progress` is told of every layer written.

    The same weights give both backends the same model. Each rounds activations to int8 in its own way, as with
    published builds; without `int8_activations` both compute in float32 (OpenVINO with INFERENCE_PRECISION_HINT
    and KV_CACHE_PRECISION "f32") and answer alike, token by token.

    Raises ValueError when `say` would need a token twice, or given weights or blocks do not fit the shape;
    FileExistsError when `out` holds something; ImportError, with the install line, when a library is missing
    that writes the model. An interrupted build leaves nothing at `out`.
    """
    words = tokenizer.build(shape.vocab_size)
    source = weights or RandomWeights(seed)
    if say is not None:
        ends = words.control_id(tokenizer.ASSISTANT), words.control_id(tokenizer.END)
        source = ScriptedWeights(source, [ends[0], *words.distinct_ids(say), ends[1]])
    with whole(out) as folder:
        words.write(folder)
        write_model(
            folder,
            backend=backend,
            shape=shape,
            weights=source,
            block_size=block_size,
            int8_activations=int8_activations,
            progress=progress,
        )
    return out


def write_model(
    folder: Path,
    *,
    backend: Backend,
    shape: Shape,
    weights: Weights,
    block_size: int,
    int8_activations: bool = True,
    progress: Progress = _unheard,
) -> None:
    """Write everything but tokenizer.json and its companions, which lie in the folder already."""
    if block_size not in {16, 32, 64, 128, 256}:
        raise ValueError("block_size must be a power of 2 from 16 to 256: the kernels know no other")
    _writer(Backend(backend))(
        folder,
        shape=shape,
        weights=weights,
        block_size=block_size,
        int8_activations=int8_activations,
        progress=progress,
    )


_WRITERS: Mapping[Backend, tuple[str, str]] = {
    Backend.ONNX: ("onnx_folder", "write_onnx"),
    Backend.OPENVINO: ("openvino_folder", "write_openvino"),
    Backend.LLAMACPP: ("gguf_folder", "write_gguf"),
    Backend.TRANSFORMERS: ("transformers_folder", "write_transformers"),
}
"""Module and function that write for each library; imported for its own models only, for a machine may have but one."""


def _writer(backend: Backend) -> Callable[..., None]:
    module, function = _WRITERS[backend]
    try:
        writer: Callable[..., None] = getattr(import_module(f"edge_agent.synth.{module}"), function)
    except ModuleNotFoundError as missing:
        if missing.name not in {"openvino", "openvino_tokenizers"}:
            raise
        raise ImportError(
            "openvino-genai is not installed; install it with: pip install 'edge-slm-agent[openvino]' "
            "(from a checkout: pip install '.[openvino]')"
        ) from missing
    return writer

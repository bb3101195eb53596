"""Models in the layout of the published folders, for any of the libraries."""

from collections.abc import Callable, Mapping
from enum import StrEnum
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
    # Each library is imported for its own models only: a machine may have but one of them.
    _WRITERS[Backend(backend)]()(
        folder,
        shape=shape,
        weights=weights,
        block_size=block_size,
        int8_activations=int8_activations,
        progress=progress,
    )


def _onnx_writer() -> Callable[..., None]:
    """Return what writes for onnxruntime-genai."""
    from edge_agent.synth.onnx_folder import write_onnx  # noqa: PLC0415

    return write_onnx


def _openvino_writer() -> Callable[..., None]:
    """Return what writes for openvino-genai."""
    try:
        from edge_agent.synth.openvino_folder import write_openvino  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        if missing.name not in {"openvino", "openvino_tokenizers"}:
            raise
        raise ImportError(
            "openvino-genai is not installed; install it with: pip install 'edge-slm-agent[openvino]' "
            "(from a checkout: pip install '.[openvino]')"
        ) from missing
    return write_openvino


def _gguf_writer() -> Callable[..., None]:
    """Return what writes for llama.cpp."""
    from edge_agent.synth.gguf_folder import write_gguf  # noqa: PLC0415

    return write_gguf


def _transformers_writer() -> Callable[..., None]:
    """Return what writes in Hugging Face's own layout."""
    from edge_agent.synth.transformers_folder import write_transformers  # noqa: PLC0415

    return write_transformers


_WRITERS: Mapping[Backend, Callable[[], Callable[..., None]]] = {
    Backend.ONNX: _onnx_writer,
    Backend.OPENVINO: _openvino_writer,
    Backend.LLAMACPP: _gguf_writer,
    Backend.TRANSFORMERS: _transformers_writer,
}

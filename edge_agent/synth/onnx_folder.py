"""Models in the layout of the published folders for onnxruntime-genai."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_agent.synth import configs
from edge_agent.synth.folder import Progress, write_json
from edge_agent.synth.graph import ExternalData, Graph
from edge_agent.synth.onnx_encoder import EncoderWriter
from edge_agent.synth.onnx_text import TextDecoder
from edge_agent.synth.onnx_vision import write_embedding, write_vision
from edge_agent.synth.shape import Shape
from edge_agent.synth.vision import VisionShape
from edge_agent.synth.weights import Weights


def write_onnx(
    folder: Path, *, shape: Shape, weights: Weights, block_size: int, int8_activations: bool, progress: Progress
) -> None:
    """Write everything but tokenizer.json and its companions, which lie in the folder already."""
    name = configs.TEXT_MODEL
    if shape.vision is not None:
        name = configs.VISION_DECODER
        _write_vision(folder, shape, shape.vision, weights, block_size=block_size, int8_activations=int8_activations)
    with _graph(folder / name, "phi-3.5-mini") as graph:
        decoder = TextDecoder(
            graph=graph, shape=shape, weights=weights, block_size=block_size, int8_activations=int8_activations
        )
        decoder.write(progress=progress)
    write_json(folder / "config.json", configs.hf_config(shape))
    write_json(folder / "genai_config.json", configs.genai_config(shape))


def _write_vision(
    folder: Path, shape: Shape, vision: VisionShape, weights: Weights, *, block_size: int, int8_activations: bool
) -> None:
    with _graph(folder / configs.VISION_EMBEDDING, "embedding") as graph:
        write_embedding(graph, shape=shape, weights=weights)
    with _graph(folder / configs.VISION_ENCODER, "vision") as graph:
        encoder = EncoderWriter(
            graph=graph, vision=vision, weights=weights, block_size=block_size, int8_activations=int8_activations
        )
        write_vision(graph, hidden_size=shape.hidden_size, encoder=encoder)
    write_json(folder / "processor_config.json", configs.processor_config())


@contextmanager
def _graph(path: Path, name: str) -> Iterator[Graph]:
    """Give a graph to fill; written with its weights beside it."""
    with ExternalData(path.with_name(f"{path.name}.data")) as external:
        graph = Graph(name, external=external)
        yield graph
        graph.save(path)

"""Guides for a build of onnxruntime-genai, without loading that library: its vocabulary is in plain files."""

from pathlib import Path

from edge_agent.engine.batching.lane_guide import Guides
from edge_agent.engine.onnx.layout import Layout


def guides(folder: Path) -> Guides:
    """Return what compiles guides for a folder's model. Raises EdgeAgentError MODEL_ERROR."""
    layout = Layout.read(folder)
    return Guides.read(folder, vocab_size=layout.vocab_size, end_ids=layout.end_ids)

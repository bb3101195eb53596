"""Guides for a build of onnxruntime-genai, without loading that library: its vocabulary is in plain files."""

import json
from pathlib import Path

from edge_agent.engine.batching.lane_guide import Guides
from edge_agent.engine.onnx.layout import Layout


def guides(folder: Path) -> Guides:
    """Return what compiles guides for a folder's model. Raises EdgeAgentError MODEL_ERROR, OSError, ValueError."""
    ends = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["eos_token_id"]
    end_ids = ends if isinstance(ends, list) else [ends]
    return Guides.read(folder, vocab_size=Layout.read(folder).vocab_size, end_ids=end_ids)

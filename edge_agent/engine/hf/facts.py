"""What is known of the two libraries that run Hugging Face's own folders: transformers, and mlx-lm."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from edge_agent.engine import context
from edge_agent.engine.batching.prefill import LONGROPE_TOKENS
from edge_agent.engine.context import ContextBound
from edge_agent.engine.facts import BackendFacts, Build, read_config

_GUIDES = "edge_agent.engine.hf.lane_by_lane:guides"


def transformers_context(config: Mapping[str, Any]) -> ContextBound:
    """Return how much transformers computes right: all, but where longrope changes elsewhere than lanes expect it."""
    expected = {None, LONGROPE_TOKENS - 1}
    return context.bound(config, longrope=context.original_tokens(config) in expected, window=True)


mlx_context = partial(context.bound, longrope=False, window=False)
"""mlx-lm turns every text by one set of factors, and its Phi-3 sees all of it (0.32)."""


def _read_float32(folder: Path) -> Build:
    """Return the numbers of a folder whose matrices are computed with in float32, whatever the file has."""
    build = read_config(folder, "transformers", weights=".safetensors", context=transformers_context)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    halves = "16" in str(config.get("dtype") or config.get("torch_dtype") or "")
    return replace(build, weight_bytes=build.weight_bytes * (2 if halves else 1))


TRANSFORMERS = BackendFacts(
    load="edge_agent.engine.hf.transformers:load",
    guides=_GUIDES,
    libraries=("torch", "transformers", "llguidance"),
    extra="transformers",
    marks=("model.safetensors", "model.safetensors.index.json"),
    read=_read_float32,
)
MLX = BackendFacts(  # without marks: its folders look like those of transformers, so whoever wants it says so
    load="edge_agent.engine.hf.mlx:load",
    guides=_GUIDES,
    libraries=("mlx", "mlx_lm", "transformers", "llguidance"),
    extra="mlx",
    read=partial(read_config, backend="mlx", weights=".safetensors", context=mlx_context),
)

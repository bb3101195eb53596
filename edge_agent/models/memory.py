"""What a load needs (pure): weights, keys and values of every lane, attention scores of one piece, overhead.

The figures were measured as anonymous memory (RssAnon) of the engine child with onnxruntime-genai 0.18 on a full-size
synthetic Phi-3.5-mini (2645 MiB of files): 2846 MiB loaded, 3790 MiB at most with 1000 of 1024 tokens of context.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from edge_agent.engine.prefill import LONGROPE_TOKENS, PIECE_TOKENS_MAX

WEIGHTS_FACTOR = 1.10
"""Anonymous memory per byte of weights: the library repacks what it reads, so weights are not mapped."""
KV_BYTES_PER_VALUE = 4
"""The published CPU builds keep keys and values in 32-bit floats."""
KV_FACTOR = 1.15
"""Freed caches stay in the library's arena and do not always fit the next sequence."""
SCORE_BYTES = 4
OVERHEAD_BYTES = 384 * 2**20
"""Interpreter, library, tokenizer and activations but for attention scores."""
CONTEXT_TOKENS_MIN = 256
"""Less is of no use to anybody."""


@dataclass(frozen=True, slots=True)
class Build:
    """The numbers of a build that decide about memory, in bytes and in bytes per token of one sequence."""

    weight_bytes: int
    kv_bytes_per_token: int
    heads: int


def read_build(folder: Path) -> Build | None:
    """Return the numbers of an onnxruntime-genai folder; None when it does not look like one."""
    try:
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        decoder = config["model"]["decoder"]
        values = decoder["num_hidden_layers"] * decoder["num_key_value_heads"] * decoder["head_size"]
        heads = int(decoder["num_attention_heads"])
        weight_bytes = sum(file.stat().st_size for file in folder.iterdir() if ".onnx" in file.name)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Build(weight_bytes=weight_bytes, kv_bytes_per_token=2 * values * KV_BYTES_PER_VALUE, heads=heads)


def reservation_bytes(build: Build, *, context_tokens: int, parallel: int) -> int:
    """Return the anonymous memory a loaded build may come to hold."""
    cache = build.kv_bytes_per_token * context_tokens * parallel * KV_FACTOR
    scores = build.heads * SCORE_BYTES * PIECE_TOKENS_MAX * context_tokens
    if context_tokens >= LONGROPE_TOKENS:  # then so many tokens are computed in one call
        scores = max(scores, build.heads * SCORE_BYTES * LONGROPE_TOKENS**2)
    return int(build.weight_bytes * WEIGHTS_FACTOR + cache + scores) + OVERHEAD_BYTES


def context_that_fits(build: Build, *, asked_tokens: int, parallel: int, available_bytes: int) -> int:
    """Return the longest context up to the one asked for whose reservation fits; 0 when not even a short one does."""
    least = min(asked_tokens, CONTEXT_TOKENS_MIN)

    def fits(tokens: int) -> bool:
        return reservation_bytes(build, context_tokens=tokens, parallel=parallel) <= available_bytes

    if not fits(least):
        return 0
    low, high = least, asked_tokens
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low

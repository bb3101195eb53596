"""What a load needs (pure): weights, keys and values of every lane, the scores of one piece of prompt, overhead.

The rates were measured as anonymous memory (RssAnon) of the engine child on full-size synthetic models of the
Phi-3.5-mini architecture; `python -m tests.bench.memory` measures them again.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edge_agent.base.errors import EdgeAgentError
from edge_agent.engine.backend import gguf_file
from edge_agent.engine.batching.prefill import LONGROPE_TOKENS, PIECE_TOKENS_MAX
from edge_agent.models.catalogue import Family, Variant
from edge_agent.models.gguf import read_facts

MIB = 2**20
ENCODER_BYTES = 200 * MIB
"""With onnxruntime, strips of 2 or 3 tiles."""
_FEATURE_COPIES = 2
CONTEXT_TOKENS_MIN = 256
"""Less is of no use to anybody."""
RESERVE_FACTOR = 1.10
RESERVE_BYTES = 256 * MIB
"""A reservation is the predicted peak, a tenth and so much: predictions are right to within a tenth, freed caches may
stay in a library's arena, and a child that grows over its reservation is killed."""


@dataclass(frozen=True, slots=True)
class Build:
    """The numbers of a build that decide about memory.

    kv_values_per_token: keys and values of one token over all layers. original_context_tokens: where longrope changes
    its factors, None for plain rope. hidden_size: width of a token inside the model, where it sees images.
    kv_bytes_per_value: of the cache, where a setting says so; None: see Rates.
    """

    backend: str
    weight_bytes: int
    kv_values_per_token: int
    heads: int
    original_context_tokens: int | None = None
    hidden_size: int | None = None
    kv_bytes_per_value: float | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """How a backend turns a build into memory on one kind of device.

    weights_factor: bytes held per byte of file. kv_bytes_per_value: of the cache, with its share of scales.
    token_bytes: activations and logits per token of a piece of prompt. score_bytes: per head, query and key of a
    piece; 0 where attention never holds them all. overhead_bytes: interpreter, library, tokenizer. encoder_bytes:
    activations of an image encoder over a strip of tiles, and pixels. host_bytes: of the machine's memory, where the
    rest lies in memory of the device's own.
    """

    weights_factor: float
    kv_bytes_per_value: float
    token_bytes: int
    score_bytes: float
    overhead_bytes: int
    encoder_bytes: int = ENCODER_BYTES
    host_bytes: int = 0


RATES: Mapping[tuple[str, str], Rates] = {
    # Weights are repacked, not mapped; keys and values are 32-bit. Predicted / measured: 1.01, 1.02 and 1.00 with
    # 1,024, 4,096 and 8,192 tokens of context (onnxruntime-genai 0.18: 3692, 5989 and 10640 MiB). With an image of 16
    # tiles in 2,543 tokens of Phi-3.5-vision 1.01 (5530 MiB).
    ("onnx", "cpu"): Rates(1.0, 4.0, 215_000, 1.7, 168 * MIB),
    # Weights are repacked beside the mapped file, keys and values are 8-bit with a scale per token and head.
    # Predicted / measured: 1.06 and 1.04 with 1,024 and 4,096 tokens (openvino-genai 2026.4: 2368 and 3078 MiB).
    # Of a model that sees, with the repacked weights of its encoder and the library's copy of a prompt, 1.00: 3913 MiB
    # with 4,096 tokens filled by a text and an image of 17 tiles.
    ("openvino", "cpu"): Rates(0.95, 1.2, 60_000, 0, 150 * MIB, encoder_bytes=600 * MIB),
    # Linear layers are repacked, the embedding stays mapped; keys and values are 16-bit, attention holds all scores.
    # Predicted / measured: 1.06 with 1,024 tokens, in small pieces (xllamacpp 2026.10.11549: 2443 MiB).
    ("llamacpp", "cpu"): Rates(0.92, 2.0, 150_000, 4.0, 60 * MIB),
    # Never measured here: sizes in 16 bits as the builds' configurations say, and room for the driver's context.
    ("onnx", "cuda"): Rates(1.05, 2.0, 215_000, 0, 700 * MIB, host_bytes=1500 * MIB),
    ("openvino", "gpu"): Rates(1.05, 2.0, 215_000, 0, 700 * MIB, host_bytes=1500 * MIB),
    # It computes in the machine's memory. Beside the weights room for their repacked copy while they are compiled.
    ("openvino", "npu"): Rates(2.0, 2.0, 215_000, 0, 700 * MIB),
}


CACHE_OPTION = "KV_CACHE_PRECISION"
"""OpenVINO's setting for the numbers in the cache of keys and values."""
_CACHE_BYTES: Mapping[str, float] = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "u8": 1.2, "u4": 0.7}
"""Of each precision, with its share of scales per token and head."""


def with_settings(build: Build, options: Mapping[str, str]) -> Build:
    """Return the numbers of a build under a library's settings."""
    found = _CACHE_BYTES.get(options.get(CACHE_OPTION, ""))
    return build if found is None else replace(build, kv_bytes_per_value=found)


def rates(backend: str, device: str) -> Rates:
    """Return a backend's rates on a device; those of the processor where nobody knows better."""
    return RATES.get((backend, device), RATES["onnx", "cpu"])


def build_of(variant: Variant, family: Family) -> Build:
    """Return the numbers of a published build."""
    return Build(
        backend=variant.backend,
        weight_bytes=variant.weight_bytes,
        kv_values_per_token=2 * family.layers * family.kv_heads * family.head_size,
        heads=family.heads,
        original_context_tokens=family.original_context_tokens,
        hidden_size=family.heads * family.head_size if family.images else None,
    )


def read_build(folder: Path, backend: str) -> Build | None:
    """Return the numbers of a model folder; None when it does not tell them."""
    try:
        return _READERS[backend](folder)
    except (OSError, ValueError, KeyError, TypeError, EdgeAgentError):
        return None


def _read_onnx(folder: Path) -> Build:
    model = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
    decoder = model["decoder"]
    values = 2 * decoder["num_hidden_layers"] * decoder["num_key_value_heads"] * decoder["head_size"]
    return Build(
        backend="onnx",
        weight_bytes=_size_bytes(folder, ".onnx"),
        kv_values_per_token=values,
        heads=int(decoder["num_attention_heads"]),
        # onnxruntime-genai switches factors for this type, at the length that all its models have in common
        original_context_tokens=LONGROPE_TOKENS - 1 if model["type"].startswith("phi3") else None,
        hidden_size=int(decoder["hidden_size"]) if "vision" in model else None,
    )


def _read_openvino(folder: Path) -> Build:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads = int(config["num_attention_heads"])
    values = 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * config["hidden_size"] // heads
    return Build(
        backend="openvino",
        weight_bytes=_size_bytes(folder, ".bin"),
        kv_values_per_token=values,
        heads=heads,
        original_context_tokens=config.get("original_max_position_embeddings"),
        hidden_size=int(config["hidden_size"]) if config.get("model_type") == "phi3_v" else None,
    )


def _read_transformers(folder: Path) -> Build:
    """Return the numbers of a folder whose matrices are computed with in float32, whatever the file has."""
    build = _read_mlx(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    halves = "16" in str(config.get("dtype") or config.get("torch_dtype") or "")
    return replace(build, backend="transformers", weight_bytes=build.weight_bytes * (2 if halves else 1))


def _read_mlx(folder: Path) -> Build:
    return replace(_read_openvino(folder), backend="mlx", weight_bytes=_size_bytes(folder, ".safetensors"))


def _read_gguf(path: Path) -> Build:
    file = gguf_file(path)
    facts = read_facts(file)

    def number(name: str, default: int | None = None) -> int:
        return int(facts.get(f"{facts['general.architecture']}.{name}", default))  # type: ignore[arg-type] # TypeError

    heads = number("attention.head_count")
    head_size = number("embedding_length") // heads
    key_size, value_size = (number(f"attention.{kind}_length", head_size) for kind in ("key", "value"))
    kv_heads = number("attention.head_count_kv", heads)
    return Build(
        backend="llamacpp",
        weight_bytes=file.stat().st_size,
        kv_values_per_token=number("block_count") * kv_heads * (key_size + value_size),
        heads=heads,
    )


_READERS = {
    "onnx": _read_onnx,
    "openvino": _read_openvino,
    "llamacpp": _read_gguf,
    "transformers": _read_transformers,
    "mlx": _read_mlx,
}


def _size_bytes(folder: Path, mark: str) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if mark in file.name)


@dataclass(frozen=True, slots=True)
class Needed:
    """What a load may come to hold: all of it, and how much of that is the machine's own memory, in bytes."""

    bytes: int
    host_bytes: int


def needed(build: Build, *, device: str, context_tokens: int, parallel: int) -> Needed:
    """Return the predicted peak of a loaded build with every lane full."""
    rate = rates(build.backend, device)
    value_bytes = build.kv_bytes_per_value or rate.kv_bytes_per_value
    cache = build.kv_values_per_token * value_bytes * context_tokens * parallel
    work = _work_bytes(build, rate, min(PIECE_TOKENS_MAX, context_tokens), context_tokens)
    if build.original_context_tokens and context_tokens > build.original_context_tokens:
        # the first piece of a long prompt reaches beyond the switch
        work = max(work, _work_bytes(build, rate, LONGROPE_TOKENS, LONGROPE_TOKENS))
    seen = _seen_bytes(build, rate, context_tokens)
    total = int(build.weight_bytes * rate.weights_factor + cache + work) + seen + rate.overhead_bytes
    return Needed(total, rate.host_bytes or total)


def _seen_bytes(build: Build, rate: Rates, context_tokens: int) -> int:
    """Return what images of one prompt take besides: the encoder's work, and their features, once more as they join."""
    if build.hidden_size is None:
        return 0
    return rate.encoder_bytes + _FEATURE_COPIES * min(context_tokens, LONGROPE_TOKENS) * build.hidden_size * 4


def _work_bytes(build: Build, rate: Rates, piece_tokens: int, reached_tokens: int) -> float:
    """Return what computing a piece of prompt takes that reaches so far."""
    return piece_tokens * (rate.token_bytes + build.heads * rate.score_bytes * reached_tokens)


def reserved(predicted_bytes: int) -> int:
    """Return what is set aside for a predicted peak."""
    return int(predicted_bytes * RESERVE_FACTOR) + RESERVE_BYTES


def largest_that_fits(
    build: Build, *, device: str, context_tokens: int, parallel: int, fits: Callable[[Needed], bool]
) -> tuple[int, int] | None:
    """Return the most context tokens and lanes, up to those asked for, whose need `fits`; None when nothing does.

    Lanes are given up before context: a prompt that is refused is worse than one that waits.
    """

    def room(tokens: int, lanes: int) -> bool:
        return fits(needed(build, device=device, context_tokens=tokens, parallel=lanes))

    for lanes in range(parallel, 0, -1):
        if room(context_tokens, lanes):
            return context_tokens, lanes
    low, high = min(context_tokens, CONTEXT_TOKENS_MIN), context_tokens
    if not room(low, 1):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if room(middle, 1) else (low, middle - 1)
    return low, 1

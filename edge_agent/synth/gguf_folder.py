"""Models as one GGUF file, as llama.cpp's converter writes Phi-3.5."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_agent.synth import gguf
from edge_agent.synth.folder import Progress
from edge_agent.synth.rope import magnitude
from edge_agent.synth.shape import Shape
from edge_agent.synth.tokenizer import END
from edge_agent.synth.weights import EMBEDDING, LM_HEAD, Weights

FILE = "phi-3.5-mini-instruct-{}.gguf"
_COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 3, 4, 5, 6
"""Types of tokens; the numbers are SentencePiece's."""
_UNSCORED, _ADDED = -10_000.0, -1000.0
"""Scores, as the converter gives them to tokens that no merge leads to, and to added ones."""
_MOSTLY_Q4_0 = 2
"""llama.cpp's number for the type of a file."""


def write_gguf(
    folder: Path, *, shape: Shape, weights: Weights, block_size: int, int8_activations: bool, progress: Progress
) -> None:
    """Write the model as one file. It holds the tokenizer, whose own files are removed from the folder.

    With `int8_activations` linear layers are Q4_0 and the embedding F16; without, everything is F32.
    Raises ValueError for a shape that sees, or rows and blocks that Q4_0 cannot hold.
    """
    if shape.vision is not None:
        raise ValueError("llama.cpp knows no Phi-3.5-vision; leave vision out")
    exact = not int8_activations
    name = "f32" if exact else "q4_0"
    facts = _facts(shape, exact=exact) | _tokenizer_facts(folder, shape)
    tensors = list(_tensors(shape, weights, block_size=block_size, exact=exact))

    def written(number: int) -> None:
        if tensors[number].name.endswith("ffn_down.weight"):  # the last of each layer
            progress(int(tensors[number].name.split(".")[1]) + 1, shape.layers)

    gguf.write(folder / FILE.format(name), facts, tensors, written=written)
    for companion in _COMPANIONS:
        (folder / companion).unlink()


def _facts(shape: Shape, *, exact: bool) -> dict[str, gguf.Fact]:
    return {
        "general.architecture": "phi3",
        "general.type": "model",
        "general.name": "Phi 3.5 Mini Instruct",
        "general.quantization_version": 2,
        "general.file_type": 0 if exact else _MOSTLY_Q4_0,
        "phi3.context_length": shape.context_tokens,
        "phi3.rope.scaling.original_context_length": shape.original_context_tokens,
        "phi3.rope.scaling.attn_factor": magnitude(shape),
        "phi3.embedding_length": shape.hidden_size,
        "phi3.feed_forward_length": shape.mlp_size,
        "phi3.block_count": shape.layers,
        "phi3.attention.head_count": shape.heads,
        "phi3.attention.head_count_kv": shape.kv_heads,
        "phi3.attention.layer_norm_rms_epsilon": shape.norm_epsilon,
        "phi3.rope.dimension_count": shape.head_size,
        "phi3.rope.freq_base": shape.rope_theta,
        "phi3.attention.sliding_window": 0,
    }


def _tokenizer_facts(folder: Path, shape: Shape) -> dict[str, gguf.Fact]:
    """Return the vocabulary of tokenizer.json, with byte-pair merges as scores: the earlier one, the higher."""
    tokenizer, config = (json.loads((folder / name).read_text(encoding="utf-8")) for name in _COMPANIONS[:2])
    pieces = [f"[PAD{number}]" for number in range(shape.vocab_size)]
    scores, types = [_UNSCORED] * shape.vocab_size, [_UNUSED] * shape.vocab_size
    merged: dict[str, int] = {}
    for rank, merge in enumerate(tokenizer["model"]["merges"]):
        merged.setdefault(merge.replace(" ", ""), rank)
    for piece, number in tokenizer["model"]["vocab"].items():
        pieces[number] = piece
        types[number] = _BYTE if piece.startswith("<0x") and piece.endswith(">") else _NORMAL
        if types[number] == _NORMAL:
            scores[number] = float(-merged[piece]) if piece in merged else _UNSCORED
    ids: dict[str, int] = {}
    for token in tokenizer["added_tokens"]:
        number = ids[token["content"]] = token["id"]
        pieces[number], scores[number] = token["content"], _ADDED
        types[number] = _CONTROL if token["special"] else _USER_DEFINED
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": ids[config["bos_token"]],
        "tokenizer.ggml.eos_token_id": ids[config["eos_token"]],
        "tokenizer.ggml.eot_token_id": ids[END.text],
        "tokenizer.ggml.unknown_token_id": ids[config["unk_token"]],
        "tokenizer.ggml.padding_token_id": ids[config["pad_token"]],
        "tokenizer.ggml.add_bos_token": config["add_bos_token"],
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": config["chat_template"],
    }


def _tensors(shape: Shape, weights: Weights, *, block_size: int, exact: bool) -> Iterator[gguf.Tensor]:
    """Return the tensors by llama.cpp's names, each read from its source when it is written."""

    def table(name: str, source: str, *sizes: int, kind: gguf.Type = gguf.Type.F32) -> gguf.Tensor:
        return gguf.floats(name, sizes, lambda: weights.floats(source, sizes), kind=kind)

    def linear(name: str, source: str, rows: int, columns: int) -> gguf.Tensor:
        size = (rows, columns)
        return gguf.matrix(name, size, lambda: weights.int4(source, size, block_size=block_size), exact=exact)

    hidden, kind = shape.hidden_size, gguf.Type.F32 if exact else gguf.Type.F16
    yield table("token_embd.weight", EMBEDDING, shape.vocab_size, hidden, kind=kind)
    yield from _rope_factors(shape)
    for layer in range(shape.layers):
        ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
        yield table(f"{ours}.attn_norm.weight", f"{theirs}.input_layernorm.weight", hidden)
        packed_size = hidden + 2 * shape.kv_size
        yield linear(f"{ours}.attn_qkv.weight", f"{theirs}.self_attn.qkv_proj.weight", packed_size, hidden)
        yield linear(f"{ours}.attn_output.weight", f"{theirs}.self_attn.o_proj.weight", hidden, hidden)
        yield table(f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight", hidden)
        yield linear(f"{ours}.ffn_up.weight", f"{theirs}.mlp.gate_up_proj.weight", 2 * shape.mlp_size, hidden)
        yield linear(f"{ours}.ffn_down.weight", f"{theirs}.mlp.down_proj.weight", hidden, shape.mlp_size)
    yield table("output_norm.weight", "model.norm.weight", hidden)
    yield linear("output.weight", LM_HEAD, shape.vocab_size, hidden)


def _rope_factors(shape: Shape) -> Iterator[gguf.Tensor]:
    for name, factors in (("long", shape.long_factors), ("short", shape.short_factors)):
        if factors:
            numbers = np.array(factors, np.float32)
            yield gguf.floats(f"rope_factors_{name}.weight", numbers.shape, numbers.copy)

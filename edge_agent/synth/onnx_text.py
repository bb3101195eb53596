"""The text decoder of Phi-3.5 as an ONNX graph for onnxruntime-genai.

Names, types, operators and symbolic axes are those of the published int4 builds; only the sizes follow the
shape.

    input_ids ─ embedding ─┬─ norm ─ attention ─┬─ norm ─ MLP ─┬─ … ─ norm ─ lm_head ─ logits
                           └────────────────────+──────────────+─ …

The decoder of a vision model begins with `inputs_embeds`, behind the embedding, which is a graph of its own.
"""

from dataclasses import dataclass

import numpy as np

from edge_agent.synth import rope
from edge_agent.synth.folder import Progress
from edge_agent.synth.graph import MICROSOFT, Axis, Graph, onnx_type
from edge_agent.synth.onnx_matmul import matmul
from edge_agent.synth.quantize import Int4
from edge_agent.synth.shape import Shape
from edge_agent.synth.weights import EMBEDDING, LM_HEAD, Weights

_MASK = "/model/attn_mask_reformat"


@dataclass(frozen=True, slots=True)
class Cache:
    """What attention needs to know about the tokens before: names of tensors."""

    past_lengths: str
    total_length: str
    cos: str
    sin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDecoder:
    """Writes the decoder into a graph, from the embedding to the logits."""

    graph: Graph
    shape: Shape
    weights: Weights
    block_size: int
    int8_activations: bool

    def write(self, *, progress: Progress) -> None:
        """Add everything, one layer after the other."""
        cache = self._cache(self.graph.input("attention_mask", np.int64, ["batch_size", "total_sequence_length"]))
        stream = self._first()
        normed = self._first_norm(stream, self._norm_name(0))
        for layer in range(self.shape.layers):
            prefix = f"model.layers.{layer}"
            attended = self._attention(normed, layer, cache)
            normed, stream = self._add_and_norm(stream, attended, f"{prefix}.post_attention_layernorm.weight")
            fed = self._mlp(normed, prefix)
            normed, stream = self._add_and_norm(stream, fed, self._norm_name(layer + 1))
            progress(layer + 1, self.shape.layers)
        logits = self._linear(normed, LM_HEAD, self.shape.vocab_size, self.shape.hidden_size, output="logits")
        self.graph.output(logits, np.float32, ["batch_size", "sequence_length", self.shape.vocab_size])

    def _norm_name(self, layer: int) -> str:
        """Return the name of the norm before a layer, or after the last."""
        return f"model.layers.{layer}.input_layernorm.weight" if layer < self.shape.layers else "model.norm.weight"

    def _first(self) -> str:
        """Return the residual stream before the first layer."""
        graph, shape, axes = self.graph, self.shape, ["batch_size", "sequence_length"]
        if shape.vision is not None:
            return graph.input("inputs_embeds", np.float32, [*axes, shape.hidden_size])
        table = self.weights.floats(EMBEDDING, (shape.vocab_size, shape.hidden_size))
        input_ids = graph.input("input_ids", np.int64, axes)
        return graph.op("Gather", [graph.weight(EMBEDDING, table), input_ids], "/model/embed_tokens/Gather")

    def _cache(self, mask: str) -> Cache:
        """Derive lengths from the mask [batch, past + new], which is how the runtime tells them."""
        graph = self.graph
        graph.op("ReduceSum", [mask, graph.constant([1])], f"{_MASK}/sum", keepdims=0)
        graph.op("Sub", [f"{_MASK}/sum", graph.constant([1])], f"{_MASK}/last")
        graph.op("Cast", [f"{_MASK}/last"], f"{_MASK}/past_lengths", to=onnx_type(np.int32))
        graph.op("Shape", [mask], f"{_MASK}/shape")
        total = graph.op("Gather", [f"{_MASK}/shape", graph.constant(1)], f"{_MASK}/total")
        graph.op("Cast", [total], f"{_MASK}/total_length", to=onnx_type(np.int32))
        self._rope(total)
        return Cache(f"{_MASK}/past_lengths", f"{_MASK}/total_length", "cos_cache", "sin_cache")

    def _rope(self, total_length: str) -> None:
        small = rope.small(self.shape)
        if not self.shape.longrope:
            self.graph.weight("cos_cache", small.cos)
            self.graph.weight("sin_cache", small.sin)
            return
        large = rope.large(self.shape)
        original = self.graph.constant(self.shape.original_context_tokens)
        self.graph.choose(
            self.graph.op("Greater", [total_length, original], "/model/rotary/beyond_original"),
            then={"cos_cache": large.cos, "sin_cache": large.sin},
            otherwise={"cos_cache": small.cos, "sin_cache": small.sin},
        )

    def _attention(self, normed: str, layer: int, cache: Cache) -> str:
        shape, prefix = self.shape, f"model.layers.{layer}.self_attn"
        keys: list[Axis] = ["batch_size", shape.kv_heads, "past_sequence_length", shape.head_size]
        presents: list[Axis] = ["batch_size", shape.kv_heads, "total_sequence_length", shape.head_size]
        past = [self.graph.input(f"past_key_values.{layer}.{kind}", np.float32, keys) for kind in ("key", "value")]
        present = [self.graph.output(f"present.{layer}.{kind}", np.float32, presents) for kind in ("key", "value")]
        packed_size = shape.hidden_size + 2 * shape.kv_size
        packed = self._linear(normed, f"{prefix}.qkv_proj.weight", packed_size, shape.hidden_size)
        mixed = self.graph.op(
            "GroupQueryAttention",
            [packed, "", "", *past, cache.past_lengths, cache.total_length, cache.cos, cache.sin],
            [f"/{prefix}/mixed", *present],
            domain=MICROSOFT,
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            scale=shape.head_size**-0.5,
            do_rotary=1,
            rotary_interleaved=0,
            local_window_size=-1,
            softcap=0.0,
        )
        return self._linear(mixed, f"{prefix}.o_proj.weight", shape.hidden_size, shape.hidden_size)

    def _mlp(self, normed: str, layer: str) -> str:
        """Add down(silu(gate(x)) * up(x)). Checkpoints pack gate above up, the graph has them apart."""
        graph, shape, prefix = self.graph, self.shape, f"{layer}.mlp"
        both = self._int4(f"{prefix}.gate_up_proj.weight", 2 * shape.mlp_size, shape.hidden_size)
        gate_weight, up_weight = both.split(shape.mlp_size)
        gate = self._matmul(normed, f"{prefix}.gate_proj", gate_weight)
        up = self._matmul(normed, f"{prefix}.up_proj", up_weight)
        sigmoid = graph.op("Sigmoid", [gate], f"/{prefix}/sigmoid")
        silu = graph.op("Mul", [gate, sigmoid], f"/{prefix}/silu")
        gated = graph.op("Mul", [silu, up], f"/{prefix}/gated")
        return self._linear(gated, f"{prefix}.down_proj.weight", shape.hidden_size, shape.mlp_size)

    def _first_norm(self, stream: str, name: str) -> str:
        return self.graph.op(
            "SimplifiedLayerNormalization",
            [stream, self._norm(name)],
            f"/{name}/normed",
            epsilon=self.shape.norm_epsilon,
            axis=-1,
            stash_type=1,
        )

    def _add_and_norm(self, stream: str, addition: str, name: str) -> tuple[str, str]:
        """Add to the residual stream; return the normed sum and the sum."""
        normed, added = f"/{name}/normed", f"/{name}/stream"
        outputs = [normed] if name == "model.norm.weight" else [normed, "", "", added]
        self.graph.op(
            "SkipSimplifiedLayerNormalization",
            [stream, addition, self._norm(name)],
            outputs,
            domain=MICROSOFT,
            epsilon=self.shape.norm_epsilon,
        )
        return normed, added

    def _norm(self, name: str) -> str:
        return self.graph.weight(name, self.weights.floats(name, (self.shape.hidden_size,)))

    def _int4(self, name: str, rows: int, columns: int) -> Int4:
        return self.weights.int4(name, (rows, columns), block_size=self.block_size)

    def _linear(self, source: str, name: str, rows: int, columns: int, *, output: str = "") -> str:
        matrix = self._int4(name, rows, columns)
        return self._matmul(source, name.removesuffix(".weight"), matrix, output=output)

    def _matmul(self, source: str, name: str, matrix: Int4, *, output: str = "") -> str:
        return matmul(self.graph, source, name, matrix, int8_activations=self.int8_activations, output=output)

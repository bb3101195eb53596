"""The text decoder of Phi-3.5 as an OpenVINO model for openvino-genai.

Inputs, states and the operators between them are those of a model that optimum-intel exported: what OpenVINO
replaces by faster kernels, its paged attention among them, it finds by such patterns.

    input_ids ─ embedding ─┬─ norm ─ attention ─┬─ norm ─ MLP ─┬─ … ─ norm ─ lm_head ─ logits
                           └────────────────────+──────────────+─ …
"""

from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset6
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo

from edge_agent.synth import rope
from edge_agent.synth.folder import Progress
from edge_agent.synth.openvino_graph import Constants, floats, input_node, ints
from edge_agent.synth.shape import Shape
from edge_agent.synth.weights import EMBEDDING, LM_HEAD, Weights

_MASKED = -65504.0
"""Added to the score of a token that must not be seen: the least float16, as exporters have it."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the layers share: which tokens see which, where the tokens stand, whose past they continue."""

    mask: ov.Node
    cos: ov.Node
    sin: ov.Node
    batch: ov.Node
    beams: ov.Node


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVinoTextDecoder:
    """Builds the decoder, from the embedding to the logits."""

    constants: Constants
    shape: Shape
    weights: Weights
    block_size: int

    def build(self, *, progress: Progress) -> ov.Model:
        """Return the model, good for as long as its constants are."""
        source, stream = self._source()
        attention_mask = input_node("attention_mask", [-1, -1], ov.Type.i64)
        positions = input_node("position_ids", [-1, -1], ov.Type.i64)
        beams = input_node("beam_idx", [-1], ov.Type.i32)
        cos, sin = self._rope(positions)
        context = Context(_mask(source, attention_mask), cos, sin, _axis(source, 0), beams)
        sinks: list[ov.Node] = []
        for layer in range(self.shape.layers):
            prefix = f"model.layers.{layer}"
            normed = self._norm(stream, f"{prefix}.input_layernorm.weight")
            attended, *assigns = self._attention(normed, layer, context)
            sinks += assigns
            stream = ops.add(stream, attended)
            normed = self._norm(stream, f"{prefix}.post_attention_layernorm.weight")
            stream = ops.add(stream, self._mlp(normed, f"{prefix}.mlp"))
            progress(layer + 1, self.shape.layers)
        normed = self._norm(stream, "model.norm.weight")
        logits = ops.result(self._linear(normed, LM_HEAD, self.shape.vocab_size, self.shape.hidden_size))
        logits.output(0).set_names({"logits"})
        return ov.Model([logits], sinks, [source, attention_mask, positions, beams], "phi-3.5")

    def _source(self) -> tuple[ov.Node, ov.Node]:
        """Return the decoder's input and what enters the first layer: where there are images, they are the same."""
        hidden = self.shape.hidden_size
        if self.shape.vision:
            embeddings = input_node("inputs_embeds", [-1, -1, hidden], ov.Type.f32)
            return embeddings, embeddings
        input_ids = input_node("input_ids", [-1, -1], ov.Type.i64)
        table = self.weights.floats(EMBEDDING, (self.shape.vocab_size, hidden))
        return input_ids, ops.gather(self.constants.floats(EMBEDDING, table), input_ids, ints(0))

    def _rope(self, positions: ov.Node) -> tuple[ov.Node, ov.Node]:
        """Return cosines and sines [batch, 1, tokens, head_size].

        Longrope's factors go by the greatest position of all sequences computed together, as optimum-intel
        exports it.
        """
        shape = self.shape
        turns = floats(rope.frequencies(shape, shape.short_factors)[None, None])
        if shape.longrope:
            greatest = ops.reduce_max(positions, ints(0, 1), keep_dims=False)
            beyond = ops.greater_equal(greatest, ops.constant(np.int64(shape.original_context_tokens)))
            turns = ops.select(beyond, floats(rope.frequencies(shape, shape.long_factors)[None, None]), turns)
        half = ops.multiply(ops.unsqueeze(ops.convert(positions, "f32"), ints(2)), turns)
        angles = ops.unsqueeze(ops.concat([half, half], 2), ints(1))
        magnitude = floats(rope.magnitude(shape))
        return ops.multiply(ops.cos(angles), magnitude), ops.multiply(ops.sin(angles), magnitude)

    def _attention(self, normed: ov.Node, layer: int, context: Context) -> tuple[ov.Node, ov.Node, ov.Node]:
        """Return what the heads saw, and the operators that keep keys and values for the next call."""
        shape, prefix = self.shape, f"model.layers.{layer}.self_attn"
        packed_size = shape.hidden_size + 2 * shape.kv_size
        packed = self._linear(normed, f"{prefix}.qkv_proj.weight", packed_size, shape.hidden_size)
        parts = ops.variadic_split(
            packed, ops.constant(np.int64(2)), ints(shape.hidden_size, shape.kv_size, shape.kv_size)
        )
        queries = self._turned(self._heads(parts.output(0), shape.heads), context)
        keys = self._turned(self._heads(parts.output(1), shape.kv_heads), context)
        values = self._heads(parts.output(2), shape.kv_heads)
        keys, keep_keys = self._with_past(f"past_key_values.{layer}.keypresent.{layer}.key", keys, context)
        values, keep_values = self._with_past(f"past_key_values.{layer}.valuepresent.{layer}.value", values, context)
        scale = floats(shape.head_size**-0.5)
        mixed = ops.scaled_dot_product_attention(
            queries,
            self._for_every_query_head(keys, context),
            self._for_every_query_head(values, context),
            context.mask,
            scale,
            causal=False,
        )
        joined = ops.reshape(ops.transpose(mixed, ints(0, 2, 1, 3)), ints(0, 0, shape.hidden_size), special_zero=True)
        return (
            self._linear(joined, f"{prefix}.o_proj.weight", shape.hidden_size, shape.hidden_size),
            keep_keys,
            keep_values,
        )

    def _heads(self, packed: ov.Output, heads: int) -> ov.Node:
        """Return [batch, heads, tokens, head_size]."""
        apart = ops.reshape(packed, ints(0, 0, heads, self.shape.head_size), special_zero=True)
        return ops.transpose(apart, ints(0, 2, 1, 3))

    def _turned(self, heads: ov.Node, context: Context) -> ov.Node:
        """Turn each pair of dimensions (i, i + half) by the angle of the token's position."""
        half, whole = self.shape.head_size // 2, self.shape.head_size
        first = ops.slice(heads, ints(0), ints(half), ints(1), ints(3))
        second = ops.slice(heads, ints(half), ints(whole), ints(1), ints(3))
        # Axis -1, not 3: the pattern of OpenVINO's rotary kernel says so.
        swapped = ops.concat([ops.multiply(second, floats(-1.0)), first], -1)
        return ops.add(ops.multiply(heads, context.cos), ops.multiply(swapped, context.sin))

    def _with_past(self, name: str, new: ov.Node, context: Context) -> tuple[ov.Node, ov.Node]:
        """Return past and new keys or values, and the operator that keeps both under that name."""
        heads, size = self.shape.kv_heads, self.shape.head_size
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, heads, -1, size])
        info.data_type = ov.Type.f32
        info.variable_id = name
        variable = Variable(info)
        nothing = ops.broadcast(floats(0.0), ops.concat([context.batch, ints(heads, 0, size)], 0))
        past = ops.gather(opset6.read_value(nothing, variable), context.beams, ints(0))
        both = ops.concat([past, new], 2)
        return both, opset6.assign(both, variable)

    def _for_every_query_head(self, heads: ov.Node, context: Context) -> ov.Node:
        """Repeat each key or value head for the query heads that share it."""
        shape, shared_by = self.shape, self.shape.heads // self.shape.kv_heads
        if shared_by == 1:
            return heads
        wanted = ops.concat([context.batch, ints(shape.kv_heads, shared_by), _axis(heads, 2), ints(shape.head_size)], 0)
        repeated = ops.broadcast(ops.unsqueeze(heads, ints(2)), wanted)
        return ops.reshape(repeated, ints(0, shape.heads, -1, shape.head_size), special_zero=True)

    def _mlp(self, normed: ov.Node, prefix: str) -> ov.Node:
        """Return down(silu(gate(x)) * up(x)); one matrix holds gate above up."""
        shape = self.shape
        both = self._linear(normed, f"{prefix}.gate_up_proj.weight", 2 * shape.mlp_size, shape.hidden_size)
        parts = ops.variadic_split(both, ops.constant(np.int64(2)), ints(shape.mlp_size, shape.mlp_size))
        gated = ops.multiply(ops.swish(parts.output(0)), parts.output(1))
        return self._linear(gated, f"{prefix}.down_proj.weight", shape.hidden_size, shape.mlp_size)

    def _norm(self, stream: ov.Node, name: str) -> ov.Node:
        weight = self.constants.floats(name, self.weights.floats(name, (self.shape.hidden_size,))[None, None])
        squares = ops.reduce_mean(ops.power(stream, floats(2.0)), ints(-1), keep_dims=True)
        root = ops.sqrt(ops.add(squares, floats(self.shape.norm_epsilon)))
        return ops.multiply(weight, ops.multiply(stream, ops.divide(floats(1.0), root)))

    def _linear(self, source: ov.Node, name: str, rows: int, columns: int) -> ov.Node:
        matrix = self.weights.int4(name, (rows, columns), block_size=self.block_size)
        return ops.matmul(source, self.constants.matrix(name, matrix), transpose_a=False, transpose_b=True)


def _mask(input_ids: ov.Node, attention_mask: ov.Node) -> ov.Node:
    """Return what is added to attention scores [batch, 1, new, past + new]: no token sees a later one or padding."""
    new, total = _scalar(_axis(input_ids, 1)), _scalar(_axis(attention_mask, 1))
    zero, one = ops.constant(np.int64(0)), ops.constant(np.int64(1))
    keys = ops.range(zero, total, one, "i64")
    queries = ops.unsqueeze(ops.range(ops.subtract(total, new), total, one, "i64"), ints(1))
    told = ops.unsqueeze(ops.not_equal(attention_mask, zero), ints(1, 2))
    seen = ops.logical_and(told, ops.less_equal(keys, queries))
    return ops.select(seen, floats(0.0), floats(_MASKED))


def _axis(node: ov.Node, axis: int) -> ov.Node:
    """Return the length of an axis as a vector of one."""
    return ops.gather(ops.shape_of(node), ints(axis), ints(0))


def _scalar(vector: ov.Node) -> ov.Node:
    return ops.squeeze(vector, ints(0))

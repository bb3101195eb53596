"""The parts of Phi-3.5-vision beside its decoder, as OpenVINO models for openvino-genai.

    pixel_values [tiles, 3, 336, 336] ─ CLIP ─ last_hidden_state [tiles, 576, 1024]
    input [1, tokens, 4096]: 2 x 2 neighbours of those, and separators ─ projector ─ hidden_states [1, tokens, hidden]
    input [batch, tokens] of ids ─ embedding ─ inputs_embeds [batch, tokens, hidden]

openvino-genai knows features of 1024 numbers only, so those of a narrower stand-in are filled up with zeros.
"""

from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from edge_agent.synth.openvino_graph import Constants, floats, input_node, ints
from edge_agent.synth.quantize import Floats
from edge_agent.synth.shape import Shape
from edge_agent.synth.vision import PATCH_PIXELS, PATCHES, PREFIX, TILE_PIXELS, VisionShape
from edge_agent.synth.weights import EMBEDDING, Weights

_FEATURES = 1024
_CLIP_EPSILON = 1e-5
_QUICK_GELU = 1.702
"""CLIP's activation is x * sigmoid(1.702 x)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionPart:
    """Builds the three models, each good for as long as its constants are. Beside a true CLIP matrices are int8."""

    constants: Constants
    shape: Shape
    vision: VisionShape
    weights: Weights

    def text_embeddings(self) -> ov.Model:
        """Return the embedding of token ids."""
        ids = input_node("input", [-1, -1], ov.Type.i64)
        table = self.weights.floats(EMBEDDING, (self.shape.vocab_size, self.shape.hidden_size))
        embedded = ops.gather(self._matrix(EMBEDDING, table), ids, ints(0))
        return _model(embedded, ids, "inputs_embeds", "text_embeddings")

    def encoder(self) -> ov.Model:
        """Return CLIP, or its stand-in."""
        width = self.vision.width
        pixels = input_node("pixel_values", [-1, 3, TILE_PIXELS, TILE_PIXELS], ov.Type.f32)
        kernels = self._tensor("patch", (width, 3, PATCH_PIXELS, PATCH_PIXELS))
        stride = [PATCH_PIXELS, PATCH_PIXELS]
        patches = ops.convolution(pixels, kernels, stride, [0, 0], [0, 0], [1, 1])
        tokens = ops.transpose(ops.reshape(patches, ints(0, width, PATCHES**2), special_zero=True), ints(0, 2, 1))
        positions = self._tensor("pos", (self.vision.positions, width))
        if not self.vision.layers:
            tokens = ops.add(tokens, positions)
            tokens = ops.add(tokens, self._mlp(self._norm(tokens, "ln"), ""))
            missing = _FEATURES - width
            features = ops.pad(tokens, ints(0, 0, 0), ints(0, 0, missing), "constant", floats(0.0))
            return _model(features, pixels, "last_hidden_state", "vision_embeddings")
        one_each = ops.concat([ops.gather(ops.shape_of(pixels), ints(0), ints(0)), ints(1, width)], 0)
        classes = ops.broadcast(self._tensor("class", (1, width)), one_each)
        tokens = self._norm(ops.add(ops.concat([classes, tokens], 1), positions), "pre")
        for layer in range(self.vision.layers):
            prefix = f"layers.{layer}."
            tokens = ops.add(tokens, self._attention(self._norm(tokens, f"{prefix}ln1"), prefix))
            tokens = ops.add(tokens, self._mlp(self._norm(tokens, f"{prefix}ln2"), prefix))
        patches_only = ops.slice(tokens, ints(1), ints(self.vision.positions), ints(1), ints(1))
        return _model(patches_only, pixels, "last_hidden_state", "vision_embeddings")

    def projector(self) -> ov.Model:
        """Return what brings joined patches to the width of the decoder."""
        joined = input_node("input", [1, -1, 4 * _FEATURES], ov.Type.f32)
        tokens = joined if self.vision.width == _FEATURES else ops.gather(joined, ints(*self._used()), ints(2))
        hidden = self.shape.hidden_size
        inner = ops.gelu(self._linear(tokens, "proj0", self.vision.token_size, hidden), "erf")
        return _model(self._linear(inner, "proj2", hidden, hidden), joined, "hidden_states", "vision_projection")

    def separators(self) -> dict[str, object]:
        """Return what ends a row of tokens and what stands before the overview, as config.json has them."""
        size = self.vision.token_size
        return {
            "sub_GN": [[[self._widened(self.weights.floats(f"{PREFIX}sub_GN", (1, 1, size)))]]],
            "glb_GN": [[self._widened(self.weights.floats(f"{PREFIX}glb_GN", (1, size)))]],
        }

    def _used(self) -> list[int]:
        """Return which of the 4096 numbers of a token hold something."""
        return [_FEATURES * part + number for part in range(4) for number in range(self.vision.width)]

    def _widened(self, separator: Floats) -> list[float]:
        wide = np.zeros(4 * _FEATURES, np.float32)
        wide[self._used()] = separator.ravel()
        return [float(value) for value in wide]

    def _attention(self, tokens: ov.Node, prefix: str) -> ov.Node:
        width, heads = self.vision.width, self.vision.heads
        packed = self._linear(tokens, f"{prefix}qkv", width, 3 * width)
        parts = ops.variadic_split(packed, ops.constant(np.int64(2)), ints(width, width, width))
        queries, keys, values = (
            ops.transpose(
                ops.reshape(parts.output(part), ints(0, 0, heads, width // heads), special_zero=True), ints(0, 2, 1, 3)
            )
            for part in range(3)
        )
        mixed = ops.scaled_dot_product_attention(queries, keys, values, causal=False)
        joined = ops.reshape(ops.transpose(mixed, ints(0, 2, 1, 3)), ints(0, 0, width), special_zero=True)
        return self._linear(joined, f"{prefix}out", width, width)

    def _mlp(self, tokens: ov.Node, prefix: str) -> ov.Node:
        width = self.vision.width
        inner = self._linear(tokens, f"{prefix}fc1", width, 4 * width)
        inner = ops.swish(inner, floats(_QUICK_GELU)) if self.vision.layers else ops.gelu(inner, "erf")
        return self._linear(inner, f"{prefix}fc2", 4 * width, width)

    def _norm(self, tokens: ov.Node, name: str) -> ov.Node:
        shape = (self.vision.width,)
        even = ops.mvn(tokens, ints(-1), normalize_variance=True, eps=_CLIP_EPSILON, eps_mode="inside_sqrt")
        return ops.add(ops.multiply(even, self._tensor(f"{name}.w", shape)), self._tensor(f"{name}.b", shape))

    def _linear(self, tokens: ov.Node, name: str, inputs: int, outputs: int) -> ov.Node:
        matrix = self.weights.floats(f"{PREFIX}{name}.w", (inputs, outputs)).T
        product = ops.matmul(tokens, self._matrix(f"{PREFIX}{name}.w", matrix), False, True)
        return ops.add(product, self._tensor(f"{name}.b", (outputs,)))

    def _matrix(self, name: str, matrix: Floats) -> ov.Node:
        return self.constants.bytes_matrix(name, matrix) if self.vision.layers else self.constants.floats(name, matrix)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> ov.Node:
        return self.constants.floats(PREFIX + name, self.weights.floats(PREFIX + name, shape))


def _model(output: ov.Node, source: ov.Node, output_name: str, name: str) -> ov.Model:
    output.output(0).set_names({output_name})
    return ov.Model([ops.result(output)], [source], name)
